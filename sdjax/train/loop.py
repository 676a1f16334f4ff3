"""The training loop: takes steps, logs numbers, writes checkpoints, and stops on signals."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from sdjax.train.checkpoints.checkpoint import Checkpoints
from sdjax.train.compiling import Compiling
from sdjax.train.metrics import Writers
from sdjax.train.objectives.objective import Batch, Metrics
from sdjax.train.signals import Signals
from sdjax.train.state import TrainState
from sdjax.train.watch import Watch

RATE = "learning_rate"  # logged for the last step, not as a mean
DONE = "done"  # of an event: the training ends


class Stopped(KeyboardInterrupt):
    """A signal stopped the training, and its state was saved; `number` is the signal's number."""

    def __init__(self, text: str, number: int):
        super().__init__(text)
        self.number = number


@dataclasses.dataclass(frozen=True)
class Event:
    """An action after every `every`-th step and after the last step. `run(state)` returns numbers to log.

    A number named `best` ranks the state of that step, lower is better; a state with it is saved. A number named DONE
    ends the training after that step. `name` is for messages. With `first` the action is also taken before the first
    step of a run. `brief` actions take no longer than the run's patience.
    """

    every: int
    run: Callable[[TrainState], dict[str, float]]
    name: str = "validation or samples"
    first: bool = False
    brief: bool = True


def fit(
    state: TrainState, train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    batches: Callable[[int], Iterator[Batch]], *, steps: int, checkpoints: Checkpoints, log: Writers,
    log_every: int = 50, save_every: float = 300.0, save_steps: int | None = None, events: tuple[Event, ...] = (),
    refused_limit: int = 10, patience: float | None = None, programs: int | None = None,
) -> TrainState:  # fmt: skip
    """Returns the state after `steps` steps in all. `state.step` counts the steps taken before.

    Args:
        batches: `batches(n)` yields the batches from step n (from 0) on, so that a resumed run sees the same batches.
        log: gets numbers every `log_every` steps: means since the last call, `seconds` a step, and the shares of the
            time spent waiting for data (`data_wait`) and saving (`save_wait`).
        save_every: seconds between checkpoints; `save_steps` sets steps instead. A checkpoint is also written at the
            end, on SIGUSR1, and on SIGTERM and Ctrl-C, which then raise Stopped.
        events: further actions, such as validation.
        refused_limit: FloatingPointError is raised after this many refused steps in a row.
        patience: the most seconds that a batch, a save or a compiled step may take. After that the process ends with
            status HUNG and says what it waited for, because a process that died leaves the others waiting for ever.
            None waits for ever.
        programs: the number of batch sizes. The step is compiled for each size. This is reported, and counts neither
            in the time of a step nor for `patience`.
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
        for event in events if step == 0 else ():
            if event.first:
                with meter.pausing():
                    event.run(state)
        while step < steps and not told.stop:
            with watch("a batch"), meter.waiting("data"):
                batch = next(data)
            with watch(f"step {step + 1}"):
                jax.block_until_ready(metrics)  # of the step before: at most two steps run when a signal comes
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
                    watched = event.brief and i in seen
                    with watch(event.name) if watched else contextlib.nullcontext(), meter.pausing():
                        values = event.run(state)
                    seen.add(i)
                    ranked |= {name: values.pop(name) for name in ("best",) if name in values}
                    steps = step if values.pop(DONE, 0.0) else steps
                    if values:
                        log.scalars(step, values)
            if told.save or ranked or (save_steps and step % save_steps == 0):
                with watch("saving"), meter.waiting("save"):
                    log.flush()  # before the checkpoint: a resumed run needs the log up to it
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
    """The means of a step's numbers, and the shares of the time."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Clears all sums and starts the clock."""
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
        """Returns the means and restarts. Refused steps count only in `refused`."""
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
