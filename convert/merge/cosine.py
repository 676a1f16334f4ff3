"""Merging by cosine similarity: where the models are alike, more of A is kept.

Source: supermerger's cosineA and cosineB (calcmode_en.md, mergers.py). The similarity of a tensor's column (over its
first axis, the outputs) and that of the whole tensor are averaged to s. Then k = (s - low) / (high - low) - r, between
0 and 1, is A's share. low and high are the range of all similarities, without the lowest and highest hundredth.
"""

from collections.abc import Sequence

import numpy as np

from sdjax.convert.merge.method import Array, Chosen

_SMALLEST = 1e-8


def cosine_a(a: Array, others: Sequence[Array], ratios: Sequence[float], chosen: Chosen) -> Array:
    """Returns the mixture by the similarity of normalised columns, with A's structure and details of B."""
    return _mixture(a, others[0], similarity(_normalised(a), _normalised(others[0])), abs(ratios[0]), chosen)


def cosine_b(a: Array, others: Sequence[Array], ratios: Sequence[float], chosen: Chosen) -> Array:
    """Returns the mixture by the similarity of the tensors, with B's structure and details of A."""
    return _mixture(a, others[0], similarity(a, others[0]), ratios[0], chosen)


def of_columns(a: Array, b: Array) -> Array:
    """Returns the cosines of two tensors' columns, which are vectors along the first axis."""
    return np.sum(_normalised(a) * _normalised(b), axis=0)


def similarity(a: Array, b: Array) -> Array:
    """Returns the mean of the columns' cosines and that of the whole tensors."""
    dots = [np.sum(x * y, dtype=np.float64) for x, y in ((a, b), (a, a), (b, b))]
    whole = dots[0] / max(np.sqrt(dots[1] * dots[2]), _SMALLEST)
    return (of_columns(a, b) + np.float32(whole)) / 2


def bounds_of(similarities: Sequence[Array]) -> tuple[float, float]:
    """Returns the least and greatest similarity without the lowest and the highest hundredth."""
    every = np.concatenate([np.reshape(one, -1) for one in similarities])
    every = every[np.isfinite(every)]
    for percent, outside in (1, np.less), (99, np.greater):
        every = every[~outside(every, np.percentile(every, percent, method="midpoint"))]
    return float(every.min()), float(every.max())


def _mixture(a: Array, b: Array, alike: Array, ratio: float, chosen: Chosen) -> Array:
    low, high = chosen.bounds
    share = np.clip((alike - low) / max(high - low, _SMALLEST) - ratio, 0, 1).astype(np.float32)
    return b * (1 - share) + a * share


def _normalised(a: Array) -> Array:
    lengths = np.sqrt(np.sum(np.square(a), axis=0, keepdims=True))
    return a / np.maximum(lengths, 1e-12)
