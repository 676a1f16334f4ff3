"""Measurements for tests of several modules: how far apart arrays and pictures are, and how often JAX compiles."""

from collections.abc import Callable, Generator

import jax
import numpy as np


def relative_error(got, want) -> float:
    """Returns |got - want| / |want| of arrays of one shape."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def near(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether pictures agree to one 8-bit level: the last bits of a convolution depend on the batch."""
    return np.abs(a.astype(int) - b.astype(int)).max() <= 1


def run_out(sampling: Generator) -> object:
    """Returns what a generator returns when it has yielded everything."""
    while True:
        try:
            next(sampling)
        except StopIteration as end:
            return end.value


def count_compilations(function: Callable) -> int:
    """Returns how many programs JAX compiled while `function` ran."""
    compiled = []

    def listener(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        function()
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    return len(compiled)
