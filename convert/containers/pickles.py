"""A reader of pickles as data: it imports nothing, calls nothing, and its work is bounded before it begins.

A pickle is a program for a small stack machine. This one knows the instructions that build plain values; a class or
function is an opaque `Reference`, and the handful of calls that released checkpoints hold (ordered dictionaries, numpy
scalars, latin-1 text for bytes; torch's rebuilding of tensors and parameters in torch_objects.py) are turned into
values by a table. Every other call, by whatever instruction, is refused where it stands. Source of the instruction set:
Python's pickletools.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from sdjax.convert.containers.budget import LIMITS, Budget
from sdjax.convert.containers.mapped import MappedFile
from sdjax.convert.containers.pickle_values import CALLS, Call, Inert, OrderedDict, Reference, Scalar, is_dtype_state
from sdjax.convert.errors import CheckpointError, OtherKindError, shown

MAX_BYTES = 4 * 2**20  # a training checkpoint's 3,500 tensors with their optimizer's state need 0.9 MB
MAX_DEPTH = 1_000  # open MARKs
MAX_REFERENCE = 256  # bytes of a module's or class's name
MAX_REFERENCES = 1_000  # different classes and functions
MAX_INTEGER_BYTES = 32
MAX_ARGUMENTS = 8

_KNOWN = (  # words in pickles that hold more than plain values and tensors
    (b"string_to_param", "a textual inversion (an embedding of a word), which is no model",
     "name the whole model that it goes with (sdjax does not apply it)"),
    (b"numpy_random_seed", "the state of random generators, which a training leaves", "name the model beside it"),
    (b"ultralytics", "a detector of objects (YOLO)", "name it by --detector of sdjax detail"),
    (b"diffusers.models", "a pickled module of diffusers", "save its state_dict, or the pipeline with save_pretrained"),
)  # fmt: skip
_KEYS = (str, int, bool, Reference)


def read_pickle(
    data: bytes,
    file: MappedFile,
    budget: Budget,
    *,
    start: int = 0,
    calls: Mapping[tuple[str, str], Call] | None = None,
    persistent: Callable[[Any], Any] | None = None,
    objects: bool = False,
) -> tuple[Any, int]:
    """Returns the value that the pickle at `start` of `data` describes, and the position after it.

    Args:
        file: whose name errors bear.
        budget: what the reading may still cost; the instructions executed are taken from it.
        calls: further calls that may stand in it, by module and name: functions of their arguments that return a
            value, or raise ValueError with words that say what was called with what.
        persistent: what a persistent id stands for, likewise.
        objects: whether objects of other classes, and what other calls return, are read as `Inert` instead of refused.

    Values are None, bool, int, float, str, bytes, tuple, list, dict, `OrderedDict`, `Reference`, `Scalar` and what
    `calls` and `persistent` return. They may contain themselves: never walk, compare, hash or print them whole.

    Raises:
        CheckpointError: naming the position and what stands there.
    """
    machine = _Machine(data, start, {**CALLS, **(calls or {})}, persistent, objects)

    # Raised at once and kept nowhere: an exception in a variable of a frame that it has passed keeps the machine's
    # whole stack until the garbage collector comes by.
    def refused(reason: str) -> CheckpointError:
        sentence = f"its pickle is refused at byte {machine.at}: {reason}"
        for word, what, advice in _KNOWN:
            if word in data:
                return OtherKindError(what, advice, f"it is {what}; {advice} ({sentence})", file.path)
        return file.error(sentence)

    try:
        return machine.run(budget.left["instructions of pickles"])
    except CheckpointError:
        raise
    except struct.error as problem:
        raise refused("it ends inside an instruction") from problem
    except UnicodeError as problem:
        raise refused("it holds text in no known encoding") from problem
    except ValueError as problem:
        raise refused(str(problem)) from problem
    finally:
        budget.left["instructions of pickles"] -= machine.executed


class _Machine:
    """The stack machine; `run` executes one pickle. Problems are ValueErrors, `at` is where."""

    def __init__(self, data: bytes, start: int, calls: dict, persistent: Callable | None, objects: bool) -> None:
        self.data = data
        self.at = self.pos = start  # of the current instruction, of the next byte
        self.executed = 0
        self.end = min(len(data), start + MAX_BYTES)
        self.calls = calls
        self.persistent = persistent
        self.objects = objects
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.floor = 0  # nothing below the newest mark may be popped
        self.memo: dict[int, Any] = {}
        self.references: dict[tuple[str, str], Reference] = {}

    def run(self, max_instructions: int) -> tuple[Any, int]:
        data, table = self.data, _TABLE
        if data[self.pos : self.pos + 1] != b"\x80":
            raise ValueError("it does not begin with a pickle protocol of 2 or later")
        for self.executed in range(1, max_instructions + 1):
            self.at = self.pos
            if self.pos >= self.end:
                raise ValueError("it does not end" if self.pos >= len(data) else f"it is longer than {MAX_BYTES} bytes")
            opcode = data[self.pos]
            self.pos += 1
            if opcode == _STOP:
                if len(self.stack) != 1 or self.marks:
                    raise ValueError(f"it ends with {len(self.stack)} values instead of 1")
                return self.stack[0], self.pos
            table[opcode](self)
        limit = LIMITS["instructions of pickles"]
        raise ValueError(f"it has more than {limit} instructions; no checkpoint of these models needs that many")

    # reading

    def take(self, count: int) -> bytes:
        if count > self.end - self.pos:
            raise ValueError(f"it names a length of {count} bytes where {self.end - self.pos} are left")
        taken = self.data[self.pos : self.pos + count]
        self.pos += count
        return taken

    def number(self, form: struct.Struct) -> int:
        (value,) = form.unpack_from(self.data, self.pos)
        self.pos += form.size
        return value

    # the stack

    def pop(self) -> Any:
        if len(self.stack) <= self.floor:
            raise ValueError("it takes more from its stack than is there")
        return self.stack.pop()

    def top(self) -> Any:
        if len(self.stack) <= self.floor:
            raise ValueError("it looks for a value on an empty stack")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("it looks for a mark that is not there")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        self.floor = self.marks[-1] if self.marks else 0
        return items

    # instructions

    def proto(self) -> None:
        version = self.take(1)[0]
        if not 2 <= version <= 5:
            raise ValueError(f"it has protocol {version}; 2 to 5 are known")

    def frame(self) -> None:
        length = self.number(_U64)
        if length > self.end - self.pos:
            raise ValueError(f"it names a frame of {length} bytes where {self.end - self.pos} are left")

    def mark(self) -> None:
        if len(self.marks) >= MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        self.floor = len(self.stack)
        self.marks.append(self.floor)

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"it looks for value {index} of its memo, which was not put there")
        self.stack.append(self.memo[index])

    def long(self, length: int) -> None:
        if not 0 <= length <= MAX_INTEGER_BYTES:
            raise ValueError(f"it holds an integer of {length} bytes; at most {MAX_INTEGER_BYTES} are read")
        self.stack.append(int.from_bytes(self.take(length), "little", signed=True))

    def text(self, length: int) -> None:
        self.stack.append(self.take(length).decode("utf-8", "strict"))

    def raw(self, length: int) -> None:
        self.stack.append(self.take(length))

    def tuple_of(self, count: int) -> None:
        if len(self.stack) - self.floor < count:
            raise ValueError("it takes more from its stack than is there")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is Inert:
            return
        if type(target) is not list:
            raise ValueError(f"it appends to {shown(target)}, which is no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is Inert:
            return
        if type(target) is not dict and type(target) is not OrderedDict:
            raise ValueError(f"it sets items of {shown(target)}, which is no dictionary")
        if len(items) % 2:
            raise ValueError("it sets a dictionary's key without a value")
        for key, value in zip(items[::2], items[1::2]):
            # Only keys whose hash is short work: a tuple doubled through the memo twenty times hashes for ever.
            if type(key) not in _KEYS or (type(key) is int and not 0 <= key < 2**31):
                raise ValueError(f"it has {shown(key)} as a dictionary's key")
            if key in target:
                raise ValueError(f"it holds a dictionary that has the key {shown(key)} twice")
            target[key] = value

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def reference(self) -> None:
        module = self.line()
        self.push_reference(module, self.line())

    def line(self) -> str:
        stop = self.data.find(b"\n", self.pos, self.pos + MAX_REFERENCE + 1)
        if stop < 0:
            raise ValueError(f"it holds a class's name that is longer than {MAX_REFERENCE} bytes, or does not end")
        text = self.data[self.pos : stop].decode("utf-8", "strict")
        self.pos = stop + 1
        return text

    def stack_reference(self) -> None:
        name, module = self.pop(), self.pop()
        if not all(type(part) is str and len(part) <= MAX_REFERENCE for part in (name, module)):
            raise ValueError("it holds a class's name that is no short text")
        self.push_reference(module, name)

    def push_reference(self, module: str, name: str) -> None:
        reference = self.references.get((module, name))
        if reference is None:
            if len(self.references) >= MAX_REFERENCES:
                raise ValueError(f"it names more than {MAX_REFERENCES} classes")
            reference = self.references[module, name] = Reference(module, name)
        self.stack.append(reference)

    def reduce(self) -> None:
        args, function = self.pop(), self.pop()
        if type(function) is not Reference:
            raise ValueError(f"it calls {shown(function)}")
        call = self.calls.get((function.module, function.name))
        if call is None and self.objects:
            self.stack.append(Inert(function))
            return
        # Few arguments: the memo can hand the same long tuple to a hundred thousand calls.
        if call is None or type(args) is not tuple or len(args) > MAX_ARGUMENTS:
            raise ValueError(f"it calls {function}; a checkpoint's pickle may only rebuild tensors and plain values")
        self.stack.append(call(*args))

    def new_object(self) -> None:
        if not self.objects:
            self.refuse()
        _, kind = self.pop(), self.pop()
        if type(kind) is not Reference:
            raise ValueError(f"it makes an object of {shown(kind)}")
        self.stack.append(Inert(kind))

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if type(target) is Inert:
            target.state = state
            return
        if type(target) is Scalar and is_dtype_state(state):
            target.byteorder = state[1]
        # Module.state_dict() hangs its modules' versions on the dictionary
        elif type(target) is not OrderedDict or type(state) is not dict or len(state) != 1 or "_metadata" not in state:
            raise ValueError(f"it sets the state of {shown(target)}")

    def persistent_id(self) -> None:
        identity = self.pop()
        if self.persistent is None:
            raise ValueError("it names an object outside itself")
        self.stack.append(self.persistent(identity))

    def refuse(self) -> NoReturn:
        opcode = self.data[self.at]
        name = _REFUSED.get(opcode)
        if name is None:
            raise ValueError(f"byte {opcode:#04x} is no instruction that checkpoints hold")
        raise ValueError(
            f"it holds the instruction {name}; a checkpoint's pickle may only rebuild tensors and plain values"
        )


_U8, _U16, _U32, _U64 = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_I32, _F64 = struct.Struct("<i"), struct.Struct(">d")
_STOP = ord(".")

# Instructions that call, import by number, or that no pickler of protocol 2 or later writes.
_REFUSED = {
    0x81: "NEWOBJ",
    0x82: "EXT1",
    0x83: "EXT2",
    0x84: "EXT4",
    0x92: "NEWOBJ_EX",
    ord("i"): "INST",
    ord("o"): "OBJ",
    ord("P"): "PERSID",
    ord("F"): "FLOAT",
    ord("I"): "INT",
    ord("L"): "LONG",
    ord("S"): "STRING",
    ord("T"): "BINSTRING",
    ord("U"): "SHORT_BINSTRING",
    ord("V"): "UNICODE",
    ord("d"): "DICT",
    ord("l"): "LIST",
    ord("g"): "GET",
    ord("p"): "PUT",
    ord("2"): "DUP",
    0x8F: "EMPTY_SET",
    0x90: "ADDITEMS",
    0x91: "FROZENSET",
    0x96: "BYTEARRAY8",
    0x97: "NEXT_BUFFER",
    0x98: "READONLY_BUFFER",
}


def _table() -> list[Callable[[_Machine], object]]:
    known: dict[int, Callable[[_Machine], object]] = {
        0x80: _Machine.proto,
        0x95: _Machine.frame,
        ord("("): _Machine.mark,
        ord("0"): _Machine.pop,
        ord("1"): _Machine.pop_mark,
        ord("N"): lambda m: m.stack.append(None),
        0x88: lambda m: m.stack.append(True),
        0x89: lambda m: m.stack.append(False),
        ord("K"): lambda m: m.stack.append(m.number(_U8)),
        ord("M"): lambda m: m.stack.append(m.number(_U16)),
        ord("J"): lambda m: m.stack.append(m.number(_I32)),
        ord("G"): lambda m: m.stack.append(m.number(_F64)),
        0x8A: lambda m: m.long(m.number(_U8)),
        0x8B: lambda m: m.long(m.number(_I32)),
        0x8C: lambda m: m.text(m.number(_U8)),
        ord("X"): lambda m: m.text(m.number(_U32)),
        0x8D: lambda m: m.text(m.number(_U64)),
        ord("C"): lambda m: m.raw(m.number(_U8)),
        ord("B"): lambda m: m.raw(m.number(_U32)),
        0x8E: lambda m: m.raw(m.number(_U64)),
        ord(")"): lambda m: m.stack.append(()),
        0x85: lambda m: m.tuple_of(1),
        0x86: lambda m: m.tuple_of(2),
        0x87: lambda m: m.tuple_of(3),
        ord("t"): lambda m: m.stack.append(tuple(m.pop_mark())),
        ord("]"): lambda m: m.stack.append([]),
        ord("a"): lambda m: m.append([m.pop()]),
        ord("e"): lambda m: m.append(m.pop_mark()),
        ord("}"): lambda m: m.stack.append({}),
        ord("s"): _Machine.set_item,
        ord("u"): lambda m: m.set_items(m.pop_mark()),
        ord("q"): lambda m: m.put(m.number(_U8)),
        ord("r"): lambda m: m.put(m.number(_U32)),
        0x94: lambda m: m.put(len(m.memo)),
        ord("h"): lambda m: m.get(m.number(_U8)),
        ord("j"): lambda m: m.get(m.number(_U32)),
        ord("c"): _Machine.reference,
        0x93: _Machine.stack_reference,
        ord("Q"): _Machine.persistent_id,
        ord("R"): _Machine.reduce,
        ord("b"): _Machine.build,
        0x81: _Machine.new_object,
    }
    return [known.get(opcode, _Machine.refuse) for opcode in range(256)]


_TABLE = _table()
