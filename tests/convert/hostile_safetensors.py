"""safetensors files that break what the format promises, or whose header costs more than it is worth."""

import struct

import checkpoint_writer as writer
import numpy as np

FILE = writer.safetensors_file({"a": np.arange(4, dtype=np.float32), "b": np.arange(2, dtype=np.int64)}, {"k": "v"})


def entry(start, stop, shape=None, kind="F32"):
    return {"dtype": kind, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


def file(entries, data=b"", metadata=None):
    """A file of these entries, or of a header's own text."""
    return writer.safetensors_header(entries.encode() if isinstance(entries, str) else entries, metadata) + data


def claimed(length, rest=b"{}"):
    return struct.pack("<Q", length) + rest


def one(fields, data=bytes(4)):
    """A file of one tensor whose entry is this text."""
    return file('{"a":' + fields + "}", data)


def sparse_header(path):
    """A sparse file whose header would be 64 GB of zeros."""
    with open(path, "wb") as out:
        out.write(claimed(2**36, b"{"))
        out.truncate(2**37)


def sparse_data(path):
    """A terabyte that was never written, as one tensor."""
    with open(path, "wb") as out:
        out.write(file({"a": entry(0, 2**40)}))
        out.truncate(out.tell() + 2**40)


EMPTY = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
MALFORMED = "it does not have the form of a safetensors header"
NOT_ONE = "expected a checkpoint of torch.save, a safetensors or a GGUF file"
LACKS = "lacks its dtype, shape or two offsets"
LONG = 4 * 2**20 - 100
WIDE = "\U0001f600"  # one such character makes four bytes of every other one in memory

ALL = {
    "length alone": (claimed(2, b""), NOT_ONE),
    "cut in its header": (FILE[:40], "would end at byte .* the file was cut short"),
    "cut in its data": (FILE[:-1], "its tensors end at byte .* it was cut short or added to"),
    "without its data": (FILE[: -len(bytes(32))], "it was cut short or added to"),
    "something added": (FILE + b"\0", "it was cut short or added to"),
    "header of 0 bytes": (claimed(0), "does not begin with a brace"),
    "header of 2**63 bytes": (claimed(2**63), "would end at byte"),
    "header of 2**64 - 1 bytes": (claimed(2**64 - 1), "would end at byte"),
    "header of 4 MB and a byte": (
        claimed(2**22 + 1, b"{" + b" " * 2**22),
        "more than 4194304 bytes of safetensors headers",
    ),
    "header of a sparse file": (sparse_header, "more than 4194304 bytes of safetensors headers"),
    "data of a sparse file": (sparse_data, "most of bytes .* was never written"),
    "80,000 empty tensors": (
        file("{" + ",".join(f'"{i}":{EMPTY}' for i in range(80_000)) + "}"),
        "more than 4194304 bytes of safetensors headers",
    ),
    "10,002 empty tensors": (
        file("{" + ",".join(f'"{i}":{EMPTY}' for i in range(10_002)) + "}"),
        "its header has more than 10001 entries",
    ),
    "a shape of a million axes": (one('{"dtype":"F32","shape":[' + "0," * 10**6 + "0]}"), MALFORMED),
    "10,001 lines of metadata": (
        file('{"__metadata__":{' + ",".join(f'"{i}":"{WIDE}"' for i in range(10_001)) + '},"a":' + EMPTY + "}"),
        "its metadata has more than 10000 entries",
    ),
    "braces in braces": (file('{"a":' * 100_000 + "1" + "}" * 100_000), "unknown field 'a'"),
    "brackets in brackets": (file('{"a":{"shape":' + "[" * 500_000 + "]" * 500_000 + "}}"), MALFORMED),
    "a string that does not end": (file('{"' + "\\\\" * 10**6), MALFORMED),
    "a string of quotes": (file('{"' + '\\"' * 10**6), MALFORMED),
    "spaces": (file("{" + " " * LONG + "}"), "it holds no tensors"),
    "no tensors": (file("{}"), "it holds no tensors"),
    "only metadata": (file({}, metadata={"a": "b"}), "it holds no tensors"),
    "not JSON": (file("{hello}"), MALFORMED),
    "a list": (file("[]"), NOT_ONE),
    "NaN": (one('{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}'), MALFORMED),
    "a comma too many": (file('{"a":' + EMPTY + ",}"), MALFORMED),
    "a comma missing": (file('{"a":' + EMPTY + '"b":' + EMPTY + "}"), MALFORMED),
    "a colon missing": (file('{"a"' + EMPTY + "}"), "':' is missing"),
    "a comment": (file("{/* */}"), MALFORMED),
    "something after the brace": (file('{"a":' + EMPTY + "}x"), "something follows its last brace"),
    "a header after the header": (file('{"a":' + EMPTY + '}{"b":' + EMPTY + "}"), "something follows its last brace"),
    "zeros after the brace": (file('{"a":' + EMPTY + "}\0\0"), "something follows its last brace"),
    "a name twice": (file('{"a":' + EMPTY + ',"a":' + EMPTY + "}"), "its header names 'a' twice"),
    "a name twice, once escaped": (file('{"a":' + EMPTY + ',"\\u0061":' + EMPTY + "}"), "its header names 'a' twice"),
    "a field twice": (
        one('{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}'),
        "its tensor names 'shape' twice",
    ),
    "metadata twice": (
        file('{"__metadata__":{},"__metadata__":{},"a":' + EMPTY + "}"),
        "its header names '__metadata__' twice",
    ),
    "a line of metadata twice": (
        file('{"__metadata__":{"a":"1","a":"2"},"a":' + EMPTY + "}"),
        "its metadata names 'a' twice",
    ),
    "metadata that is a number": (file('{"__metadata__":{"a":1},"a":' + EMPTY + "}"), MALFORMED),
    "metadata that is a list": (file('{"__metadata__":[],"a":' + EMPTY + "}"), MALFORMED),
    "metadata in metadata": (file('{"__metadata__":{"a":{}},"a":' + EMPTY + "}"), MALFORMED),
    "an unknown field": (
        one('{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}'),
        "the unknown field 'x'|more than 3 entries",
    ),
    "no dtype": (one('{"shape":[1],"data_offsets":[0,4]}'), LACKS),
    "no shape": (one('{"dtype":"F32","data_offsets":[0,4]}'), LACKS),
    "no offsets": (one('{"dtype":"F32","shape":[1]}'), LACKS),
    "nothing": (one("{}"), LACKS),
    "one offset": (one('{"dtype":"F32","shape":[1],"data_offsets":[0]}'), LACKS),
    "three offsets": (one('{"dtype":"F32","shape":[1],"data_offsets":[0,2,4]}'), LACKS),
    "offsets in text": (one('{"dtype":"F32","shape":[1],"data_offsets":"0,4"}'), MALFORMED),
    "a negative offset": (one('{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}'), MALFORMED),
    "a negative size": (one('{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}'), MALFORMED),
    "a fraction": (one('{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}'), MALFORMED),
    "an exponent": (one('{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}'), MALFORMED),
    "a truth value": (one('{"dtype":"F32","shape":[true],"data_offsets":[0,4]}'), MALFORMED),
    "a number of many digits": (one('{"dtype":"F32","shape":[' + "9" * 10**6 + '],"data_offsets":[0,4]}'), MALFORMED),
    "a leading zero": (one('{"dtype":"F32","shape":[01],"data_offsets":[0,4]}'), MALFORMED),
    "17 axes": (file({"a": entry(0, 4, [1] * 17)}, bytes(4)), MALFORMED),
    "a dtype that is a number": (one('{"dtype":7,"shape":[1],"data_offsets":[0,4]}'), MALFORMED),
    "an unknown dtype": (file({"a": entry(0, 4, [1], "Q4")}, bytes(4)), "'a' is of type 'Q4'; known are"),
    "a dtype in lower case": (file({"a": entry(0, 4, [1], "f32")}, bytes(4)), "is of type 'f32'; known are"),
    "half bytes": (file({"a": entry(0, 4, [8], "F4")}, bytes(4)), "is of type 'F4'; known are"),
    "offsets the wrong way round": (one('{"dtype":"F32","shape":[1],"data_offsets":[4,0]}'), "ends before it starts"),
    "too few bytes": (file({"a": entry(0, 4, [2])}, bytes(4)), "has 4 bytes where its shape takes 8"),
    "too many bytes": (file({"a": entry(0, 8, [1])}, bytes(8)), "has 8 bytes where its shape takes 4"),
    "a shape beyond 64 bits": (file({"a": entry(0, 0, [2**32, 2**32])}), "more than 140737488355328 elements"),
    "a shape beyond 64 bits times 0": (file({"a": entry(0, 0, [0, 2**62, 4])}), "more than 140737488355328 elements"),
    "bytes beyond 64 bits": (file({"a": entry(0, 0, [2**62])}), "more than 140737488355328 elements"),
    "data beyond the file": (file({"a": entry(0, 400)}, bytes(4)), "it was cut short or added to"),
    "data at 2**63": (file({"a": entry(2**63 - 4, 2**63)}, bytes(4)), "leaves a hole before it"),
    "a hole at the beginning": (file({"a": entry(4, 8)}, bytes(8)), "tensor 'a' leaves a hole before it"),
    "a hole between": (file({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "tensor 'b' leaves a hole before it"),
    "an overlap": (file({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "tensor 'b' overlaps the tensor before it"),
    "two tensors in one place": (
        file({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
        "'b' overlaps the tensor before",
    ),
    "an empty tensor in another": (file({"a": entry(0, 8), "b": entry(4, 4)}, bytes(8)), "'b' overlaps the tensor"),
    "a name with a line feed": (file({"a\nb": entry(0, 4)}, bytes(4)), r"'a\\nb' names a tensor"),
    "a name with a null": (file({"a\0b": entry(0, 4)}, bytes(4)), r"'a\\x00b' names a tensor"),
    "a name that hides": (file({"a\u202eb": entry(0, 4)}, bytes(4)), r"'a\\u202eb' names a tensor"),
    "no name": (file({"": entry(0, 4)}, bytes(4)), "'' names a tensor"),
    "a name of 501 letters": (file({"x" * 501: entry(0, 4)}, bytes(4)), "names a tensor; names are 1 to 500"),
    "a name of 4 MB, wide": (
        file('{"' + WIDE + "x" * (LONG - 100) + '":' + EMPTY + "}"),
        "names a tensor; names are 1 to 500",
    ),
    "half a surrogate pair": (file('{"\\ud800":' + EMPTY + "}"), "a string that is not well-formed"),
    "an unknown escape": (file('{"\\x41":' + EMPTY + "}"), "a string that is not well-formed"),
    "a control character": (file('{"a\x01b":' + EMPTY + "}"), MALFORMED),
    "text that is not UTF-8": (writer.safetensors_header(b'{"\xff":' + EMPTY.encode() + b"}"), "is not well-formed"),
}

# Allowed by the format, as large as it may be: must be read within the same bounds.
HEAVY = {
    "10,000 empty tensors": file("{" + ",".join(f'"{i}":{EMPTY}' for i in range(10_000)) + "}"),
    "4 MB of one wide string": file('{"__metadata__":{"a":"' + WIDE + "x" * (LONG - 100) + '"},"a":' + EMPTY + "}"),
    "4 MB of escapes": file('{"__metadata__":{"a":"' + "\\ud83d\\ude00" * 340_000 + '"},"a":' + EMPTY + "}"),
    "9,999 wide strings": file(
        '{"__metadata__":{' + ",".join(f'"{i}":"{WIDE}{"x" * 380}"' for i in range(9_999)) + '},"a":' + EMPTY + "}"
    ),
}
