"""The plain values in a checkpoint's pickle, and the few calls that make them.

Ordered dictionaries, numpy's numbers, sizes and devices of torch, and the latin-1 text by which protocol 2 spells a
number's bytes: a table from the names of those functions to functions of ours, which make no object of any other class
and run no code of the file.
"""

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

from sdjax.convert.errors import printable, shown

MAX_ENCODED = 32  # characters of a numpy scalar's bytes, of a device's name
MAX_SIDES = 16  # of a torch.Size


@dataclasses.dataclass(slots=True, eq=False)
class Reference:
    """The name of a class or function, and nothing more; one object a name within a pickle."""

    module: str
    name: str

    def __str__(self) -> str:
        return printable(f"{self.module}.{self.name}")


class OrderedDict(dict):
    """A collections.OrderedDict of the file; its own class, because `Module.state_dict()` sets an attribute on it."""

    __slots__ = ()


@dataclasses.dataclass(slots=True, eq=False)
class Inert:
    """An object of an unknown class: the class's name, and the state that the file gives it. It is only data."""

    kind: Reference
    state: Any = None


@dataclasses.dataclass(slots=True)
class Scalar:
    """A numpy dtype of the file, on its way to a number."""

    code: str
    byteorder: str = "<"


def is_dtype_state(state: Any) -> bool:
    # (version, byte order, subdtype, names, fields, size, alignment, flags) of a dtype that is a plain number's
    return (
        type(state) is tuple
        and len(state) == 8
        and state[0] in (3, 4)
        and type(state[1]) is str
        and state[1] in ("<", ">", "|", "=")
        and state[2:] == (None, None, None, -1, -1, 0)
    )


Call = Callable[..., Any]
# numpy's names of plain numbers, and struct's
_SCALAR_CODES = {
    **{"f2": "e", "f4": "f", "f8": "d", "b1": "?"},
    **{"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"},
}


def _ordered_dict(*args: Any) -> OrderedDict:
    if args:
        raise ValueError("it makes an OrderedDict from arguments")
    return OrderedDict()


def _encode(*args: Any) -> bytes:
    # Protocol 2 spells a numpy scalar's bytes so. Longer text would be copied once a call, many calls over.
    if len(args) != 2 or type(args[0]) is not str or len(args[0]) > MAX_ENCODED or args[1] not in ("latin1", "latin-1"):
        raise ValueError("it calls _codecs.encode on something else than a number's few bytes as latin-1")
    return args[0].encode("latin-1")


def _dtype(*args: Any) -> Scalar:
    # numpy.dtype(code, align, copy); the last two are 0 and 1 in files of an older numpy
    if len(args) != 3 or type(args[0]) is not str or args[0] not in _SCALAR_CODES or args[1:] != (False, True):
        raise ValueError(f"it makes the numpy dtype {shown(args[0] if args else None)}, which is no plain number's")
    return Scalar(args[0])


def _scalar(*args: Any) -> int | float | bool:
    if len(args) != 2 or type(args[0]) is not Scalar or type(args[1]) is not bytes:
        raise ValueError("it makes a numpy scalar without a plain dtype and its bytes")
    dtype, data = args
    if len(data) != int(dtype.code[1]):
        raise ValueError(f"it makes a numpy scalar of {len(data)} bytes where its dtype has {dtype.code[1]}")
    return struct.unpack((">" if dtype.byteorder == ">" else "<") + _SCALAR_CODES[dtype.code], data)[0]


def _size(*args: Any) -> tuple[int, ...]:
    if len(args) != 1 or type(args[0]) is not tuple or any(type(n) is not int for n in args[0][:MAX_SIDES]):
        raise ValueError("it makes a torch.Size of something else than whole numbers")
    return args[0][:MAX_SIDES]


def _device(*args: Any) -> str:
    if not args or type(args[0]) is not str or any(type(index) is not int for index in args[1:2]) or len(args) > 2:
        raise ValueError("it makes a torch.device of something else than a name and a number")
    return args[0][:MAX_ENCODED]


CALLS: dict[tuple[str, str], Call] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
}
