"""How fast the engine is, measured: how long a job takes, how long it still needs, when there is room."""

import time
from collections import deque
from collections.abc import Sequence

from sdjax.serve.engine.job import Job

KEPT = 50  # jobs whose duration counts
SHORTEST = 1.0  # least seconds to wait before another try


class Speed:
    """The durations of the last jobs, with `slots` at once."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._seconds: deque[float] = deque(maxlen=KEPT)

    def add(self, seconds: float) -> None:
        """Takes the duration of a job that was made."""
        self._seconds.append(seconds)

    @property
    def usual(self) -> float | None:
        """The mean duration of the last jobs, None before the first."""
        seconds = list(self._seconds)
        return sum(seconds) / len(seconds) if seconds else None

    def until_room(self, running: int) -> float:
        """Returns after how many seconds a job leaves the queue: when one of those that run ends."""
        return max(SHORTEST, (self.usual or SHORTEST) / max(running, 1))

    def left(self, job: Job, position: int | None, running: Sequence[Job]) -> float | None:
        """Returns how many seconds a job still needs, with its number in the queue if it waits; None if unknown."""
        if position is None:
            if job.began is None or not job.total:
                return self.usual
            spent = time.monotonic() - job.began
            return spent / job.done * (job.total - job.done) if job.done else self.usual
        if self.usual is None:
            return None
        free = max(self.slots - len(running), 0)
        turns = max(position - free, -1) + 1 if position >= free else 0
        return self.usual * (1 + turns / self.slots)
