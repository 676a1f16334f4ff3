"""Resizing maps as ComfyUI does: nearest-exact, bilinear, area, bicubic, bislerp, lanczos, cut to the middle first."""

import numpy as np
from jaxtyping import Float

from sdjax import pictures
from sdjax.nn.layers.interpolation import interpolate, taps

METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
LATENT_METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "bislerp")
CROPS = ("disabled", "center")
LARGEST = 16384  # height and width in pixels

Map = Float[np.ndarray, "b h w c"]


def upscale(x: Map, height: int, width: int, method: str, crop: str = "disabled") -> Map:
    """Returns maps in another size, float32. `crop` "center" cuts them to the new shape before. Raises ValueError."""
    if not (1 <= height <= LARGEST and 1 <= width <= LARGEST):
        raise ValueError(f"a picture is 1 to {LARGEST} pixels high and wide; got {width} x {height}")
    x = np.asarray(x, np.float32)
    if crop == "center":
        x = _cut(x, height, width)
    if x.shape[1:3] == (height, width):
        return x
    if method == "nearest-exact":
        rows, columns = (_nearest(old, new) for old, new in zip(x.shape[1:3], (height, width)))
        return x[:, rows][:, :, columns]
    if method == "area":
        return _along(_along(x, 1, height), 2, width)
    if method == "bislerp":
        return _bislerp(x, height, width)
    if method == "lanczos":
        levels = np.clip(np.rint(x * 255), 0, 255).astype(np.uint8)
        return np.stack([pictures.resize(one, height, width, "lanczos") for one in levels]).astype(np.float32) / 255
    return interpolate(x, (height, width), method=method)


def _cut(x: Map, height: int, width: int) -> Map:
    """Returns the middle of maps in the shape of the new size."""
    h, w = x.shape[1:3]
    top = left = 0
    if w / h > width / height:
        left = round((w - w * ((width / height) / (w / h))) / 2)
    elif w / h < width / height:
        top = round((h - h * ((w / h) / (width / height))) / 2)
    return x[:, top : h - top, left : w - left]


def _nearest(old: int, new: int) -> np.ndarray:
    return np.minimum(np.floor((np.arange(new) + 0.5) * (old / new)).astype(int), old - 1)


def _along(x: Map, axis: int, length: int) -> Map:
    """Returns means over the part of the old axis that each new entry covers, as adaptive pooling takes it."""
    old = x.shape[axis]
    sums = np.concatenate([np.zeros_like(x.take([0], axis)), np.cumsum(x, axis, dtype=np.float64)], axis)
    first = np.arange(length) * old // length
    last = -(-(np.arange(1, length + 1) * old) // length)
    shape = [1] * x.ndim
    shape[axis] = -1
    made = (sums.take(last, axis) - sums.take(first, axis)) / (last - first).reshape(shape)
    return np.asarray(made, np.float32)


def _bislerp(x: Map, height: int, width: int) -> Map:
    """Returns maps whose entries are interpolated on spheres, first along the width."""
    for axis, length in (2, width), (1, height):
        indices, weights = taps(x.shape[axis], length, "bilinear", False)
        ends = [np.moveaxis(x.take(indices[:, k], axis), axis, -2) for k in (0, 1)]  # [b, other axis, new, c]
        x = np.moveaxis(_slerp(ends[0], ends[1], weights[:, 1:]), -2, axis)
    return x


def _slerp(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Returns vectors between a and b along the last axis, direction and length interpolated apart."""
    lengths = [np.linalg.norm(one, axis=-1, keepdims=True) for one in (a, b)]
    unit = [np.where(n > 0, one / np.where(n > 0, n, 1), 0) for one, n in zip((a, b), lengths)]
    cosine = (unit[0] * unit[1]).sum(-1, keepdims=True)
    angle = np.arccos(np.clip(cosine, -1, 1))
    sine = np.where(np.sin(angle) > 1e-7, np.sin(angle), 1)
    made = (np.sin((1 - share) * angle) * unit[0] + np.sin(share * angle) * unit[1]) / sine
    made = made * (lengths[0] * (1 - share) + lengths[1] * share)
    made = np.where(cosine > 1 - 1e-5, a, made)
    return np.where(cosine < 1e-5 - 1, a * (1 - share) + b * share, made).astype(np.float32)
