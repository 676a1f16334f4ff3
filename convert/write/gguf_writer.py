"""GGUF files in stable-diffusion.cpp's layout, written a tensor at a time.

Names are ldm's. A matrix is quantised, in blocks along its rows; a convolution's kernel, whose rows are three numbers,
is float16. What else there is keeps its type.
"""

import math
import pathlib
import struct
from collections.abc import Mapping

import numpy as np

from sdjax.config import ModelConfig
from sdjax.convert.containers.casting import Loss
from sdjax.convert.containers.gguf import ALIGNMENT, MAGIC, MAX_AXES, MAX_TEXT, PLAIN, TEXT
from sdjax.convert.containers.hashing import manifest_row
from sdjax.convert.containers.lazy import FLOATS, LazyTensor, is_floating
from sdjax.convert.errors import CheckpointError
from sdjax.convert.write.safetensors_writer import Manifest
from sdjax.nn.quantised.blocks import blocks_of, bytes_of_blocks
from sdjax.nn.quantised.kinds import Kind

VERSION = 3
GENERAL = "general."  # keys that describe the file; a model's own metadata has others
UNSIGNED = 4  # GGUF's number for 32 bits
FILE_TYPES = {"float32": 0, "float16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q4_k": 14}
_NUMBER_OF = {dtype: number for number, dtype in PLAIN.items()}


def write_gguf(
    path: pathlib.Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    config: ModelConfig,
    manifest: Manifest | None = None,
    losses: dict[str, Loss] | None = None,
) -> None:
    """Writes a GGUF file. `manifest` and `losses` are filled as by `write_safetensors`.

    Raises CheckpointError for a tensor of more axes or of another type than the format has.
    """
    stored = {name: _stored(name, tensor, path) for name, tensor in tensors.items()}
    kinds = [kind for tensor in stored.values() if (kind := _kind(tensor)) is not None]
    most = max(set(kinds), key=kinds.count).name if kinds else "float16"
    values: dict[str, str | int] = {
        f"{GENERAL}architecture": "sd1" if config.text.width == 768 else "sd2",
        f"{GENERAL}name": config.name,
        f"{GENERAL}file_type": FILE_TYPES[most],
        f"{GENERAL}quantization_version": 2,
        f"{GENERAL}alignment": ALIGNMENT,
    }
    values |= {key: value for key, value in metadata.items() if not key.startswith(GENERAL) and key != "format"}
    header = [MAGIC, struct.pack("<IQQ", VERSION, len(stored), len(values))]
    header += [_value(key, value, path) for key, value in values.items()]
    position = 0
    for name, tensor in stored.items():
        sizes, own = tensor.shape or (1,), _kind(tensor)
        number = _NUMBER_OF[tensor.dtype] if own is None else own.number
        header += [_text(name), struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *reversed(sizes), number, position)]
        position += -(-_nbytes(tensor) // ALIGNMENT) * ALIGNMENT
    head = b"".join(header)
    with open(path, "wb") as file:
        file.write(head + b"\0" * (-len(head) % ALIGNMENT))
        for name, tensor in stored.items():
            data = _bytes(tensor, {} if losses is None else losses)
            assert data.nbytes == _nbytes(tensor), name
            file.write(data.data)
            file.write(b"\0" * (-data.nbytes % ALIGNMENT))
            if manifest is not None:
                manifest[name] = manifest_row(data if _kind(tensor) else data.view(tensor.dtype).reshape(tensor.shape))
            tensor.release()


def _stored(name: str, tensor: LazyTensor, path: pathlib.Path) -> LazyTensor:
    """Returns a tensor as the file holds it."""
    if len(tensor.shape) > MAX_AXES:
        raise CheckpointError(f"{name} has {len(tensor.shape)} axes; a GGUF file's tensors have up to {MAX_AXES}", path)
    if tensor.packed is not None and _kind(tensor) is None and tensor.stored is None:
        return LazyTensor(tensor.shape, tensor.dtype, tensor.read, tensor.release, tensor.name).cast(FLOATS["float16"])
    if tensor.dtype in _NUMBER_OF:
        return tensor
    if not is_floating(tensor.dtype):
        raise CheckpointError(f"{name} is of type {tensor.dtype.name}, which GGUF files cannot hold", path)
    return tensor.cast(FLOATS["float16"])  # float8


def _kind(tensor: LazyTensor) -> Kind | None:
    """Returns the type of the blocks that a tensor is written in, None for numbers of a type."""
    packed = tensor.packed
    blocks = packed is not None and packed.read is not None and packed.kind.written and packed.kind.number is not None
    return packed.kind if packed is not None and blocks and len(tensor.shape) == 2 and tensor.stored is None else None


def _nbytes(tensor: LazyTensor) -> int:
    count, kind = math.prod(tensor.shape), _kind(tensor)
    return count * tensor.dtype.itemsize if kind is None else count // kind.block * kind.size


def _bytes(tensor: LazyTensor, losses: dict[str, Loss]) -> np.ndarray:
    """Returns a tensor's bytes in the file."""
    kind, packed = _kind(tensor), tensor.packed
    if kind is not None and packed is not None and packed.read is not None:
        return np.ascontiguousarray(bytes_of_blocks(kind, blocks_of(packed.read()))).reshape(-1)
    return np.ascontiguousarray(tensor.read_noting(losses)).reshape(-1).view(np.uint8)


def _value(key: str, value: str | int, path: pathlib.Path) -> bytes:
    if isinstance(value, int):
        return _text(key) + struct.pack("<II", UNSIGNED, value)
    if len(value.encode()) > MAX_TEXT:
        raise CheckpointError(
            f"its metadata has {key!r} of more than {MAX_TEXT} bytes, which sdjax does not read", path
        )
    return _text(key) + struct.pack("<I", TEXT) + _text(value)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
