"""Tensors stored in a file, and the mapping from names to arrays that every reader returns."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, Self

import numpy as np

from sdjax.convert.containers.lazy import LazyTensor, Packed
from sdjax.convert.containers.mapped import MappedFile
from sdjax.convert.errors import CheckpointError, shown
from sdjax.nn.quantised.blocks import blocks_of_bytes, leaf_of
from sdjax.nn.quantised.kinds import KINDS, Kind
from sdjax.nn.quantised.leaf import Quantised

MAX_TENSORS = 10_000  # a released training checkpoint with its optimizer holds some 3,500
MAX_RANK = 16
MAX_NAME = 500
MAX_COUNT = 2**47  # elements of one tensor, empty axes counted as 1


class Storage(Protocol):
    """A run of bytes in a file that one or more tensors use."""

    def view(self) -> memoryview:
        """Returns the bytes, not copied, once they were checked. Raises CheckpointError where they are damaged."""

    def release(self) -> None:
        """Gives the memory that the bytes take in this process back, as far as the system can."""


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A storage that is nothing but its place in a file."""

    file: MappedFile
    start: int
    stop: int

    def view(self) -> memoryview:
        return self.file.view(self.start, self.stop)

    def release(self) -> None:
        self.file.release(self.start, self.stop)


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that has not been read: which elements of a storage it consists of."""

    storage: Storage
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int = 0  # elements
    strides: tuple[int, ...] | None = None  # elements; None: row-major without gaps

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self) -> np.ndarray:
        """Returns the tensor as a read-only view of the memory-mapped file; a copy where it lies unaligned in it."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        size = self.dtype.itemsize
        strides = None if self.strides is None else tuple(stride * size for stride in self.strides)
        # frombuffer's array holds on to the buffer; ndarray(buffer=) alone would let the map be closed under it.
        flat = np.frombuffer(self.storage.view(), np.uint8)
        array = np.ndarray(self.shape, self.dtype, flat, self.offset * size, strides)
        return array if array.flags.aligned else array.copy()


@dataclasses.dataclass(frozen=True, slots=True)
class StoredBlocks(StoredTensor):
    """A tensor of quantised weights, in blocks along its last axis in the file, that is read as float32.

    `flat` is the shape in the file, which tools change where a tensor's own does not divide into blocks.
    """

    kind: Kind = KINDS["q8_0"]
    flat: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.kind.block * self.kind.size

    def array(self) -> np.ndarray:
        """Returns the weights in float32."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        array = np.swapaxes(self._leaf(self.flat if len(self.flat) > 1 else (1, *self.flat)).whole(), -1, -2)
        return np.ascontiguousarray(array).reshape(self.shape)

    def leaf(self) -> Quantised:
        """Returns the weights [d, c] as a leaf [c, d]."""
        return self._leaf(self.shape)

    def _leaf(self, rows: tuple[int, ...]) -> Quantised:
        data = np.frombuffer(self.storage.view(), np.uint8).reshape(-1, self.kind.size)
        return leaf_of(self.kind, blocks_of_bytes(self.kind, data), rows, "float32")


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of a checkpoint by name, each read when it is asked for, as a view of the memory-mapped file.

    bfloat16 and the float8 kinds are ml_dtypes'. `shapes` and `dtypes` tell what is there without touching any data.
    """

    path: pathlib.Path
    format: str  # "ckpt-zip", "ckpt-legacy", "safetensors", "gguf", "diffusers" or "diffusers-component"
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]  # a safetensors header's __metadata__; numbers and text beside a pickle's tensors
    configs: dict[str, dict[str, Any]]  # a folder's JSON configurations by path below it, such as "unet/config.json"

    def __init__(
        self,
        path: str | os.PathLike[str],
        format: str,
        tensors: dict[str, StoredTensor],
        metadata: dict[str, str],
        *,
        files: Iterable["MappedFile | TensorFile"],
        configs: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.path = pathlib.Path(path)
        self.format = format
        self.tensors = tensors
        self.metadata = metadata
        self.configs = configs or {}
        self._files = tuple(files)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        return {name: tensor.dtype for name, tensor in self.tensors.items()}

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors, those that share a storage counted each."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def __getitem__(self, name: str) -> np.ndarray:
        """Returns the tensor `name`. Raises CheckpointError where its data are damaged."""
        return self.tensors[name].array()

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def lazy(self) -> Iterator[LazyTensor]:
        """Yields the tensors, each with its name, read when needed."""
        for name, tensor in self.tensors.items():
            packed = None
            if isinstance(tensor, StoredBlocks):
                matrix = len(tensor.shape) == 2 and tensor.flat == tensor.shape
                packed = Packed(tensor.kind, tensor.leaf if matrix else None)
            yield LazyTensor(tensor.shape, tensor.dtype, tensor.array, tensor.storage.release, name, packed=packed)

    def __repr__(self) -> str:
        return f"<TensorFile {self.path} ({self.format}): {len(self)} tensors, {self.nbytes / 2**20:,.1f} MiB>"

    def release(self, name: str) -> None:
        """Gives the memory that the file's pages of `name` take in this process back to the system.

        A loader that has copied a tensor calls this to hold the model once and not twice. Arrays taken before stay
        valid: looked at again, they are read from the file again.
        """
        self.tensors[name].storage.release()

    def close(self) -> None:
        """Lets go of the files; arrays that were taken stay valid, asking for another raises CheckpointError."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_name(name: object, file: MappedFile) -> str:
    """Returns `name` if it may name a tensor. Raises CheckpointError for anything but short printable text."""
    if type(name) is not str or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise file.error(f"{shown(name)} names a tensor; names are 1 to {MAX_NAME} printable characters")
    return name


def check_shape(shape: object, name: str, file: MappedFile) -> tuple[int, ...]:
    """Returns `shape` if it is a tuple of few, not absurdly large integers. Raises CheckpointError."""
    if type(shape) is not tuple or len(shape) > MAX_RANK or any(type(n) is not int or n < 0 for n in shape):
        raise file.error(f"tensor {shown(name)} has no shape of at most {MAX_RANK} whole numbers")
    count = 1
    for n in shape:
        count *= max(n, 1)
        if count > MAX_COUNT:
            raise file.error(f"tensor {shown(name)} says it has more than {MAX_COUNT} elements; no model's tensor has")
    return shape


def check_total(tensors: Mapping[str, StoredTensor], file: MappedFile) -> None:
    """Raises CheckpointError where tensors are too many, or share storages so that together they dwarf their file."""
    if len(tensors) > MAX_TENSORS:
        raise file.error(f"it holds more than {MAX_TENSORS} tensors; a Stable Diffusion checkpoint has some thousand")
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > 8 * file.size + 2**25:
        raise file.error(f"its tensors would take {total} bytes out of a file of {file.size}: they share their data")


__all__ = [
    "MAX_TENSORS",
    "CheckpointError",
    "Span",
    "Storage",
    "StoredBlocks",
    "StoredTensor",
    "TensorFile",
    "check_name",
    "check_shape",
    "check_total",
]
