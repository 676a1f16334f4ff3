"""Writes a trace of some training steps, for XProf."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax


@contextlib.contextmanager
def profiled(step: Callable, folder: str | None, first: int = 10, last: int = 20) -> Iterator[Callable]:
    """Yields a step that writes a trace of its calls from number `first` up to, but without, `last`, for XProf.

    Without a folder it is the step itself. If the run ends earlier, the trace ends there.
    """
    calls, traces = 0, False
    if folder is None:
        yield step
        return

    def call(*args: Any) -> Any:
        nonlocal calls, traces
        if calls == first:
            jax.profiler.start_trace(folder)
            traces = True
        with jax.profiler.StepTraceAnnotation("train", step_num=calls):
            out = step(*args)
        calls += 1
        if calls == last:
            jax.block_until_ready(out)
            jax.profiler.stop_trace()
            traces = False
        return out

    try:
        yield call
    finally:
        if traces:
            jax.profiler.stop_trace()
