"""Pickles that harm a careless reader: code by every instruction that runs any, and programs that cost time or memory.

CODE runs in Python's own unpickler (test_reading_hostile.py shows it). Each value is a pickle and the reason, as a
regular expression, that a reader gives for refusing it.
"""

import struct

REFUSED_CALL = "may only rebuild tensors and plain values"


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def pickle(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


HARM = "open('canary', 'w').close()"
_EXEC = b"cbuiltins\nexec\n"
_CODE = text(HARM)
_RUN = _EXEC + _CODE + b"\x85R"
_MAP = b"cbuiltins\nmap\n" + _EXEC + b"]" + _CODE + b"a"  # a class, a function and a list of one piece of code

CODE = {
    name: (pickle(body), reason)
    for name, (body, reason) in {
        "REDUCE": (_RUN, rf"it calls builtins\.exec; .*{REFUSED_CALL}"),
        "STACK_GLOBAL": (b"\x8c\x08builtins\x8c\x04exec\x93" + _CODE + b"\x85R", r"it calls builtins\.exec"),
        "STACK_GLOBAL of a dotted name": (
            text("os") + text("sys.modules.get") + b"\x93" + text("builtins") + b"\x85R0" + _RUN,
            r"it calls os\.sys\.modules\.get",
        ),
        "INST": (b"(" + _CODE + b"ibuiltins\nexec\n", "the instruction INST"),
        "OBJ": (b"(" + _EXEC + _CODE + b"o", "the instruction OBJ"),
        "NEWOBJ": (b"cbuiltins\nbytes\n" + _MAP + b"\x86\x81\x85\x81", "the instruction NEWOBJ;"),
        "NEWOBJ_EX": (b"cbuiltins\nbytes\n" + _MAP + b"\x86}\x92\x85}\x92", "the instruction NEWOBJ_EX;"),
        "BUILD": (
            b"cargparse\nNamespace\nN}" + text("__setstate__") + _EXEC + b"s\x86b" + _CODE + b"b",
            "it sets the state of a value of type Reference",
        ),
        "EXT1": (b"\x82\x21" + _CODE + b"\x85R", "the instruction EXT1"),
        "EXT2": (b"\x83\x21\0" + _CODE + b"\x85R", "the instruction EXT2"),
        "EXT4": (b"\x84\x21\0\0\0" + _CODE + b"\x85R", "the instruction EXT4"),
        "a known call overwritten in the memo": (
            b"ccollections\nOrderedDict\nq\x000" + _EXEC + b"q\x000h\x00" + _CODE + b"\x85R",
            r"it calls builtins\.exec",
        ),
        "the memo by MEMOIZE": (
            b"ccollections\nOrderedDict\n\x940" + _EXEC + b"q\x000h\x00" + _CODE + b"\x85R",
            r"it calls builtins\.exec",
        ),
        "the memo by text instructions": (_EXEC + b"p0\n0g0\n" + _CODE + b"\x85R", "the instruction PUT"),
        "getattr": (
            b"cbuiltins\ngetattr\ncbuiltins\n__import__\n" + text("__self__") + b"\x86R0" + _RUN,
            r"it calls builtins\.getattr",
        ),
        "a call that is thrown away": (_RUN + b"0}", r"it calls builtins\.exec"),
        "a call below a mark": (_RUN + b"(1", r"it calls builtins\.exec"),
        "a call as a dictionary's key": (b"}" + _RUN + b"Ns", r"it calls builtins\.exec"),
        "a call in an OrderedDict's arguments": (
            b"ccollections\nOrderedDict\n(" + _RUN + b"tR",
            r"it calls builtins\.exec",
        ),
        "a call in a tensor's hooks": (
            b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0))\x89" + _RUN + b"tR",
            r"it calls builtins\.exec",
        ),
        "a call as a persistent id": (_RUN + b"Q", r"it calls builtins\.exec"),
        "functions of the system": (b"cposix\nsystem\n" + text("echo > canary") + b"\x85R", r"it calls posix\.system"),
        "Python 2's names": (b"c__builtin__\neval\n" + _CODE + b"\x85R", r"it calls __builtin__\.eval"),
        "text instructions": (b'cbuiltins\nexec\n(S\'open("canary","w").close()\'\ntR', "the instruction STRING"),
    }.items()
}

_CALLS = {
    "torch.storage _load_from_bytes": b"C\x04abcd\x85",
    "torch.hub load": text("owner/name") + b"\x85",
    "torch.serialization load": text("other.pt") + b"\x85",
    "torch._utils _rebuild_qtensor": b")",
    "torch._utils _rebuild_sparse_tensor": b")",
    "torch._tensor _rebuild_from_type_v2": b")",
    "torch _utils._rebuild_tensor_v2": b")",
    "numpy.core.multiarray _reconstruct": b")",
    "numpy ndarray": b")",
    "copyreg _reconstructor": b")",
    "functools partial": b")",
    "operator methodcaller": b")",
    "collections defaultdict": b")",
    "collections OrderedDict.fromkeys": b")",
    "pickle loads": b"C\x04abcd\x85",
    "builtins set": b"]\x85",
}
CALLS = {
    f"call of {name}": (
        pickle("c{}\n{}\n".format(*name.split()).encode() + args + b"R"),
        r"it calls " + name.replace(" ", ".").replace(".", r"\."),
    )
    for name, args in _CALLS.items()
}

_ENCODE, _DTYPE, _SCALAR = b"c_codecs\nencode\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\nscalar\n"
_F8 = _DTYPE + text("f8") + b"\x89\x88\x87R"
_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
_DOUBLED = b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(100))

FORMS = {
    f"{name}": (pickle(body), reason)
    for name, (body, reason) in {
        "encode by another codec": (_ENCODE + text("x") + text("rot13") + b"\x86R", "something else than a number's"),
        "encode of long text": (_ENCODE + text("x" * 40) + text("latin1") + b"\x86R", "something else than a number's"),
        "encode of text beyond latin-1": (_ENCODE + text("€") + text("latin1") + b"\x86R", "text in no known encoding"),
        "dtype of objects": (_DTYPE + text("O8") + b"\x89\x88\x87R", "the numpy dtype 'O8', which is no plain"),
        "dtype of 4 GB": (_DTYPE + text("V4294967295") + b"\x89\x88\x87R", "no plain number's"),
        "dtype of a list": (_DTYPE + b"]\x89\x88\x87R", "no plain number's"),
        "dtype with fields": (
            _F8 + b"(K\3" + text("<") + b"N}}J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb",
            "it sets the state of a value of type Scalar",
        ),
        "scalar of the wrong length": (_SCALAR + _F8 + b"C\x04abcd\x86R", "a numpy scalar of 4 bytes where its dtype"),
        "scalar without a dtype": (_SCALAR + b"NC\x04abcd\x86R", "without a plain dtype"),
        "OrderedDict from a doubled tuple": (
            b"ccollections\nOrderedDict\n" + _DOUBLED + b"R",
            r"it makes an OrderedDict|it calls collections\.OrderedDict",
        ),
        "OrderedDict with attributes": (
            b"ccollections\nOrderedDict\n)R}" + text("__class__") + b"Nsb",
            "it sets the state of a value of type OrderedDict",
        ),
        "tensor from nothing": (_TENSOR + b")R", "a tensor from malformed arguments"),
        "tensor from many arguments": (_TENSOR + b"(" + b"N" * 1000 + b"tR", r"it calls torch\._utils\._rebuild"),
        "tensor from a list of arguments": (_TENSOR + b"]R", r"it calls torch\._utils\._rebuild_tensor_v2"),
        "tensor from the name of a storage": (
            _TENSOR + b"(ctorch\nFloatStorage\nK\0))\x89}tR",
            "a tensor from malformed arguments",
        ),
        "parameter from nothing": (b"ctorch._utils\n_rebuild_parameter\n(N\x89}tR", "something that is not a tensor"),
        "PERSID": (b"Psomething\n", "the instruction PERSID"),
        "persistent id that is text": (text("storage") + b"Q", "something that is not a tensor's storage"),
        "persistent id that is doubled": (_DOUBLED + b"Q", "something that is not a tensor's storage"),
        "persistent id of a wrong length": (b"(" + text("storage") + b"NNtQ", "something that is not a tensor's"),
        "persistent id of a module": (b"(" + text("module") + b"NNNNtQ", "something that is not a tensor's"),
        "call of text": (text("exec") + b")R", "it calls 'exec'"),
        "call of a list that holds itself": (b"]q\0h\0a)R", "it calls a value of type list"),
        "class's name of two hundred lines": (b"c" + b"x" * 300 + b"\ny\n", "longer than 256 bytes"),
        "class's name that does not end": (b"cbuiltins", "longer than 256 bytes, or does not end"),
        "class's name that is no text": (b"c\xff\xfe\nx\n", "text in no known encoding"),
        "class's name from numbers": (b"K\1K\2\x93", "no short text"),
        "class's name of 1 MB": (text("x" * 2**20) + text("y") + b"\x93", "no short text"),
        "2,000 classes": (b"".join(b"cm\n%d\n0" % i for i in range(2000)), "more than 1000 classes"),
    }.items()
}

_HUGE = struct.pack("<Q", 2**63 - 1)
BOMBS = {
    name: (data, reason)
    for name, (data, reason) in {
        "nothing": (b"", "does not begin with a pickle protocol|no dictionary of tensors"),
        "only a protocol": (b"\x80\x02", "it does not end|no dictionary of tensors"),
        "protocol 0": (b"(dp0\n.", "does not begin with a pickle protocol|is none"),
        "protocol 1": (b"}q\0.", "does not begin with a pickle protocol|is none"),
        "protocol 6": (b"\x80\x06}.", "protocol 6"),
        "no value": (pickle(b""), "it ends with 0 values"),
        "two values": (pickle(b"NN"), "it ends with 2 values"),
        "open mark": (pickle(b"N("), "it ends with 1 values"),
        "pop of nothing": (pickle(b"0"), "takes more from its stack"),
        "pop below a mark": (pickle(b"N(0"), "takes more from its stack"),
        "tuple below a mark": (pickle(b"NN(\x86"), "takes more from its stack"),
        "no mark": (pickle(b"Nt"), "a mark that is not there"),
        "memo of nothing": (pickle(b"q\0"), "a value on an empty stack"),
        "memo not written": (pickle(b"h\7"), "value 7 of its memo"),
        "memo not written, large": (pickle(b"j\xff\xff\xff\xff"), "value 4294967295 of its memo"),
        "append to a tuple": (pickle(b")Na"), "it appends to a value of type tuple, which is no list"),
        "items of a list": (pickle(b"](NNu"), "it sets items of a value of type list"),
        "key without a value": (pickle(b"}(Nu"), "a dictionary's key without a value"),
        "list as a key": (pickle(b"}]Ns"), "as a dictionary's key"),
        "float as a key": (pickle(b"}G\0\0\0\0\0\0\0\0Ns"), "as a dictionary's key"),
        "None as a key": (pickle(b"}NNs"), "None as a dictionary's key"),
        "huge integer as a key": (pickle(b"}\x8a\x20" + b"\x7f" * 32 + b"Ns"), "as a dictionary's key"),
        "doubled tuple as a key": (pickle(b"}" + _DOUBLED + b"Ns"), "as a dictionary's key"),
        "key twice": (pickle(b"}(" + text("a") + b"N" + text("a") + b"Nu"), "the key 'a' twice"),
        "integer of 1 MB": (pickle(b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20), "an integer of 1048576"),
        "integer of 255 bytes": (pickle(b"\x8a\xff" + b"\x7f" * 255), "an integer of 255 bytes"),
        "integer of 2 GB": (pickle(b"\x8b\xff\xff\xff\x7f"), "an integer of 2147483647 bytes"),
        "integer of negative length": (pickle(b"\x8b\xff\xff\xff\xff"), "an integer of -1 bytes"),
        "decimal integer": (pickle(b"I" + b"9" * 100_000 + b"\n"), "the instruction INT"),
        "decimal long": (pickle(b"L" + b"9" * 100_000 + b"L\n"), "the instruction LONG"),
        "text of 4 GB": (pickle(b"X\xff\xff\xff\xff"), "a length of 4294967295 bytes"),
        "text of 8 EB": (pickle(b"\x8d" + _HUGE), "a length of 9223372036854775807 bytes"),
        "text of -1": (pickle(b"\x8d" + b"\xff" * 8), "a length of 18446744073709551615 bytes"),
        "bytes of 8 EB": (pickle(b"\x8e" + _HUGE), "a length of 9223372036854775807 bytes"),
        "bytes of 4 GB": (pickle(b"B\xff\xff\xff\xff"), "a length of 4294967295 bytes"),
        "bytearray of 8 EB": (pickle(b"\x96" + _HUGE), "the instruction BYTEARRAY8"),
        "out-of-band buffer": (pickle(b"\x97"), "the instruction NEXT_BUFFER"),
        "frame of 8 EB": (pickle(b"\x95" + _HUGE), "a frame of 9223372036854775807 bytes"),
        "instruction cut short": (b"\x80\x02X\1", "it ends inside an instruction|a length of"),
        "half a surrogate pair": (pickle(text("\ud800")), "text in no known encoding"),
        "text that is not UTF-8": (pickle(b"\x8c\x02\xff\xfe"), "text in no known encoding"),
        "unknown instruction": (pickle(b"\xff"), "0xff is no instruction that checkpoints hold"),
        "DUP": (pickle(b"]2"), "the instruction DUP"),
        "sets": (pickle(b"\x8f"), "the instruction EMPTY_SET"),
        "marks in marks": (pickle(b"(" * 100_000), "nested more than 1000 deep"),
        "lists in lists": (pickle(b"]" * 100_000 + b"a" * 99_999), "holds no dictionary of tensors"),
        "tuples in tuples": (pickle(b"N" + b"\x85" * 250_000), "holds no dictionary of tensors"),
        "a list that holds itself": (pickle(b"]q\0h\0a"), "holds no dictionary of tensors"),
        "a dictionary that holds itself": (
            pickle(b"}q\0" + text("state_dict") + b"h\0s"),
            "no tensors under state_dict",
        ),
        "a doubled tuple": (pickle(_DOUBLED), "holds no dictionary of tensors"),
        "a doubled tuple as state_dict": (
            pickle(b"}" + text("state_dict") + _DOUBLED + b"s"),
            "its state_dict is not a dictionary",
        ),
        "a doubled tuple as a tensor": (
            pickle(b"}" + text("state_dict") + b"}" + text("x") + _DOUBLED + b"ss"),
            "there are no tensors under state_dict",
        ),
        "a stack of a million": (pickle(b"N" * 300_000), "more than 300000 instructions"),
        "dictionaries": (pickle(b"}" * 300_000), "more than 300000 instructions"),
        "a memo of half a million": (pickle(b"}\x94" * 150_000), "more than 300000 instructions"),
        "text of few, wide characters": (pickle(b"\x8c\x04\xf0\x9f\x98\x80" * 300_000), "more than 300000 instr"),
        "the same call for ever": (
            pickle(b"ccollections\nOrderedDict\nq\0" + b"h\0)R" * 100_000),
            "more than 300000 instructions",
        ),
        "numpy scalars for ever": (
            pickle(_SCALAR + b"q\0" + _F8 + b"C\x08\0\0\0\0\0\0\0\0\x86q\1" + b"h\0h\1R" * 100_000),
            "more than 300000 instructions",
        ),
        "longer than any": (pickle(b"B" + struct.pack("<I", 5 * 2**20) + b"x" * (5 * 2**20)), "more than|are left"),
    }.items()
}

PICKLES = {**{f"code by {name}": case for name, case in CODE.items()}, **CALLS, **FORMS, **BOMBS}
