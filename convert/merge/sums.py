"""Weighted sums and differences.

Sources: AUTOMATIC1111's checkpoint merger (modules/extras.py); supermerger's train difference (mergers.py).
"""

from collections.abc import Sequence

import numpy as np

from sdjax.convert.merge.method import Array, Chosen

_TRAINED = 1.8  # supermerger's factor of the ratio


def weighted_sum(a: Array, others: Sequence[Array], ratios: Sequence[float], chosen: Chosen) -> Array:
    """Returns (1 - r1 - r2 - ...) a + r1 b + r2 c + ..."""
    out = (1 - sum(ratios)) * a
    for ratio, other in zip(ratios, others, strict=True):
        out = out + ratio * other
    return out


def add_difference(a: Array, others: Sequence[Array], ratios: Sequence[float], chosen: Chosen) -> Array:
    """Returns a + r (b - c)."""
    b, c = others
    return a + ratios[0] * (b - c)


def train_difference(a: Array, others: Sequence[Array], ratios: Sequence[float], chosen: Chosen) -> Array:
    """Returns a + 1.8 r (b - c) |b - a| / (|b - c| + |b - a|), and a where both distances are 0."""
    b, c = others
    learned, distance = b - c, np.abs(b - a)
    both = np.abs(learned) + distance
    share = np.divide(distance, both, out=np.zeros_like(both), where=both != 0)
    return a + (_TRAINED * ratios[0]) * (learned * share)
