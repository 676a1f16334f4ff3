"""Sums of differences to a base, trimmed or thinned.

Sources: Ilharco et al. 2022 (arXiv 2212.04089), task arithmetic; Yadav et al. 2023 (arXiv 2306.01708), TIES; Yu et al.
2023 (arXiv 2311.03099), DARE; their form in PEFT (peft/utils/merge_utils.py).
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from sdjax.convert.merge.method import Array, Chosen

SIGNS = ("total", "frequency")


def task_arithmetic(base: Array, others: Sequence[Array], ratios: Sequence[float], chosen: Chosen) -> Array:
    """Returns base + sum of r_i (m_i - base)."""
    return base + _sum([other - base for other in others], ratios)


def magnitude_prune(base: Array, others: Sequence[Array], ratios: Sequence[float], chosen: Chosen) -> Array:
    """Returns base + sum of r_i times the largest entries of m_i - base."""
    return base + _sum([_largest(other - base, chosen.density) for other in others], ratios)


def dare_linear(base: Array, others: Sequence[Array], ratios: Sequence[float], chosen: Chosen) -> Array:
    """Returns base + sum of r_i times drawn entries of m_i - base, divided by the density."""
    return base + _sum(_thinned(base, others, chosen), ratios)


def ties(base: Array, others: Sequence[Array], ratios: Sequence[float], chosen: Chosen) -> Array:
    """Returns base + the mean, over the models that agree in sign, of r_i times the largest entries of m_i - base."""
    return base + _agreeing([_largest(other - base, chosen.density) for other in others], ratios, chosen.sign)


def dare_ties(base: Array, others: Sequence[Array], ratios: Sequence[float], chosen: Chosen) -> Array:
    """Returns what `ties` does with drawn entries in place of the largest."""
    return base + _agreeing(_thinned(base, others, chosen), ratios, chosen.sign)


def draw_mask(seed: int, model: int, name: str, shape: tuple[int, ...], density: float) -> np.ndarray:
    """Returns which entries are kept, True with probability `density`.

    They depend on seed, model and tensor alone. NumPy keeps Philox's raw numbers the same in all versions.
    """
    digest = hashlib.sha256(f"{seed}/{model}/{name}".encode()).digest()
    raw = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(11)) < round(density * 2**53)).reshape(shape)


def _sum(deltas: Sequence[Array], ratios: Sequence[float]) -> Array:
    out = ratios[0] * deltas[0]
    for ratio, delta in zip(ratios[1:], deltas[1:], strict=True):
        out = out + ratio * delta
    return out


def _largest(delta: Array, density: float) -> Array:
    """Returns the int(density n) entries of largest magnitude, and 0 for the others; of equal ones the first."""
    count = int(density * delta.size)
    if count >= delta.size:
        return delta
    if count == 0:
        return np.zeros_like(delta)
    size = np.abs(delta).reshape(-1)
    least = np.partition(size, delta.size - count)[delta.size - count]
    kept = size > least
    kept[np.flatnonzero(size == least)[: count - int(kept.sum())]] = True
    return np.where(kept.reshape(delta.shape), delta, np.float32(0))


def _thinned(base: Array, others: Sequence[Array], chosen: Chosen) -> list[Array]:
    assert chosen.mask is not None
    scale = np.float32(chosen.density)
    return [np.where(chosen.mask(i), (other - base) / scale, np.float32(0)) for i, other in enumerate(others)]


def _agreeing(deltas: Sequence[Array], ratios: Sequence[float], sign: str) -> Array:
    votes = [np.sign(delta) for delta in deltas] if sign == "frequency" else deltas
    positive = sum(votes[1:], votes[0]) >= 0
    total = count = np.zeros_like(deltas[0])
    for delta, ratio in zip(deltas, ratios, strict=True):
        agrees = np.where(positive, delta > 0, delta < 0)
        total = total + np.where(agrees, ratio * delta, np.float32(0))
        count = count + agrees
    return total / np.maximum(count, 1)
