"""Parameters that are read when they are needed, and refusing a file that does not hold them all."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from sdjax.checks.arguments import dtype_name
from sdjax.convert.containers.casting import Loss, cast, loss
from sdjax.convert.errors import listed, shown
from sdjax.convert.names import tables
from sdjax.convert.names.matching import Match
from sdjax.convert.sources import Source

DTYPES = {
    "float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16),
}  # fmt: skip
ALIGNMENT = 64  # bytes; XLA's on CPUs


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A tensor that is read when it is needed: in what layout is up to who keeps it.

    `name` is the one that its file has for it. `stored` is the leaf that this one was cast from, None if it was not.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    release: Callable[[], None] = lambda: None
    name: str = ""
    stored: "Leaf | None" = None

    def cast(self, dtype: np.dtype | None) -> "Leaf":
        """Returns the leaf in another floating-point type; itself if it holds no floating-point numbers."""
        if dtype is None or dtype == self.dtype or not is_floating(self.dtype):
            return self
        stored = self.stored or self
        if dtype == stored.dtype:
            return stored
        return Leaf(self.shape, dtype, lambda: cast(stored.read(), dtype), self.release, self.name, stored)

    def read_noting(self, losses: dict[str, Loss]) -> np.ndarray:
        """Returns the array, and notes under the leaf's name what was lost if its type does not hold the numbers."""
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


def float_type(dtype: Any) -> np.dtype | None:
    """Returns the type of that name, None for None. Raises ValueError for any but those in DTYPES."""
    return None if dtype is None else DTYPES[dtype_name(dtype)]


_WITHOUT = {
    "unet": "it has no UNet, which makes it no model",
    "vae": "it has no autoencoder; give one by vae= (--vae on the command line)",
    "text": "it has no text encoder, which must come from the whole checkpoint",
}


def refuse(source: Source, found: Match, config_origin: str) -> None:
    """Raises CheckpointError, naming every difference, unless the file holds all that `config_origin` describes."""
    problems = [_WITHOUT[part] for part in found.missing_parts] + list(found.problems)
    if problems:
        count = len(problems)
        raise source.error(
            f"it does not hold the model that {config_origin} describes, with {count} difference{'s'[: count > 1]}: "
            f"{listed(problems)}"
        )


def matched_leaves(source: Source, found: Match, kind: np.dtype | None) -> dict[str, Leaf]:
    """Returns the parameters by path. Raises CheckpointError where one is no floating-point tensor."""
    tensors, dtypes, leaves = source.tensors, source.tensors.dtypes, {}
    for entry, name in found.names.items():
        dtype = dtypes[name]
        if not is_floating(dtype):
            raise source.error(
                f"{shown(name)} holds {dtype.name} numbers; a parameter is a floating-point tensor "
                "(of a quantised model, name the one in float32, float16 or bfloat16)"
            )
        for index, parameter in enumerate(entry.parameters):

            def read(entry: tables.Entry = entry, name: str = name, index: int = index) -> np.ndarray:
                return entry.split(tensors[name])[index]

            last = index == len(entry.parameters) - 1
            release = functools.partial(tensors.release, name) if last else lambda: None
            leaves[parameter.path] = Leaf(parameter.shape, dtype, read, release, source.spelled(name)).cast(kind)
    return dict(sorted(leaves.items()))
