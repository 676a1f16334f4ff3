"""Blocks of quantised weights on the host: how ggml's types lie in files, and how they become a leaf."""

import dataclasses
from collections.abc import Callable

import numpy as np

from sdjax.nn.quantised.kinds import KINDS, Kind
from sdjax.nn.quantised.leaf import Quantised
from sdjax.nn.quantised.planes import joined, split

Bytes = np.ndarray  # uint8 [m, size]: m blocks of a file


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Blocks of a type: codes [m, block], uint8 or int8, float16 scales [m], and what else the type has.

    `small_scale` and `small_offset` are int8 [m, block / group]. A small offset is negative: k types subtract it.
    """

    codes: np.ndarray
    scale: np.ndarray
    offset: np.ndarray | None = None
    small_scale: np.ndarray | None = None
    small_offset: np.ndarray | None = None


def blocks_of_bytes(kind: Kind, data: Bytes) -> Blocks:
    """Returns the blocks of a file."""
    return _READ[kind.name](data)


def bytes_of_blocks(kind: Kind, blocks: Blocks) -> Bytes:
    """Returns blocks as a file holds them. `Kind.written` says for which types that works."""
    return _WRITE[kind.name](blocks)


def leaf_of(kind: Kind, blocks: Blocks, rows: tuple[int, ...], dtype: str) -> Quantised:
    """Returns the leaf of blocks that lie row by row: `rows` [d, c], or [..., d, c], is the shape of the weights."""
    *outer, d, c = rows

    def turned(array: np.ndarray | None) -> np.ndarray | None:
        if array is None:
            return None
        per_row = array.reshape(*outer, d, -1)
        return np.ascontiguousarray(np.swapaxes(per_row, -1, -2))

    codes = np.swapaxes(blocks.codes.reshape(*outer, d, c), -1, -2)
    scale = turned(blocks.scale)
    assert scale is not None
    return Quantised(
        split(codes, kind.bits), scale, turned(blocks.offset), turned(blocks.small_scale), turned(blocks.small_offset),
        kind=kind.name, shape=(*outer, c, d), dtype_name=dtype,
    )  # fmt: skip


def blocks_of(leaf: Quantised) -> Blocks:
    """Returns a leaf's blocks row by row, the other way round than `leaf_of`."""
    kind = KINDS[leaf.kind]

    def turned(array: object, last: int) -> np.ndarray | None:
        if array is None:
            return None
        rows = np.swapaxes(np.asarray(array), -1, -2)
        return rows.reshape(-1, last) if last > 1 else rows.reshape(-1)

    codes = np.asarray(joined([np.asarray(plane) for plane in leaf.codes], kind.bits)).reshape(leaf.shape)
    small = kind.block // kind.group
    rows, scale = turned(codes, kind.block), turned(leaf.scale, 1)
    assert rows is not None
    assert scale is not None
    return Blocks(
        rows, scale, turned(leaf.offset, 1), turned(leaf.small_scale, small), turned(leaf.small_offset, small)
    )


def _halves(data: Bytes, start: int) -> np.ndarray:
    """Returns the little-endian float16 numbers at a byte of every block."""
    return np.ascontiguousarray(data[:, start : start + 2]).view("<f2").reshape(-1).astype(np.float16)


def _nibbles(data: Bytes, rows: int) -> np.ndarray:
    """Returns codes of four bits: of every `rows` bytes first the lower halves, then the upper ones."""
    parts = data.reshape(len(data), -1, 1, rows)
    return np.concatenate([parts & 15, parts >> 4], axis=2).reshape(len(data), -1)


def _bits(data: Bytes) -> np.ndarray:
    """Returns the bits of bytes [m, n] as [m, 8 n], the lowest bit of the first byte first."""
    return np.unpackbits(data, axis=1, bitorder="little")


def _q8_0(data: Bytes) -> Blocks:
    return Blocks(np.ascontiguousarray(data[:, 2:]).view(np.int8), _halves(data, 0))


def _q4_0(data: Bytes) -> Blocks:
    return Blocks(_nibbles(data[:, 2:], 16), _halves(data, 0))


def _q4_1(data: Bytes) -> Blocks:
    return Blocks(_nibbles(data[:, 4:], 16), _halves(data, 0), _halves(data, 2))


def _q5_0(data: Bytes) -> Blocks:
    return Blocks(_nibbles(data[:, 6:], 16) | _bits(data[:, 2:6]) << 4, _halves(data, 0))


def _q5_1(data: Bytes) -> Blocks:
    return Blocks(_nibbles(data[:, 8:], 16) | _bits(data[:, 4:8]) << 4, _halves(data, 0), _halves(data, 2))


def _six_bits(data: Bytes) -> tuple[np.ndarray, np.ndarray]:
    """Returns the eight small scales and small offsets of six bits that q4_k and q5_k pack into 12 bytes."""
    first, second, third = (data[:, i : i + 4] for i in (0, 4, 8))
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=1)
    offsets = np.concatenate([second & 63, (third >> 4) | (second >> 6) << 4], axis=1)
    return scales.astype(np.int8), -offsets.astype(np.int8)


def _q4_k(data: Bytes) -> Blocks:
    scales, offsets = _six_bits(data[:, 4:16])
    return Blocks(_nibbles(data[:, 16:], 32), _halves(data, 0), _halves(data, 2), scales, offsets)


def _q5_k(data: Bytes) -> Blocks:
    scales, offsets = _six_bits(data[:, 4:16])
    high = (data[:, 16:48, None] >> np.arange(8, dtype=np.uint8)) & 1  # bit j of a byte is that of the group j
    high = high.transpose(0, 2, 1).reshape(len(data), 256)
    return Blocks(_nibbles(data[:, 48:], 32) | high << 4, _halves(data, 0), _halves(data, 2), scales, offsets)


def _q6_k(data: Bytes) -> Blocks:
    low = _nibbles(data[:, :128], 64)
    high = _pairs(data[:, 128:192])
    return Blocks(low | high << 4, _halves(data, 208), None, np.ascontiguousarray(data[:, 192:208]).view(np.int8))


def _q2_k(data: Bytes) -> Blocks:
    small = data[:, :16]
    return Blocks(
        _pairs(data[:, 16:80]), _halves(data, 80), _halves(data, 82),
        (small & 15).astype(np.int8), -(small >> 4).astype(np.int8),
    )  # fmt: skip


def _q3_k(data: Bytes) -> Blocks:
    high = (data[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    small = data[:, 96:108]
    low = np.concatenate([small[:, :8] & 15, small[:, :8] >> 4], axis=1)
    top = np.concatenate([(small[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    scales = (low | top << 4).astype(np.int8) - np.int8(32)
    return Blocks(_pairs(data[:, 32:96]) | high.reshape(len(data), 256) << 2, _halves(data, 108), None, scales)


def _pairs(data: Bytes) -> np.ndarray:
    """Returns codes of two bits: of every 32 bytes first the lowest two bits, last the highest."""
    parts = data.reshape(len(data), -1, 1, 32)
    return np.concatenate([(parts >> shift) & 3 for shift in (0, 2, 4, 6)], axis=2).reshape(len(data), -1)


def _in_half(array: np.ndarray | None) -> Bytes:
    assert array is not None
    return np.ascontiguousarray(array.astype("<f2")).reshape(-1, 1).view(np.uint8)


def _in_nibbles(codes: np.ndarray, rows: int) -> Bytes:
    parts = codes.astype(np.uint8).reshape(len(codes), -1, 2, rows) & 15
    return (parts[:, :, 0] | parts[:, :, 1] << 4).reshape(len(codes), -1)


def _fifth_bits(codes: np.ndarray) -> Bytes:
    return np.packbits(codes.astype(np.uint8) >> 4, axis=1, bitorder="little")


def _in_six_bits(scales: np.ndarray | None, offsets: np.ndarray | None) -> Bytes:
    assert scales is not None
    assert offsets is not None
    scales, offsets = scales.astype(np.uint8), (-offsets).astype(np.uint8)
    first = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    second = offsets[:, :4] | (offsets[:, 4:] >> 4) << 6
    return np.concatenate([first, second, (scales[:, 4:] & 15) | (offsets[:, 4:] & 15) << 4], axis=1)


_READ: dict[str, Callable[[Bytes], Blocks]] = {
    "q8_0": _q8_0, "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1, "q4_k": _q4_k, "q5_k": _q5_k,
    "q6_k": _q6_k, "q2_k": _q2_k, "q3_k": _q3_k,
}  # fmt: skip
_WRITE: dict[str, Callable[[Blocks], Bytes]] = {
    "q8_0": lambda b: np.concatenate([_in_half(b.scale), b.codes.view(np.uint8)], axis=1),
    "q4_0": lambda b: np.concatenate([_in_half(b.scale), _in_nibbles(b.codes, 16)], axis=1),
    "q4_1": lambda b: np.concatenate([_in_half(b.scale), _in_half(b.offset), _in_nibbles(b.codes, 16)], axis=1),
    "q5_0": lambda b: np.concatenate([_in_half(b.scale), _fifth_bits(b.codes), _in_nibbles(b.codes, 16)], axis=1),
    "q5_1": lambda b: np.concatenate(
        [_in_half(b.scale), _in_half(b.offset), _fifth_bits(b.codes), _in_nibbles(b.codes, 16)], axis=1
    ),
    "q4_k": lambda b: np.concatenate(
        [_in_half(b.scale), _in_half(b.offset), _in_six_bits(b.small_scale, b.small_offset), _in_nibbles(b.codes, 32)],
        axis=1,
    ),
}  # fmt: skip
