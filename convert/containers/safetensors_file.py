"""safetensors files: a bounded reader of the header that holds the file to what the format promises.

The safetensors library reads the header as well, and both must agree on every name, dtype and shape. Ours comes first,
because the library takes headers of 100 MB and keeps the last of two tensors of one name; the arrays are views of our
memory map, because the library's are copies. Source of the rules: the format's section of the safetensors README.
"""

import json
import re
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import safetensors

from sdjax.convert.containers.budget import Budget
from sdjax.convert.containers.mapped import MappedFile
from sdjax.convert.containers.stored import (
    MAX_RANK,
    MAX_TENSORS,
    Span,
    StoredTensor,
    TensorFile,
    check_name,
    check_shape,
)
from sdjax.convert.errors import CheckpointError, shown

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BOOL": "?",
        "U8": "u1",
        "I8": "i1",
        "U16": "<u2",
        "I16": "<i2",
        "U32": "<u4",
        "I32": "<i4",
        "U64": "<u8",
        "I64": "<i8",
        "F16": "<f2",
        "F32": "<f4",
        "F64": "<f8",
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    }.items()
}


def read_safetensors(file: MappedFile, budget: Budget) -> TensorFile:
    """Returns the tensors of a safetensors file, which must name no tensor twice and leave no byte unnamed.

    Raises:
        CheckpointError: where the header is malformed, too long, or contradicts itself, the file or the library.
    """
    length = int.from_bytes(file.bytes(0, 8), "little")
    if 8 + length > file.size:
        raise file.error(f"its header would end at byte {8 + length} of {file.size}: the file was cut short")
    budget.spend("bytes of safetensors headers", length, file.path)
    entries, metadata = _Header(file.bytes(8, 8 + length), file).parse()
    tensors: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, (kind, shape, start, stop) in entries.items():
        check_name(name, file)
        check_shape(shape, name, file)
        if kind not in DTYPES:
            raise file.error(f"tensor {shown(name)} is of type {shown(kind)}; known are {', '.join(DTYPES)}")
        tensor = StoredTensor(Span(file, 8 + length + start, 8 + length + stop), DTYPES[kind], shape)
        if stop - start != tensor.nbytes:
            raise file.error(f"tensor {shown(name)} has {stop - start} bytes where its shape takes {tensor.nbytes}")
        tensors[name] = tensor
        spans.append((start, stop, name))
    budget.spend("tensors", len(tensors), file.path)
    position = 0
    for start, stop, name in sorted(spans):
        if start != position:
            what = "overlaps the tensor before it" if start < position else "leaves a hole before it"
            raise file.error(f"tensor {shown(name)} {what}")
        position = stop
    if 8 + length + position != file.size:
        raise file.error(
            f"its tensors end at byte {8 + length + position}, the file at {file.size}: it was cut short or added to"
        )
    if not tensors:
        raise file.error("it holds no tensors")
    _ask_library(file, {name: (kind, shape) for name, (kind, shape, _, _) in entries.items()}, metadata)
    return TensorFile(file.path, "safetensors", tensors, metadata, files=[file])


def _ask_library(file: MappedFile, entries: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> None:
    """Raises CheckpointError unless the safetensors library finds the same in the header as we did."""
    try:
        with safetensors.safe_open(file.path, framework="numpy") as other:
            theirs = {}
            for name in other.keys():  # noqa: SIM118  its handle is no mapping
                tensor = other.get_slice(name)
                theirs[name] = (str(tensor.get_dtype()), tuple(tensor.get_shape()))
            notes = other.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise file.error(f"the safetensors library refuses it ({shown(str(error))})") from error
    if theirs != entries or notes != metadata:
        raise file.error("its header says one thing to us and another to the safetensors library")


Entry = tuple[str, tuple[int, ...], int, int]  # dtype as spelled, shape, first byte, byte after the last

_SPACE = rb"[ \t\r\n]*+"
_STRING = rb'"(?>[^"\\\x00-\x1f]++|\\.)*+"'
_NUMBER = rb"(?:0|[1-9][0-9]{0,18})"
_MORE = rb"(?:," + _SPACE + _NUMBER + _SPACE + rb"){0,%d}" % (MAX_RANK - 1)
_NUMBERS = rb"\[" + _SPACE + rb"(?:" + _NUMBER + _SPACE + _MORE + rb")?\]"


class _Header:
    """A parser of just the JSON that a header may be: each character is looked at once, and nothing nests.

    Python's own parser makes up to 25 bytes of one; a header may be four times as long as a configuration.
    """

    TOKEN = re.compile(
        _SPACE + rb"(?:(" + _STRING + rb")|(" + _NUMBERS + rb")|([{}:,]))" + _SPACE,
        re.DOTALL,
    )
    STRING, NUMBERS, MARK = 1, 2, 3  # the groups

    def __init__(self, data: bytes, file: MappedFile) -> None:
        self.data = data
        self.file = file
        self.position = 0

    def parse(self) -> tuple[dict[str, Entry], dict[str, str]]:
        """Returns the tensors' entries, and the metadata."""
        if self.data[:1] != b"{":
            raise self.error("it does not begin with a brace")
        entries: dict[str, Entry] = {}
        metadata: dict[str, str] | None = None
        for name in self.keys("header", MAX_TENSORS + 1):
            if name == "__metadata__":
                metadata = {key: self.text(self.token(self.STRING)) for key in self.keys("metadata", MAX_TENSORS)}
            else:
                entries[name] = self.entry(name)
        if self.position != len(self.data):
            raise self.error("something follows its last brace")
        return entries, metadata or {}

    def entry(self, name: str) -> Entry:
        kind: str | None = None
        lists: dict[str, tuple[int, ...]] = {}
        for key in self.keys("tensor", 3):
            if key == "dtype":
                kind = self.text(self.token(self.STRING))
            elif key in ("shape", "data_offsets"):
                lists[key] = tuple(json.loads(self.token(self.NUMBERS)))
            else:
                raise self.error(f"tensor {shown(name)} has the unknown field {shown(key)}")
        if kind is None or "shape" not in lists or len(lists.get("data_offsets", ())) != 2:
            raise self.error(f"tensor {shown(name)} lacks its dtype, shape or two offsets")
        start, stop = lists["data_offsets"]
        if start > stop:
            raise self.error(f"tensor {shown(name)} ends before it starts")
        return kind, lists["shape"], start, stop

    def keys(self, what: str, limit: int) -> Iterator[str]:
        """Yields the keys of an object; the caller reads each key's value before it asks for the next."""
        self.expect(b"{")
        seen: set[str] = set()
        token = self.token(self.STRING, self.MARK)
        if token == b"}":
            return
        while True:
            key = self.text(token)
            if key in seen:
                raise self.error(f"its {what} names {shown(key)} twice")
            seen.add(key)
            if len(seen) > limit:
                raise self.error(f"its {what} has more than {limit} entries")
            self.expect(b":")
            yield key
            mark = self.token(self.MARK)
            if mark == b"}":
                return
            if mark != b",":
                raise self.error("a comma or a closing brace is missing")
            token = self.token(self.STRING)

    def expect(self, mark: bytes) -> None:
        if self.token(self.MARK) != mark:
            raise self.error(f"{mark.decode()!r} is missing")

    def token(self, *kinds: int) -> bytes:
        """Returns the next token, which must be of one of these kinds."""
        match = self.TOKEN.match(self.data, self.position)
        if match is None or match.lastindex not in kinds:
            raise self.error("it does not have the form of a safetensors header")
        self.position = match.end()
        return match[match.lastindex]

    def text(self, token: bytes) -> str:
        """Returns the string that a token spells."""
        try:
            if b"\\" not in token and token[:1] == b'"':
                return token[1:-1].decode("utf-8")
            text = json.loads(token)
            text.encode("utf-8")  # half of a surrogate pair is no text
        except ValueError as error:
            raise self.error("it has a string that is not well-formed") from error
        return text

    def error(self, reason: str) -> CheckpointError:
        return self.file.error(f"its header is refused at byte {self.position}: {reason}")
