"""Handles signals that stop a training or make it save, and makes all its processes agree on them."""

import signal
import threading
import time
from typing import Any

import jax
import numpy as np

AGREE = 10  # seconds after which several processes ask each other whether one got a signal


class Signals:
    """The requests of signals while the block runs: `stop`, the number of SIGTERM or SIGINT, and `save`, for SIGUSR1.

    Only the main thread can catch signals. A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.stop, self.save = 0, False
        self._asked = [0, 0]
        self._previous: dict[int, Any] = {}
        self._next = 0
        self._since: tuple[int, float] | None = None

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: Any) -> None:
        if number == signal.SIGUSR1:
            return self.ask_to_save()
        if number == signal.SIGINT and self._asked[0] == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked[0] = number

    def ask_to_save(self) -> None:
        """Asks for a save, as SIGUSR1 does."""
        self._asked[1] = 1

    def agree(self, step: int) -> None:
        """Applies the requests. With several processes, all apply the requests of any of them in the same step.

        They ask each other about every AGREE seconds, at least every ten steps.
        """
        if jax.process_count() == 1:
            asked = self._asked
        elif step >= self._next:
            from jax.experimental import multihost_utils

            now, seconds = time.monotonic(), np.inf  # of a step
            if self._since is not None:
                seconds = (now - self._since[1]) / (step - self._since[0])
            told = multihost_utils.process_allgather(np.array([*self._asked, seconds], np.float32))
            *asked, slowest = np.max(told, axis=0).tolist()
            asked = [int(value) for value in asked]
            self._next, self._since = step + min(max(int(AGREE / max(slowest, 1e-3)), 1), 10), (step, now)
        else:
            return
        self.stop, self.save = asked[0], self.save or bool(asked[1])
        self._asked[1] = 0

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
