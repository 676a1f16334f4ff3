"""Tensors that are read and cast only when they are used."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from sdjax.checks.arguments import dtype_name
from sdjax.convert.containers.casting import Loss, cast, loss
from sdjax.nn.quantised.kinds import Kind
from sdjax.nn.quantised.leaf import Quantised

FLOATS = {
    "float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16),
}  # fmt: skip
ALIGNMENT = 64  # bytes; XLA's on CPUs


def nothing() -> None:
    """Releases nothing."""


@dataclasses.dataclass(frozen=True)
class Packed:
    """The quantised form of a tensor: its type, and what reads it as a leaf in Flax's layout, if it is a kernel."""

    kind: Kind
    read: Callable[[], Quantised] | None = None


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor of known shape and type whose numbers are read when they are needed.

    `release` gives the memory of the file's pages back. `name` is the tensor's name in its file. `stored` is the tensor
    that this one was cast from, None if it was not cast. `packed` is set for a quantised tensor, whose weights `read`
    returns.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    release: Callable[[], None] = nothing
    name: str = ""
    stored: "LazyTensor | None" = None
    packed: Packed | None = None

    @property
    def nbytes(self) -> int:
        """The bytes that it takes where it is stored; small scales of an output are not counted."""
        count = math.prod(self.shape)
        return count * self.dtype.itemsize if self.packed is None else int(count * self.packed.kind.bits_a_weight) // 8

    @property
    def type_name(self) -> str:
        """The name of the type that it is stored in, "q8_0" for example."""
        return self.dtype.name if self.packed is None else self.packed.kind.name

    def cast(self, dtype: np.dtype | None) -> "LazyTensor":
        """Returns the tensor in another floating-point type; itself if it holds no floating-point numbers."""
        if dtype is None or dtype == self.dtype or not is_floating(self.dtype):
            return self
        stored = self.stored or self
        if dtype == stored.dtype:
            return stored
        return LazyTensor(
            self.shape, dtype, lambda: cast(stored.read(), dtype), self.release, self.name, stored, self.packed
        )

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


def read_tree(
    leaves: Mapping[str, LazyTensor], losses: dict[str, Loss], *, views: bool = False, quantised: bool = False
) -> dict[str, Any]:
    """Returns tensors by path, "conv_in/kernel" for example, as Flax's nested tree, read one at a time.

    `losses` is filled with the tensors whose numbers their type cannot hold. `views` leaves arrays where they lie in a
    memory map, else they are copied and the map's pages given back. `quantised` leaves quantised kernels as they are.
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *modules, name = path.split("/")
        place = functools.reduce(lambda node, module: node.setdefault(module, {}), modules, tree)
        if quantised and leaf.packed is not None and leaf.packed.read is not None:
            place[name] = leaf.packed.read().replace(dtype_name=leaf.dtype.name)
            leaf.release()
            continue
        array = leaf.read_noting(losses)
        if not views:
            array = aligned_copy(array)
            leaf.release()
        place[name] = array
    return tree


def same(one: LazyTensor, other: LazyTensor) -> bool:
    """Returns whether two tensors have the same type, shape and bytes."""
    equal = one.dtype == other.dtype and one.shape == other.shape and same_bytes(one.read(), other.read())
    one.release()
    other.release()
    return equal


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether two arrays of one shape and type hold the same bytes."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8))


def is_floating(dtype: np.dtype) -> bool:
    """Returns whether a type is one of numpy's or ml_dtypes' floating-point types."""
    return np.issubdtype(dtype, np.floating) or dtype.name.startswith(("bfloat", "float"))


def is_finite(array: np.ndarray) -> bool:
    """Returns whether all numbers of an array of any floating-point type are finite."""
    return bool(np.isfinite(array.astype(np.float32)).all())


def float_type(dtype: DTypeLike | None) -> np.dtype | None:
    """Returns the type of that name, None for None. Raises ValueError for any but those in FLOATS."""
    return None if dtype is None else FLOATS[dtype_name(dtype)]
