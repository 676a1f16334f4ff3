"""Pickles written instruction by instruction as torch.save does, without torch: protocol 2, memo included.

That they are torch's own is checked against torch in test_reading_torch.py.
"""

import dataclasses
import struct
from typing import Any

import numpy as np

KINDS = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


@dataclasses.dataclass(frozen=True)
class Global:
    """A class or function by name."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """What REDUCE makes of a function and arguments, and BUILD of a state."""

    function: Any
    args: Any = ()
    state: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Persistent:
    identity: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    key: str
    data: np.ndarray  # one axis
    view: tuple[str, int, int] | None = None  # legacy: (key, first element, elements)


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage, offset and strides in elements."""

    storage: Storage
    shape: tuple[int, ...]
    offset: int = 0
    strides: tuple[int, ...] | None = None
    parameter: bool = False

    def call(self, legacy: bool) -> Call:
        strides = self.strides
        if strides is None:
            strides = tuple(int(np.prod(self.shape[i + 1 :])) for i in range(len(self.shape)))
        data = self.storage.data
        identity = ("storage", Global("torch", KINDS[data.dtype.name]), self.storage.key, "cpu", data.size)
        if legacy:
            identity += (self.storage.view,)
        call = Call(
            Global("torch._utils", "_rebuild_tensor_v2"),
            (Persistent(identity), self.offset, self.shape, strides, False, ordered()),
        )
        if self.parameter:
            call = Call(Global("torch._utils", "_rebuild_parameter"), (call, True, ordered()))
        return call


def ordered(state: Any = None) -> Call:
    return Call(Global("collections", "OrderedDict"), (), state)


@dataclasses.dataclass(frozen=True, eq=False)
class StateDict:
    """An OrderedDict as Module.state_dict() makes it: with items, and `_metadata` set by BUILD."""

    items: dict[str, Any]


def numpy_scalar(code: str, data: str, *, module: str = "numpy.core.multiarray", byteorder: str = "<") -> Call:
    """A numpy scalar as protocol 2 spells it; `data` is its bytes as latin-1 text."""
    dtype = Call(Global("numpy", "dtype"), (code, False, True), (3, byteorder, None, None, None, -1, -1, 0))
    return Call(Global(module, "scalar"), (dtype, Call(Global("_codecs", "encode"), (data, "latin1"))))


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Tensors with a storage each, numbered in order."""
    return {
        name: Tensor(Storage(str(i), np.ascontiguousarray(array).reshape(-1)), array.shape)
        for i, (name, array) in enumerate(arrays.items())
    }


class _Emitter:
    def __init__(self, legacy: bool) -> None:
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[Any, int] = {}
        self.kept: list[Any] = []
        self.count = 0
        self.legacy = legacy
        self.storages: dict[str, Storage] = {}

    def put(self, key: Any = None) -> None:
        if key is not None:
            self.memo[key] = self.count
        self.out += b"q" + bytes([self.count]) if self.count < 256 else b"r" + struct.pack("<I", self.count)
        self.count += 1

    def got(self, key: Any) -> bool:
        if key not in self.memo:
            return False
        index = self.memo[key]
        self.out += b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)
        return True

    def emit(self, value: Any) -> None:
        out = self.out
        if value is None:
            out += b"N"
        elif type(value) is bool:
            out += b"\x88" if value else b"\x89"
        elif type(value) is int:
            if 0 <= value < 256:
                out += b"K" + bytes([value])
            elif 0 <= value < 65536:
                out += b"M" + struct.pack("<H", value)
            elif -(2**31) <= value < 2**31:
                out += b"J" + struct.pack("<i", value)
            else:
                data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
                out += b"\x8a" + bytes([len(data)]) + data
        elif type(value) is float:
            out += b"G" + struct.pack(">d", value)
        elif type(value) is str:
            if not self.got(value):
                data = value.encode("utf-8", "surrogatepass")
                out += b"X" + struct.pack("<I", len(data)) + data
                self.put(value)
        elif type(value) is tuple:
            if not value:
                out += b")"
                return
            if len(value) > 3:
                out += b"("
            for item in value:
                self.emit(item)
            out += {1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(value), b"t")
            self.put()
        elif type(value) is list:
            out += b"]"
            self.put()
            if value:
                out += b"("
                for item in value:
                    self.emit(item)
                out += b"e"
        elif type(value) is dict:
            out += b"}"
            self.put()
            self.items(value)
        elif isinstance(value, StateDict):
            self.emit(ordered())
            self.items(value.items)
            self.emit({"_metadata": ordered()})
            out += b"b"
        elif isinstance(value, Global):
            if not self.got(value):
                out += f"c{value.module}\n{value.name}\n".encode()
                self.put(value)
        elif isinstance(value, Call):
            self.emit(value.function)
            self.emit(value.args)
            out += b"R"
            self.put()
            if value.state is not None:
                self.emit(value.state)
                out += b"b"
        elif isinstance(value, Persistent):
            self.emit(value.identity)
            out += b"Q"
        elif isinstance(value, Tensor):
            if not self.got(id(value)):
                self.kept.append(value)
                self.storages.setdefault(value.storage.key, value.storage)
                self.emit(value.call(self.legacy))
                self.memo[id(value)] = self.count - 1
        else:
            raise TypeError(type(value))

    def items(self, value: dict) -> None:
        if not value:
            return
        items = list(value.items())
        for start in range(0, len(items), 1000):
            self.out += b"("
            for key, item in items[start : start + 1000]:
                self.emit(key)
                self.emit(item)
            self.out += b"u"


def pickled(value: Any, *, legacy: bool = False) -> tuple[bytes, dict[str, Storage]]:
    """Returns a pickle of protocol 2, and the storages that its tensors use."""
    emitter = _Emitter(legacy)
    emitter.emit(value)
    return bytes(emitter.out) + b".", emitter.storages
