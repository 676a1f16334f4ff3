"""The jobs that wait: by priority, then every client in turn, then by age."""

import collections
import threading

from sdjax.serve.engine.job import Job


class Waiting:
    """The queue. Among jobs of one priority, the next is one of the client that has the fewest running."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._jobs: list[Job] = []
        self._running: collections.Counter[str] = collections.Counter()
        self._closed = False

    def put(self, job: Job) -> None:
        """Adds a job."""
        with self.changed:
            self._jobs.append(job)
            self.changed.notify()

    def take(self) -> Job | None:
        """Waits for the next job and returns it; None once the queue is closed. Call `over` when it has ended."""
        with self.changed:
            self.changed.wait_for(lambda: self._closed or self._jobs)
            if self._closed:
                return None
            job = self._ordered()[0]
            self._jobs.remove(job)
            self._running[job.work.client] += 1
            return job

    def over(self, job: Job) -> None:
        """Notes that a job that was taken runs no longer."""
        with self.changed:
            self._running[job.work.client] -= 1
            if self._running[job.work.client] <= 0:
                del self._running[job.work.client]

    def remove(self, job: Job) -> bool:
        """Removes a job and returns whether it waited."""
        with self.changed:
            there = job in self._jobs
            if there:
                self._jobs.remove(job)
            return there

    def jobs(self) -> list[Job]:
        """Returns the jobs in the order in which they will be taken."""
        with self.changed:
            return self._ordered()

    def position(self, job: Job) -> int | None:
        """Returns the job's number in the order, None if it does not wait."""
        jobs = self.jobs()
        return jobs.index(job) if job in jobs else None

    def __len__(self) -> int:
        return len(self._jobs)

    def close(self) -> None:
        """Lets every `take` return None."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    def _ordered(self) -> list[Job]:
        turns: collections.Counter[tuple[int, str]] = collections.Counter()
        keyed = []
        for job in sorted(self._jobs, key=lambda job: job.created):
            client, priority = job.work.client, job.work.priority
            turn = self._running[client] + turns[priority, client]
            turns[priority, client] += 1
            keyed.append(((-priority, turn, job.created), job))
        return [job for _, job in sorted(keyed, key=lambda pair: pair[0])]
