"""A model's parameters as a file stores them, and safetensors files, written a tensor at a time."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdjax.convert.bundle import Bundle
from sdjax.convert.containers.budget import LIMITS
from sdjax.convert.containers.casting import Loss
from sdjax.convert.containers.hashing import manifest_row
from sdjax.convert.containers.lazy import ALIGNMENT, LazyTensor
from sdjax.convert.containers.safetensors_file import DTYPES
from sdjax.convert.containers.scaled import separated
from sdjax.convert.errors import CheckpointError
from sdjax.convert.names import naming, tables

Manifest = dict[str, dict[str, Any]]
MAX_HEADER = LIMITS["bytes of safetensors headers"] // 2  # a folder's files are read out of one allowance
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def tensors_of(model: Bundle, layout: naming.Layout) -> dict[str, LazyTensor]:
    """Returns the model's parameters as a file of the layout stores them."""
    stored = {}
    for entry in tables.entries(model.config, layout):
        stored[entry.name] = _joined(entry, [model.leaves[parameter.path] for parameter in entry.parameters])
    return stored


def _joined(entry: tables.Entry, leaves: list[LazyTensor]) -> LazyTensor:
    dtypes = {leaf.dtype for leaf in leaves}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.result_type(*(leaf.dtype for leaf in leaves))
    if any(leaf.stored is not None for leaf in leaves):  # joined first, so that what is cast can be compared
        return _joined(entry, [leaf.stored or leaf for leaf in leaves]).cast(dtype)

    def read() -> np.ndarray:
        return entry.join([leaf.read().astype(dtype, copy=False) for leaf in leaves])

    def release() -> None:
        for leaf in leaves:
            leaf.release()

    names = dict.fromkeys(leaf.name for leaf in leaves)
    return LazyTensor(entry.shape, dtype, read, release, " and ".join(names), packed=entry.join_packed(leaves))


def write_safetensors(
    path: pathlib.Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    manifest: Manifest | None = None,
    prefix: str = "",
    losses: dict[str, Loss] | None = None,
    aligned: bool = True,
) -> None:
    """Writes a safetensors file, a tensor at a time, and fills the manifest, if any, with `prefix` before each name.

    `losses` is filled with the tensors whose numbers their type cannot hold.

    By hand, because the library takes all tensors in memory at once. Larger types come first as in its files, and among
    them those of whole 64 bytes, so that JAX can use most tensors where they lie in the memory map. If not `aligned`,
    the tensors are in the library's order, in which other tools hash them.
    """
    tensors = {name: part for own, leaf in tensors.items() for name, part in separated(own, leaf).items()}
    sizes = {name: leaf.dtype.itemsize * math.prod(leaf.shape) for name, leaf in tensors.items()}
    order = sorted(
        tensors, key=lambda name: (-tensors[name].dtype.itemsize, aligned and sizes[name] % ALIGNMENT > 0, name)
    )
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name in order:
        leaf = tensors[name]
        if leaf.dtype not in _NAMES:
            raise CheckpointError(f"{name} is of type {leaf.dtype.name}, which safetensors files cannot hold", path)
        end = position + sizes[name]
        header[name] = {"dtype": _NAMES[leaf.dtype], "shape": list(leaf.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) > MAX_HEADER:
        raise CheckpointError(
            f"its tensors' names and its metadata take {len(text)} bytes, more than the {MAX_HEADER} that sdjax reads "
            "of a file: write the model as a folder, where licence, model card and tokenizer are files",
            path,
        )
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            leaf = tensors[name]
            array = np.ascontiguousarray(leaf.read_noting({} if losses is None else losses)).reshape(leaf.shape)
            assert array.dtype == leaf.dtype, name
            file.write(array.reshape(-1).view(np.uint8).data)
            if manifest is not None:
                manifest[prefix + name] = manifest_row(array)
            leaf.release()
