"""The jobs that wait: by priority, then every client in turn, then by age."""

import collections
import threading

from sdjax.serve.engine.job import Job


class Waiting:
    """The queue. Among jobs of one priority, the next is one of the client that has the fewest running."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._jobs: list[Job] = []
        self._taken: list[Job] = []
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
            self._taken.append(job)
            return job

    def over(self, job: Job) -> None:
        """Notes that a job that was taken runs no longer."""
        with self.changed:
            self._taken.remove(job)

    def taken(self) -> list[Job]:
        """Returns the jobs that were taken and are not over, in the order of taking."""
        with self.changed:
            return list(self._taken)

    def all(self) -> list[Job]:
        """Returns the jobs that were taken, then those that wait, in order."""
        with self.changed:
            return [*self._taken, *self._ordered()]

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
        running = collections.Counter(job.work.client for job in self._taken)
        keyed = []
        for job in sorted(self._jobs, key=lambda job: job.created):
            client, priority = job.work.client, job.work.priority
            turn = running[client] + turns[priority, client]
            turns[priority, client] += 1
            keyed.append(((-priority, turn, job.created), job))
        return [job for _, job in sorted(keyed, key=lambda pair: pair[0])]
