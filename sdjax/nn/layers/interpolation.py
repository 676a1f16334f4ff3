"""Resizing by interpolation without a filter: torch's `interpolate` and OpenCV's `resize`, for numpy and JAX arrays.

`jax.image.resize` is another function: its cubic has a = -0.5, and it blurs before it shrinks.
"""

import functools
import operator
from typing import TypeVar

import numpy as np
from jaxtyping import Array

CUBIC = -0.75  # the parameter a of torch's and OpenCV's bicubic kernel
METHODS = ("bilinear", "bicubic")

AnyMap = TypeVar("AnyMap", np.ndarray, Array)  # [b, h, w, c]


def interpolate(x: AnyMap, size: tuple[int, int], *, method: str, align_corners: bool = False) -> AnyMap:
    """Returns maps [b, h, w, c] at another (height, width), in their own dtype, computed in float32.

    `method` is "bilinear" or "bicubic" (a = -0.75, values may overshoot). Pixel i is at i + 1/2. With `align_corners`
    it is at i, and the first and last pixels of both sizes coincide. Border pixels are repeated outside. There is no
    blurring, so shrinking skips pixels. Raises ValueError for another method or an empty size.

    Source: torch.nn.functional.interpolate with antialias=False; for bicubic maps cv2.resize with INTER_CUBIC too.
    """
    if method not in METHODS:
        raise ValueError(f"a method of interpolation is one of {', '.join(METHODS)}; got {method!r}")
    if min(*size, *x.shape[1:3]) < 1:
        raise ValueError(f"a map has at least one row and column; got {tuple(x.shape[1:3])} to be {tuple(size)}")
    y = x.astype(np.float32)
    for axis, length in zip((1, 2), size):
        if length != x.shape[axis]:
            y = _along(y, axis, *taps(x.shape[axis], length, method, align_corners))
    return y.astype(x.dtype)


def _along(x: AnyMap, axis: int, indices: np.ndarray, weights: np.ndarray) -> AnyMap:
    shape = [1] * x.ndim
    shape[axis] = -1
    terms = [x.take(indices[:, k], axis=axis) * weights[:, k].reshape(shape) for k in range(indices.shape[1])]
    return functools.reduce(operator.add, terms)


@functools.lru_cache(maxsize=256)
def taps(old: int, new: int, method: str, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the old places for each new place along an axis, and their weights, both [new, k]."""
    places = np.arange(new, dtype=np.float64)
    places = places * ((old - 1) / max(new - 1, 1)) if align_corners else (places + 0.5) * (old / new) - 0.5
    first = np.floor(places)
    t = places - first
    offsets: tuple[int, ...]
    weights: tuple[np.ndarray, ...]
    if method == "bilinear":
        offsets, weights = (0, 1), (1 - t, t)
    else:
        offsets, weights = (-1, 0, 1, 2), (_outer(1 + t), _inner(t), _inner(1 - t), _outer(2 - t))
    indices = np.stack([np.clip(first + offset, 0, old - 1) for offset in offsets], -1)
    return indices.astype(np.int32), np.stack(weights, -1).astype(np.float32)


def _inner(t: np.ndarray) -> np.ndarray:  # Keys's cubic convolution kernel, 0 <= t <= 1
    return ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1


def _outer(t: np.ndarray) -> np.ndarray:  # 1 <= t <= 2
    return ((CUBIC * t - 5 * CUBIC) * t + 8 * CUBIC) * t - 4 * CUBIC
