"""Ends a process that waits too long, because a process that died leaves the others waiting for ever."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

HUNG = 6  # exit status of a process that stopped waiting for a step
GO_ON = "the same command goes on from the newest checkpoint"


class Watch:
    """Ends the process with a message if it waits longer than `patience` seconds."""

    def __init__(self, patience: float | None) -> None:
        self.patience, self.since = patience, 0.0
        self.what: str | None = None
        self.closed = threading.Event()

    def __enter__(self) -> "Watch":
        if self.patience is not None:
            threading.Thread(target=self._look, args=(self.patience,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.closed.set()

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self.since, self.what = time.monotonic(), what
        try:
            yield
        finally:
            self.what = None

    def _look(self, patience: float) -> None:
        while not self.closed.wait(min(1.0, patience / 4)):
            what, since = self.what, self.since
            if what is not None and time.monotonic() - since > patience:
                end(
                    f"sdjax train: {what} took longer than {patience:g} seconds (process {jax.process_index()} of "
                    f"{jax.process_count()}): a device hangs, or another process died; {GO_ON}"
                )


def end(sentence: str) -> NoReturn:
    """Ends the process with a message and the status HUNG, even if its threads are waiting."""
    print(sentence, file=sys.stderr, flush=True)
    os._exit(HUNG)  # the main thread is in a call that does not return
