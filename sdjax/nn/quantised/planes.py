"""Codes of 2 to 8 bits, packed into bytes along an axis: a code of five bits is one of four and one of a single bit.

A plane packs 8 / bits codes into a byte, those that are 32 bits / 8 apart, so that unpacking is a shift and a
concatenation, which XLA fuses with what follows.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

GROUP = 32  # codes that are packed together


def widths(bits: int) -> tuple[int, ...]:
    """Returns the widths of the planes of codes with this many bits, the lowest bits first: 6 is 4 and 2."""
    return (8,) if bits == 8 else tuple(width for width in (4, 2, 1) if bits & width)


def split(codes: np.ndarray, bits: int) -> tuple[np.ndarray, ...]:
    """Returns the planes of codes [..., c, d], each [..., c / 32, 32 width / 8, d]. Codes of 8 bits are not packed."""
    *outer, c, d = codes.shape
    codes = codes.reshape(*outer, c // GROUP, GROUP, d)
    if bits == 8:
        return (np.ascontiguousarray(codes),)
    planes, shift = [], 0
    for width in widths(bits):
        part = (codes >> shift) & (2**width - 1)
        rows = GROUP * width // 8
        packed = np.zeros((*outer, c // GROUP, rows, d), np.uint8)
        for i in range(8 // width):
            packed |= (part[..., i * rows : (i + 1) * rows, :] << (i * width)).astype(np.uint8)
        planes.append(packed)
        shift += width
    return tuple(planes)


def joined(planes: Sequence[Any], bits: int) -> Any:
    """Returns the codes [..., c / 32, 32, d] of planes, bytes, or int8 as they are."""
    if bits == 8:
        return planes[0]
    numpy = np if isinstance(planes[0], np.ndarray) else jnp
    total, shift = None, 0
    for plane, width in zip(planes, widths(bits), strict=True):
        mask = np.uint8(2**width - 1)
        parts = [(plane >> np.uint8(i * width)) & mask for i in range(8 // width)]
        part = numpy.concatenate(parts, axis=-2) << np.uint8(shift)
        total = part if total is None else total | part
        shift += width
    return total
