"""Running a training: batches made ahead, numbers logged, checkpoints written, stopped and resumed."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from sdjax.train.checkpoints.checkpoint import Checkpoints
from sdjax.train.compiling import Compiling
from sdjax.train.metrics import Writers
from sdjax.train.objectives.objective import Metrics
from sdjax.train.signals import Signals
from sdjax.train.state import TrainState
from sdjax.train.watch import Watch

RATE = "learning_rate"  # of the last step: no mean


class Stopped(KeyboardInterrupt):
    """A training that was told to stop, and saved; `number` is the signal."""

    def __init__(self, text: str, number: int):
        super().__init__(text)
        self.number = number


@dataclasses.dataclass(frozen=True)
class Event:
    """Something done after every `every`-th step, and after the last one: `run(state)` returns numbers to log.

    A number named `best` ranks the state of that step, the lower the better: it is saved then. `name` is for messages.
    """

    every: int
    run: Callable[[TrainState], dict[str, float]]
    name: str = "validation or samples"


def fit(
    state: TrainState, train_step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    batches: Callable[[int], Iterator[Any]], *, steps: int, checkpoints: Checkpoints, log: Writers,
    log_every: int = 50, save_every: float = 300.0, save_steps: int | None = None, events: tuple[Event, ...] = (),
    refused_limit: int = 10, patience: float | None = None, programs: int | None = None,
) -> TrainState:  # fmt: skip
    """Returns the state after `steps` steps in all, from `state` on, which counts those that were taken before.

    Args:
        batches: `batches(n)` yields the batches of step n (from 0) and on, so that a resumed run sees what it would
            have seen.
        log: gets the means of the numbers since it was told last, every `log_every` steps; with `seconds` a step, and
            the shares of the time that went into waiting for data (`data_wait`) and into saving (`save_wait`).
        save_every: seconds between checkpoints; or with `save_steps`, steps between them. One is also written at the
            end, on SIGUSR1, and on SIGTERM and Ctrl-C, upon which Stopped is raised.
        events: what else is done, such as validation.
        refused_limit: FloatingPointError is raised after so many steps in a row that were refused.
        patience: seconds that a batch, a save, or a step that is not compiled first, may take before the process
            ends with status HUNG, saying on what it hung: a peer that died leaves the others waiting for ever. None
            waits too.
        programs: how many sizes of batches there are. The step is compiled for each, which is said, and counts neither
            for the time of a step nor for `patience`.
    """
    meter = _Meter()
    compiling = Compiling(programs, log.say)
    metrics: Metrics = {}
    refused = int(state.refused.in_a_row)
    with contextlib.ExitStack() as stack:
        told = stack.enter_context(Signals())
        watch = stack.enter_context(Watch(patience))
        step = int(state.step)
        data = batches(step)
        stack.callback(getattr(data, "close", lambda: None))
        saved, seen = time.monotonic(), set[int]()
        while step < steps and not told.stop:
            with watch("a batch"), meter.waiting("data"):
                batch = next(data)
            with watch(f"step {step + 1}"):
                jax.block_until_ready(metrics)  # of the step before: no more than two are under way when a signal comes
                refused = _count_refused(metrics, refused, refused_limit, step)
            with contextlib.ExitStack() as around:
                if compiling.is_new(batch):
                    around.enter_context(meter.pausing())
                    around.enter_context(compiling(batch))
                else:
                    around.enter_context(watch(f"step {step + 1}"))
                state, metrics = train_step(state, batch)
            step += 1
            meter.add(metrics)
            if not save_steps and time.monotonic() - saved > save_every:
                told.ask_to_save()
            with watch("agreeing with the other processes"):
                told.agree(step)
            if step % log_every == 0 or step == steps:
                with watch(f"step {step}"):
                    jax.block_until_ready(metrics)
                _count_refused(metrics, refused, refused_limit, step)
                log.scalars(step, meter.read())
            ranked: dict[str, float] = {}
            for i, event in enumerate(events):
                if step % event.every == 0 or step == steps:
                    if i not in seen:
                        log.say(f"compiling {event.name}, as this is the first time")
                    with watch(event.name) if i in seen else contextlib.nullcontext(), meter.pausing():
                        values = event.run(state)
                    seen.add(i)
                    ranked |= {name: values.pop(name) for name in ("best",) if name in values}
                    if values:
                        log.scalars(step, values)
            if told.save or ranked or (save_steps and step % save_steps == 0):
                with watch("saving"), meter.waiting("save"):
                    log.flush()  # before the checkpoint: a run goes on from there, and knows what came before
                    checkpoints.save(state, metric=ranked.get("best"))
                told.save, saved = False, time.monotonic()
        with watch("saving"):
            jax.block_until_ready(state)
            log.flush()
            checkpoints.save(state, wait=True)
    if step < steps:
        raise Stopped(f"stopped at step {step} of {steps}; the same command goes on from there", told.stop)
    return state


def _count_refused(metrics: Metrics, before: int, limit: int, step: int) -> int:
    if not metrics or not float(metrics["refused"]):
        return 0 if metrics else before
    if before + 1 >= limit:
        values = ", ".join(f"{name} {float(value):g}" for name, value in metrics.items() if name != "refused")
        raise FloatingPointError(
            f"{limit} steps in a row, up to step {step}, had a loss or gradient that is not finite or far too large "
            f"({values}); the newest checkpoint is from before or holds nothing of them. Lower the learning rate, or "
            "look at the data"
        )
    return before + 1


class _Meter:
    """Means of a step's numbers, and where the time goes."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forgets what was added, and starts the clock."""
        self.steps: list[Metrics] = []
        self.waits = {"data": 0.0, "save": 0.0}
        self.since = time.monotonic()

    def add(self, metrics: Metrics) -> None:
        self.steps.append(metrics)

    @contextlib.contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.waits[name] += time.monotonic() - begin

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.since += time.monotonic() - begin

    def read(self) -> dict[str, float]:
        """Returns the means and starts anew. Numbers of refused steps count for nothing but `refused`."""
        taken = jax.device_get(self.steps)
        good = [one for one in taken if not one["refused"]]
        values = {name: float(np.mean([one[name] for one in good])) if good else math.nan for name in taken[-1]}
        if RATE in values:
            values[RATE] = float(taken[-1][RATE])
        values["refused"] = float(sum(one["refused"] for one in taken))
        passed = time.monotonic() - self.since
        values["seconds"] = passed / len(taken)
        values |= {f"{name}_wait": wait / passed for name, wait in self.waits.items()}
        self.restart()
        return values
