"""GGUF files: a bounded reader of their header, which is held to the file before any tensor is looked at.

    magic "GGUF", version, numbers of tensors and of values
    for each value: key, type, and the value or an array of one type
    for each tensor: name, sizes of its axes with the last one first, type, place in the data
    padding to the alignment, then the data

Everything is little-endian. Values that are text, numbers or true and false become metadata; arrays are passed over,
but for shapes that ComfyUI-GGUF keeps of reshaped tensors. Source: ggml's gguf.h, and its docs/gguf.md.
"""

import math
import struct

import ml_dtypes
import numpy as np

from sdjax.convert.containers.budget import Budget
from sdjax.convert.containers.mapped import MappedFile
from sdjax.convert.containers.stored import (
    MAX_TENSORS,
    Span,
    StoredBlocks,
    StoredTensor,
    TensorFile,
    check_name,
    check_shape,
)
from sdjax.convert.errors import CheckpointError, shown
from sdjax.nn.quantised.kinds import OF_NUMBER

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # of 3 only the little-endian ones
ALIGNMENT = 32  # bytes, unless the file says another one
MAX_ALIGNMENT = 2**16
MAX_AXES = 4
MAX_KEY = 500
MAX_VALUES = 10_000
MAX_TEXT = 4 * 2**20  # bytes of a value that is text: a tokenizer has 2 MB
SHAPES = "comfy.gguf.orig_shape."  # and a tensor's name: its shape before a tool reshaped it

TEXT, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
PLAIN: dict[int, np.dtype] = {
    number: np.dtype(dtype)
    for number, dtype in {
        0: "<f4", 1: "<f2", 24: "i1", 25: "<i2", 26: "<i4", 27: "<i8", 28: "<f8", 30: ml_dtypes.bfloat16,
    }.items()
}  # fmt: skip


def read_gguf(file: MappedFile, budget: Budget) -> TensorFile:
    """Returns the tensors of a GGUF file, in the axes' order of PyTorch. Quantised ones are read as float32.

    Raises CheckpointError where the header is malformed, too long, or contradicts itself or the file.
    """
    header = _Header(file, budget)
    metadata, shapes = header.values()
    tensors, spans = _tensors(header, shapes, metadata)
    position = 0
    for start, stop, name in sorted(spans):
        if start < position:
            raise file.error(f"tensor {shown(name)} overlaps the tensor before it")
        position = stop
    return TensorFile(file.path, "gguf", tensors, metadata, files=[file])


def _tensors(
    header: "_Header", shapes: dict[str, tuple[int, ...]], metadata: dict[str, str]
) -> tuple[dict[str, StoredTensor], list[tuple[int, int, str]]]:
    """Returns the tensors by name, and the first byte, the byte after the last, and the name of each."""
    file = header.file
    entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(header.tensors):
        name, flat, number, offset = header.tensor()
        if name in entries:
            raise file.error(f"its header names {shown(name)} twice")
        entries[name] = flat, number, offset
    alignment = _alignment(metadata, file)
    data = -(-header.position // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    spans = []
    for name, (flat, number, offset) in entries.items():
        check_shape(flat, name, file)
        kind = OF_NUMBER.get(number)
        if kind is None and number not in PLAIN:
            known = ", ".join(["f32", "f16", "bf16", *(kind.name for kind in OF_NUMBER.values())])
            raise file.error(f"tensor {shown(name)} is of ggml's type {number}; known are {known}")
        count = math.prod(flat)
        if kind is not None and flat[-1] % kind.block:
            raise file.error(
                f"tensor {shown(name)} has rows of {flat[-1]}, which blocks of {kind.block} ({kind.name}) do not divide"
            )
        size = count * PLAIN[number].itemsize if kind is None else count // kind.block * kind.size
        start = data + offset
        if offset % alignment or start + size > file.size:
            reason = "is not aligned" if offset % alignment else f"would end at byte {start + size} of {file.size}"
            raise file.error(f"tensor {shown(name)} {reason}: the file is damaged or was cut short")
        shape = shapes.get(name, flat)
        if math.prod(check_shape(shape, name, file)) != count:
            raise file.error(f"tensor {shown(name)} has {count} elements, and its shape before it was changed others")
        span = Span(file, start, start + size)
        if kind is None:
            tensors[name] = StoredTensor(span, PLAIN[number], shape)
        else:
            tensors[name] = StoredBlocks(span, np.dtype(np.float32), shape, kind=kind, flat=flat)
        spans.append((start, start + size, name))
    return tensors, spans


def _alignment(metadata: dict[str, str], file: MappedFile) -> int:
    said = metadata.get("general.alignment", str(ALIGNMENT))
    alignment = int(said) if said.isdecimal() else 0
    if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise file.error(f"its alignment is a power of two up to {MAX_ALIGNMENT}; got {shown(said)}")
    return alignment


class _Header:
    """Reads a header from its beginning to its end. Every count and length is checked before it is used."""

    def __init__(self, file: MappedFile, budget: Budget) -> None:
        self.file, self.budget, self.position = file, budget, len(MAGIC)
        version = self.number("I")
        if version not in VERSIONS:
            raise file.error(f"it is of GGUF's version {version}, or big-endian; known are 2 and 3, little-endian")
        self.tensors, self.count = self.number("Q"), self.number("Q")
        if not 0 < self.tensors <= MAX_TENSORS or self.count > MAX_VALUES:
            raise file.error(
                f"it says it has {self.tensors} tensors and {self.count} values; a model has up to {MAX_TENSORS} "
                f"tensors, and up to {MAX_VALUES} values"
            )
        budget.spend("tensors", self.tensors, file.path)

    def values(self) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
        """Returns the values by key, as text, and the shapes of tensors that were reshaped."""
        metadata: dict[str, str] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for _ in range(self.count):
            key = self.text(MAX_KEY, "a key")
            if key in metadata:
                raise self.error(f"its header has {shown(key)} twice")
            kind = self.number("I")
            if kind == ARRAY:
                numbers = self.array(key)
                if key.startswith(SHAPES):
                    shapes[key.removeprefix(SHAPES)] = numbers
            elif kind == TEXT:
                metadata[key] = self.text(MAX_TEXT, f"the value of {shown(key)}")
            else:
                value = self.number(self.format_of(kind, key))
                metadata[key] = str(value).lower() if isinstance(value, bool) else str(value)
        return metadata, shapes

    def array(self, key: str) -> tuple[int, ...]:
        """Passes over an array; returns its numbers if it is short and holds whole ones."""
        kind, count = self.number("I"), self.number("Q")
        if kind == ARRAY:
            raise self.error(f"the value of {shown(key)} is an array of arrays, which no model has")
        if kind == TEXT:
            self.budget.spend("values of GGUF headers", count, self.file.path)
            for _ in range(count):
                self.skip(self.number("Q"))
            return ()
        form = self.format_of(kind, key)
        start = self.position
        self.skip(count * struct.calcsize("<" + form))
        whole = count <= MAX_AXES + 1 and form in "BbHhIiQq"
        return struct.unpack(f"<{count}{form}", self.file.bytes(start, self.position)) if whole else ()

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Returns a tensor's name, its shape with the rows' length last, its type's number, and its place."""
        name = check_name(self.text(MAX_KEY, "a tensor's name"), self.file)
        axes = self.number("I")
        if not 0 <= axes <= MAX_AXES:
            raise self.error(f"tensor {shown(name)} has {axes} axes; ggml's tensors have up to {MAX_AXES}")
        sizes = [self.number("Q") for _ in range(axes)]
        return name, tuple(reversed(sizes)) or (1,), self.number("I"), self.number("Q")

    def number(self, form: str) -> int:
        """Returns the next number, of this format of `struct`."""
        start = self.position
        self.skip(struct.calcsize("<" + form))
        return struct.unpack("<" + form, self.file.bytes(start, self.position))[0]

    def text(self, most: int, what: str) -> str:
        length = self.number("Q")
        if length > most:
            raise self.error(f"{what} says it has {length} bytes; it may have up to {most}")
        start = self.position
        self.skip(length)
        try:
            return self.file.bytes(start, self.position).decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not text in UTF-8") from error

    def skip(self, length: int) -> None:
        """Passes over bytes. Raises CheckpointError if the file has fewer, or more than a header may have."""
        if self.position + length > self.file.size:
            raise self.error("the file ends there: it was cut short")
        self.budget.spend("bytes of GGUF headers", length, self.file.path)
        self.position += length

    def format_of(self, kind: int, key: str) -> str:
        if kind not in NUMBERS:
            raise self.error(f"the value of {shown(key)} is of the unknown type {kind}")
        return NUMBERS[kind]

    def error(self, reason: str) -> CheckpointError:
        return self.file.error(f"its header is refused at byte {self.position}: {reason}")
