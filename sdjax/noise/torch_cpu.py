"""The normal numbers of torch.randn on the CPU, from PyTorch's generator: MT19937 and Box-Muller's transform.

A call that makes 16 numbers or more works on blocks of 16; a smaller one makes pairs of numbers and keeps the second
for the next small call. So the numbers of two calls are not those of one call of both sizes.

Source: PyTorch's aten/src/ATen/native/cpu/DistributionTemplates.h (normal_fill) and core/DistributionsHelper.h.
"""

from collections.abc import Sequence

import ml_dtypes
import numpy as np

BLOCK = 16  # numbers that are made together: 8 cosines, then 8 sines
TYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class TorchCPU:
    """A torch.Generator on the CPU with this seed, of which only the low 32 bits count."""

    def __init__(self, seed: int) -> None:
        self._words = np.random.RandomState(seed & 0xFFFFFFFF)
        self._kept: float | None = None  # the second number of a pair, for the next small call

    def randn(self, shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
        """Returns the next unit normal numbers, of `dtype`: a name of TYPES.

        They are torch's but for the last bits of sine, cosine and logarithm.
        """
        count, kind = int(np.prod(shape, dtype=np.int64)), TYPES[dtype]
        values = self._large(count, kind) if count >= BLOCK else self._small(count).astype(kind)
        return values.reshape(tuple(shape))

    def _large(self, count: int, kind: np.dtype) -> np.ndarray:
        """Returns `count` numbers, 16 or more. The last 16 are made from 16 further words if blocks do not fit."""
        narrow = kind.itemsize == 2
        uniforms = self._uniforms(count // BLOCK * BLOCK if narrow else count, kind)
        blocks = _box_muller(uniforms[: count // BLOCK * BLOCK])
        if count % BLOCK == 0:
            return blocks
        values = np.concatenate([blocks, np.zeros(count % BLOCK, kind)])
        values[-BLOCK:] = _box_muller(self._uniforms(BLOCK, kind))
        return values

    def _small(self, count: int) -> np.ndarray:
        """Returns fewer than 16 numbers, float64, made in pairs."""
        values = []
        for _ in range(count):
            if self._kept is not None:
                values.append(self._kept)
                self._kept = None
                continue
            turn, size = self._uniforms(2, TYPES["float64"])
            radius = np.sqrt(-2 * np.log1p(-size))
            values.append(radius * np.cos(2 * np.pi * turn))
            self._kept = radius * np.sin(2 * np.pi * turn)
        return np.array(values, np.float64)

    def _uniforms(self, count: int, kind: np.dtype) -> np.ndarray:
        """Returns uniform numbers in [0, 1): of 53 random bits for float64, of 24 for the other types."""
        if kind != np.float64:
            words = self._words.randint(0, 2**32, count, dtype=np.uint32) & np.uint32(2**24 - 1)
            return (words.astype(np.float32) * np.float32(2**-24)).astype(kind)
        words = self._words.randint(0, 2**32, 2 * count, dtype=np.uint32).astype(np.uint64)
        return ((words[::2] << np.uint64(32) | words[1::2]) & np.uint64(2**53 - 1)) * 2.0**-53


def _box_muller(uniforms: np.ndarray) -> np.ndarray:
    """Returns normal numbers made of uniform ones, block by block: radius times cosine, then radius times sine."""
    kind = uniforms.dtype.type
    first, second = np.moveaxis(uniforms.reshape(-1, 2, BLOCK // 2), 1, 0)
    radius = np.sqrt(kind(-2) * np.log(kind(1) - first))
    angle = kind(2 * np.pi) * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
