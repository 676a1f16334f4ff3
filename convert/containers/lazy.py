"""Tensors that are read when they are needed, and cast then."""

import dataclasses
from collections.abc import Callable

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from sdjax.checks.arguments import dtype_name
from sdjax.convert.containers.casting import Loss, cast, loss

FLOATS = {
    "float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16),
}  # fmt: skip
ALIGNMENT = 64  # bytes; XLA's on CPUs


def _nothing() -> None:
    pass


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor of known shape and type whose numbers are read when they are needed.

    `release` gives the memory of the file's pages back. `name` is the tensor's name in its file. `stored` is the tensor
    that this one was cast from, None if it was not cast.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    release: Callable[[], None] = _nothing
    name: str = ""
    stored: "LazyTensor | None" = None

    def cast(self, dtype: np.dtype | None) -> "LazyTensor":
        """Returns the tensor in another floating-point type; itself if it holds no floating-point numbers."""
        if dtype is None or dtype == self.dtype or not is_floating(self.dtype):
            return self
        stored = self.stored or self
        if dtype == stored.dtype:
            return stored
        return LazyTensor(self.shape, dtype, lambda: cast(stored.read(), dtype), self.release, self.name, stored)

    def read_noting(self, losses: dict[str, Loss]) -> np.ndarray:
        """Returns the array. If its type cannot hold the numbers, notes under the tensor's name what was lost."""
        if self.stored is None:
            return self.read()
        wide = self.stored.read()
        narrow = cast(wide, self.dtype)
        if lost := loss(wide, narrow):
            losses.setdefault(self.name, lost)
        return narrow


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """Returns a row-major, read-only copy at an address that JAX's CPU backend takes over without copying it again."""
    buffer = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    copy.flags.writeable = False
    return copy


def is_floating(dtype: np.dtype) -> bool:
    """Returns whether a type is one of numpy's or ml_dtypes' floating-point types."""
    return np.issubdtype(dtype, np.floating) or dtype.name.startswith(("bfloat", "float"))


def float_type(dtype: DTypeLike | None) -> np.dtype | None:
    """Returns the type of that name, None for None. Raises ValueError for any but those in FLOATS."""
    return None if dtype is None else FLOATS[dtype_name(dtype)]
