"""How far chance moves a measure: the bootstrap, over pictures and in pairs over captions.

A resample draws n of n pictures with replacement and measures them again. Resample b depends on the seed, b and n only.
So two sets of pictures of the same captions are measured on the same captions in each resample, and the difference of
their b-th values is the paired bootstrap. Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sdjax.evaluate.measures import Features

LEVEL = 0.95
RESAMPLES = 100
_SEED = 0


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float


def resample(b: int, count: int) -> Int[np.ndarray, "n"]:
    """Returns the rows of resample `b` of `count` rows."""
    return np.random.default_rng([_SEED, b, count]).integers(0, count, count)


def resampled(
    measure: Callable[[Features], float], features: Features, resamples: int = RESAMPLES
) -> Float[np.ndarray, "b"]:
    """Returns the measure of each resample of the features' rows."""
    count = len(next(iter(features.values())))
    rows = (resample(b, count) for b in range(resamples))
    return np.array([measure({name: value[at] for name, value in features.items()}) for at in rows], np.float64)


def interval(value: float, samples: Sequence[float] | Float[np.ndarray, "b"], level: float = LEVEL) -> Interval:
    """Returns the confidence interval of a value, from the values of its resamples.

    It is the percentile interval, shifted so that the resamples' mean is the value. A Fréchet distance of a resample is
    larger, because its pictures repeat; the shift removes this. The distance's own bias with few pictures stays.

    Raises ValueError for fewer than two resamples.
    """
    samples = np.asarray(samples, np.float64)
    if len(samples) < 2:
        raise ValueError(f"an interval needs at least two resamples; got {len(samples)}")
    low, high = np.quantile(samples - samples.mean(), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value + low), float(value + high))


def is_more_than_noise(difference: Interval) -> bool:
    """Returns whether the confidence interval of a difference lies on one side of zero."""
    return difference.low > 0 or difference.high < 0
