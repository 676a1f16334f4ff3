"""The normal numbers of torch.randn on an NVIDIA GPU, from Philox4x32-10 and Box-Muller's transform.

They are the numbers that AUTOMATIC1111's "NV" computes on the CPU: one number of each four random words.

Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3; CUDA's curand_kernel.h (_curand_box_muller).
"""

from collections.abc import Sequence

import numpy as np

MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
WEYL = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
ROUNDS = 10
LOW = np.uint64(0xFFFFFFFF)
TURN = float(np.float32(2 * np.pi))  # CUDA's constant is a float


class TorchCUDA:
    """A generator with this 64-bit seed. Every call has a number, counted from 0, whatever its size."""

    def __init__(self, seed: int) -> None:
        self._seed, self._calls = seed, 0

    def randn(self, shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
        """Returns the next unit normal numbers. Other types than float32 are rounded from it."""
        count = int(np.prod(shape, dtype=np.int64))
        words = philox(self._seed, self._calls, count)
        self._calls += 1
        size, turn = (words[:2].astype(np.float64) + 0.5) * 2.0**-32
        values = (np.sqrt(-2 * np.log(size)) * np.sin(TURN * turn)).astype(np.float32)
        return values.astype(dtype).reshape(tuple(shape))


def philox(seed: int, call: int, count: int) -> np.ndarray:
    """Returns Philox4x32-10 of the counters (call, 0, i, 0) for i below `count`, with the seed as key: uint64 [4, n].

    Each entry is a word of 32 bits.
    """
    key = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], np.uint64)
    element, zero = np.arange(count, dtype=np.uint64), np.zeros(count, np.uint64)
    c0, c1, c2, c3 = np.full(count, call, np.uint64), zero, element, zero
    for _ in range(ROUNDS):
        first, second = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1 = second >> np.uint64(32) ^ c1 ^ key[0], second & LOW
        c2, c3 = first >> np.uint64(32) ^ c3 ^ key[1], first & LOW
        key = key + WEYL & LOW
    return np.stack([c0, c1, c2, c3])
