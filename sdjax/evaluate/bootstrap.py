"""How far chance moves a measure: the bootstrap, over pictures and in pairs over captions; and Wilson's interval.

A resample draws n of n pictures with replacement and measures them again. Resample b depends on the seed, b and n only.
So two sets of pictures of the same captions are measured on the same captions in each resample, and the difference of
their b-th values is the paired bootstrap. Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap.

An estimate from pairs of different pictures would count the pairs of a picture with its copies. For it a resample draws
half of the pictures without replacement: a mean of half of the rows is as far from the mean of all as the latter is
from the truth. Source: Politis, Romano and Wolf 1999, Subsampling.

A share of pictures that are right or wrong has Wilson's interval, which is inside [0, 1] and not a point if all are
right. Source: Wilson 1927, Probable inference; Newcombe 1998 (Statistics in Medicine 17, 873 and 2635) for differences.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sdjax.evaluate.measures import Features

LEVEL = 0.95
RESAMPLES = 100
_SEED = 0


Bounds = tuple[float | None, float | None]


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float


def resample(b: int, count: int, *, distinct: bool = False) -> Int[np.ndarray, "m"]:
    """Returns the rows of resample `b` of `count` rows: as many with replacement, or half of them, `distinct`."""
    rng = np.random.default_rng([_SEED, b, count])
    return np.sort(rng.permutation(count)[: count // 2]) if distinct else rng.integers(0, count, count)


def resampled(
    measure: Callable[[Features], float], features: Features, resamples: int = RESAMPLES, *, distinct: bool = False
) -> Float[np.ndarray, "b"]:
    """Returns the measure of each resample of the features' rows.

    With `distinct`, fewer than four rows have no resamples: halves of them have no pair of rows.
    """
    count = len(next(iter(features.values())))
    if distinct and count < 4:
        return np.empty(0)
    rows = (resample(b, count, distinct=distinct) for b in range(resamples))
    return np.array([measure({name: value[at] for name, value in features.items()}) for at in rows], np.float64)


def interval(
    value: float, samples: Sequence[float] | Float[np.ndarray, "b"], level: float = LEVEL, bounds: Bounds = (None, None)
) -> Interval:
    """Returns the confidence interval of a value, from the values of its resamples.

    It is the percentile interval, shifted so that the resamples' mean is the value. A Fréchet distance of a resample is
    larger, because its pictures repeat; the shift removes this. The distance's own bias with few pictures stays. What
    is outside the `bounds` of the measure's values, (least, most), is cut off.

    Raises ValueError for fewer than two resamples.
    """
    samples = np.asarray(samples, np.float64)
    if len(samples) < 2:
        raise ValueError(f"an interval needs at least two resamples; got {len(samples)}")
    low, high = np.quantile(samples - samples.mean(), [(1 - level) / 2, (1 + level) / 2])
    least, most = bounds
    low, high = (np.clip(value + end, least, most) if bounds != (None, None) else value + end for end in (low, high))
    return Interval(float(low), float(high))


def share_interval(share: float, trials: int, level: float = LEVEL) -> Interval:
    """Returns Wilson's confidence interval of a share of `trials` independent pictures."""
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # Rounding must not move the ends past the share, where they meet it exactly
    return Interval(min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share))


def difference_of_shares(
    first: tuple[float, int], second: tuple[float, int], correlation: float = 0.0, level: float = LEVEL
) -> Interval:
    """Returns Newcombe's confidence interval of second minus first; both are (share, trials).

    `correlation` is that of the pictures of the same caption being right, 0 if the captions differ.
    """
    one, other = (share_interval(*each, level) for each in (first, second))
    (p, _), (q, _) = first, second

    def together(a: float, b: float) -> float:
        return math.sqrt(max(a**2 - 2 * correlation * a * b + b**2, 0.0))

    return Interval(q - p - together(q - other.low, one.high - p), q - p + together(other.high - q, p - one.low))


def is_more_than_noise(difference: Interval) -> bool:
    """Returns whether the confidence interval of a difference lies on one side of zero."""
    return difference.low > 0 or difference.high < 0
