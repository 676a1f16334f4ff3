"""Quantises weights: chooses the scales of a type, and rounds to codes.

Source of the scales of ggml's legacy types: the format's own quantiser (ggml-quants.c, `quantize_row_*_ref`): the
number of largest size gets the code of largest size. The other types have many possible scales; ours are said below.
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np

from sdjax.nn.quantised.blocks import Blocks, leaf_of
from sdjax.nn.quantised.kinds import Kind
from sdjax.nn.quantised.leaf import FLOAT8, Quantised

AT_ONCE = 2**22  # weights that are rounded together, so that temporary arrays stay small
ROUNDS = 6  # of least squares for a small block of q4_k


def quantised(kind: Kind, kernel: np.ndarray, dtype: str) -> Quantised:
    """Returns the leaf of a kernel [..., c, d]; c must be divisible by the type's block.

    Numbers that are not finite make weights that are not finite, or wrong, in their block.
    """
    if not kind.block:
        return _scaled(kind, kernel, dtype)
    rows = np.ascontiguousarray(np.swapaxes(kernel, -1, -2))
    flat = rows.reshape(-1, kind.block)
    step = max(1, AT_ONCE // kind.block)
    with np.errstate(all="ignore"):
        parts = [_ROUNDED[kind.name](flat[i : i + step].astype(np.float32)) for i in range(0, len(flat), step)]
    return leaf_of(kind, _joined(parts), rows.shape, dtype)


def _joined(parts: list[Blocks]) -> Blocks:
    def join(name: str) -> np.ndarray | None:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    codes, scale = join("codes"), join("scale")
    assert codes is not None
    assert scale is not None
    return Blocks(codes, scale, join("offset"), join("small_scale"), join("small_offset"))


def _scaled(kind: Kind, kernel: np.ndarray, dtype: str) -> Quantised:
    """Returns int8 or float8 codes; an output's largest weight gets the largest code, 127 or 448."""
    weights = kernel.astype(np.float32)
    top = np.abs(weights).max(axis=tuple(range(weights.ndim - 1)))
    largest = 127 if kind.name == "int8" else float(ml_dtypes.finfo(FLOAT8).max)
    scale = np.where(top > 0, top / largest, 1).astype(np.float32)
    with np.errstate(all="ignore"):
        weights /= scale
        codes = np.rint(weights).astype(np.int8) if kind.name == "int8" else weights.astype(FLOAT8).view(np.uint8)
    return Quantised((np.ascontiguousarray(codes),), scale, kind=kind.name, shape=kernel.shape, dtype_name=dtype)


def _inverse(scale: np.ndarray) -> np.ndarray:
    return np.where(scale != 0, 1 / scale, 0).astype(np.float32)[:, None]


def _q8_0(x: np.ndarray) -> Blocks:
    scale = np.abs(x).max(axis=1) / np.float32(127)
    return Blocks(np.clip(np.rint(x * _inverse(scale)), -127, 127).astype(np.int8), scale.astype(np.float16))


def _symmetric(zero: int) -> Callable[[np.ndarray], Blocks]:
    """Returns the quantiser whose codes reach from 0 to 2 zero - 1; the number of largest size gets the code 0."""

    def rounded(x: np.ndarray) -> Blocks:
        largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
        scale = largest / np.float32(-zero)
        codes = np.clip(np.floor(x * _inverse(scale) + np.float32(zero + 0.5)), 0, 2 * zero - 1)
        return Blocks(codes.astype(np.uint8), scale.astype(np.float16))

    return rounded


def _from_least(steps: int) -> Callable[[np.ndarray], Blocks]:
    """Returns the quantiser whose codes reach from 0 for the least number to `steps` for the largest."""

    def rounded(x: np.ndarray) -> Blocks:
        least = x.min(axis=1)
        scale = (x.max(axis=1) - least) / np.float32(steps)
        codes = np.clip(np.floor((x - least[:, None]) * _inverse(scale) + np.float32(0.5)), 0, steps)
        return Blocks(codes.astype(np.uint8), scale.astype(np.float16), least.astype(np.float16))

    return rounded


def _q4_k(x: np.ndarray) -> Blocks:
    """Returns blocks of q4_k: least squares for every small block, then both small numbers rounded to six bits."""
    small = x.reshape(-1, 32)
    scale, offset = _fitted(small)
    scale, offset = scale.reshape(-1, 8), offset.reshape(-1, 8)
    d = (scale.max(axis=1) / np.float32(63)).astype(np.float16)
    m = (offset.max(axis=1) / np.float32(63)).astype(np.float16)
    small_scale = np.clip(np.rint(scale * _inverse(d.astype(np.float32))), 0, 63)
    small_offset = np.clip(np.rint(offset * _inverse(m.astype(np.float32))), 0, 63)
    own = (d.astype(np.float32)[:, None] * small_scale).reshape(-1)
    below = (m.astype(np.float32)[:, None] * small_offset).reshape(-1, 1)
    codes = np.clip(np.rint((small + below) * _inverse(own)), 0, 15).astype(np.uint8)
    return Blocks(codes.reshape(x.shape), d, m, small_scale.astype(np.int8), -small_offset.astype(np.int8))


def _fitted(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale s and offset m >= 0 of blocks [n, 32], so that s q - m with q from 0 to 15 is near x.

    Codes and the least squares of both numbers are computed in turn, and the best pair of the rounds is kept.
    """
    offset = -np.minimum(x.min(axis=1), 0)
    scale = (x.max(axis=1) + offset) / np.float32(15)
    best = scale, offset, np.full(len(x), np.inf, np.float32)
    count, sums = np.float32(x.shape[1]), x.sum(axis=1)
    for _ in range(ROUNDS):
        q = np.clip(np.rint((x + offset[:, None]) * _inverse(scale)), 0, 15)
        error = np.square(scale[:, None] * q - offset[:, None] - x).sum(axis=1)
        better = error < best[2]
        best = (np.where(better, scale, best[0]), np.where(better, offset, best[1]), np.where(better, error, best[2]))
        qs, qq, qx = q.sum(axis=1), np.square(q).sum(axis=1), (q * x).sum(axis=1)
        determinant = count * qq - qs * qs
        free = determinant > 0
        s = np.where(free, (count * qx - qs * sums) / np.where(free, determinant, 1), scale)
        m = (s * qs - sums) / count
        through = (m < 0) & (qq > 0)  # the offset is only ever subtracted: best without one
        s = np.where(through, qx / np.where(qq > 0, qq, 1), s)
        scale, offset = np.maximum(s, 0).astype(np.float32), np.maximum(m, 0).astype(np.float32)
    return best[0], best[1]


_ROUNDED: dict[str, Callable[[np.ndarray], Blocks]] = {
    "q8_0": _q8_0, "q4_0": _symmetric(8), "q5_0": _symmetric(16), "q4_1": _from_least(15), "q5_1": _from_least(31),
    "q4_k": _q4_k,
}  # fmt: skip
