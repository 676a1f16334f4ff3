"""Running a training: batches made ahead, numbers logged, checkpoints written, stopped and resumed."""

import json
import math
import pathlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from sdjax.train.checkpoint import Checkpoints
from sdjax.train.objectives import Metrics
from sdjax.train.state import TrainState
from sdjax.train.step import TrainStep


def fit(
    state: TrainState, train_step: TrainStep, batch: Callable[[int], Any], *, steps: int, folder: str | pathlib.Path,
    log_every: int = 50, save_every: float = 300.0, keep: int = 2,
) -> TrainState:  # fmt: skip
    """Returns the state after `steps` steps in all, going on from the folder's newest checkpoint if there is one.

    Args:
        batch: step n (from 0) is trained on `batch(n)`, so that a resumed run sees what it would have seen.
        folder: where checkpoints and `log.jsonl`, a line every `log_every` steps, are written.
        save_every: seconds between checkpoints. One is also written at the end, and on SIGTERM or Ctrl-C, upon which
            KeyboardInterrupt is raised.

    Raises FloatingPointError if the loss is no longer a finite number; the checkpoints are from before that.
    """
    folder = pathlib.Path(folder)
    checkpoints = Checkpoints(folder, keep)
    state = checkpoints.restore(state) or state
    first, saved, seen, since = int(state.step), time.monotonic(), 0, time.monotonic()
    metrics: Metrics = {}
    with _stop_signals() as stop, open(folder / "log.jsonl", "a") as log:
        for step, data in zip(range(first, steps), ahead(batch, first, steps)):
            jax.block_until_ready(metrics)  # of the step before: no more than two are under way when a signal comes
            state, metrics = train_step(state, data)
            seen += 1
            if (step + 1) % log_every == 0 or step + 1 == steps:
                values = {name: float(value) for name, value in metrics.items()}
                if not all(map(math.isfinite, values.values())):
                    raise FloatingPointError(f"the loss left the finite numbers before step {step + 1}: {values}")
                now = time.monotonic()
                values["seconds"] = (now - since) / seen
                seen, since = 0, now
                print(json.dumps({"step": step + 1, **values}), file=log, flush=True)
                if now - saved > save_every:
                    checkpoints.save(state)
                    saved = time.monotonic()
            if stop.is_set():
                break
        jax.block_until_ready(state)
        checkpoints.save(state)
    if int(state.step) < steps:
        raise KeyboardInterrupt(f"stopped at step {int(state.step)} of {steps}; the same command goes on from there")
    return state


def ahead(batch: Callable[[int], Any], first: int, last: int, depth: int = 4) -> Iterator[Any]:
    """Yields batch(first) ... batch(last - 1), made by a thread of its own up to `depth` ahead."""
    ready: queue.Queue = queue.Queue(depth)
    closed = threading.Event()

    def put(item: Any) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.5)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for n in range(first, last):
                if closed.is_set():
                    return
                put((batch(n), None))
        except Exception as error:
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for _ in range(first, last):
            item, error = ready.get()
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        thread.join()


class _stop_signals:
    """An event that SIGTERM and SIGINT set while the block runs; only the main thread can catch signals."""

    def __enter__(self) -> threading.Event:
        self.event, self.previous = threading.Event(), {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous[number] = signal.signal(number, lambda *_: self.event.set())
        return self.event

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
