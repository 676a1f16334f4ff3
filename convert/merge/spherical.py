"""Spherical interpolation.

Source: mergekit (merge_methods/slerp.py): the angle is that between the normalised tensors, the weights are those of
the tensors themselves.
"""

import math
from collections.abc import Sequence

import numpy as np

from sdjax.convert.merge.method import Array, Chosen

_PARALLEL = 0.9995  # above this cosine the interpolation is linear
_SMALLEST = 1e-8


def slerp(a: Array, others: Sequence[Array], ratios: Sequence[float], chosen: Chosen) -> Array:
    """Returns sin((1 - t) angle) / sin(angle) a + sin(t angle) / sin(angle) b, whole tensors as vectors."""
    (b,), (t,) = others, ratios
    cosine = min(max(_dot(a, b) / (_length(a) * _length(b)), -1.0), 1.0)
    if abs(cosine) > _PARALLEL:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) / math.sin(angle)) * a + (math.sin(t * angle) / math.sin(angle)) * b


def _dot(a: Array, b: Array) -> float:
    return float(np.sum(a * b, dtype=np.float64))


def _length(a: Array) -> float:
    length = math.sqrt(_dot(a, a))
    return length if length > _SMALLEST else 1.0
