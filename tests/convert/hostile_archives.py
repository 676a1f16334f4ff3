"""Zip archives and legacy files that are cut short, lie about their members, or hold what torch.save does not write."""

import functools
import io
import struct
import zipfile
import zlib

import checkpoint_writer as writer
import numpy as np
import pickle_writer as pickles

NUMBERS = np.arange(100, dtype=np.float32)
VALUE = {"state_dict": pickles.tensors({"a": NUMBERS, "b": NUMBERS.astype(np.float16)})}
MEMBERS = writer.torch_members(VALUE, root="x")
ZIP = writer.zip_archive(MEMBERS)
PKL, FIRST = "x/data.pkl", "x/data/0"


def changed(name, **fields):
    """The archive with other fields in one member's directory entry, or `local` ones in its local header."""
    return writer.zip_archive(MEMBERS, change={name: fields})


def with_member(name, data=b"1", /, **fields):
    members = [*MEMBERS, (name, data)]
    return writer.zip_archive(members, change={name: fields} if fields else None)


def zipped(compression):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in MEMBERS:
            archive.writestr(name, data)
    return out.getvalue()


def patched(data, at, form, *values):
    out = bytearray(data)
    struct.pack_into(form, out, at % len(out), *values)
    return bytes(out)


def bomb():
    """Ten megabytes of zeros, deflated: a member that grows a thousandfold."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = deflate.compress(bytes(10**7)) + deflate.flush()
    return with_member("x/data/9", data, method=8, size=10**7)


def damaged(name):
    data = dict(MEMBERS)[name]
    out = bytearray(ZIP)
    out[out.index(data) + len(data) // 2] ^= 1
    return bytes(out)


def big_directory(path):
    """A sparse file whose directory of ten thousand entries has extra fields of 64 KB each."""
    names = [f"x/data/{i}".encode() for i in range(10_000)]
    with open(path, "wb") as out:
        for name in names:
            head = (b"PK\x03\x04", 0, 0, 0, 0, 0, 0, 0, 0, len(name), 0)
            out.write(struct.pack("<4s5H3L2H", *head) + name)
        start, at = out.tell(), 0
        for name in names:
            head = (b"PK\x01\x02", 0, 0, 0, 0, 0, 0, 0, 0, 0, len(name), 0xFFFF, 0, 0, 0, 0, at)
            out.write(struct.pack("<4s6H3L5H2L", *head) + name)
            out.seek(0xFFFF, 1)
            at += 30 + len(name)
        end = out.tell()
        out.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(names), len(names), end - start, start, 0))


def sparse(path, size=2**40):
    """A terabyte that was never written, as one tensor's storage."""
    count = size // 4
    tensor = pickles.Tensor(pickles.Storage("0", np.broadcast_to(np.float32(0), count)), (count,), 0, (1,))
    pickle, _ = pickles.pickled({"x": tensor})
    with open(path, "wb") as out:
        writer.write_zip(
            out, [("x/data.pkl", pickle), ("x/data/0", writer.Hole(size))], change={"x/data/0": WIDE(size)}
        )


def WIDE(size):
    """The directory fields of a member whose size takes 64 bits."""
    extra = struct.pack("<2H2Q", 1, 16, size, size)
    return {"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF, "extra": extra, "local": {"size": 0, "packed": 0, "flags": 0x800}}


CONTRADICTS = "the header of 'x/data/0' contradicts the archive's directory"
NO_END = "no end record: it was cut short"
ODD_NAME = "which torch.save does not write"

ZIPS = {
    "cut before its end": (ZIP[:-1], NO_END),
    "cut in its directory": (ZIP[: ZIP.index(b"PK\x01\x02") + 10], NO_END),
    "cut in its data": (ZIP[:500], NO_END),
    "cut after four bytes": (ZIP[:4], NO_END),
    "something added": (ZIP + b"\0", NO_END),
    "something before": (b"PK\x03\x04" + ZIP, "zip64 locator does not point|does not lie where|damaged"),
    "a piece missing": (ZIP[:200] + ZIP[264:], "zip64 locator does not point|does not lie where"),
    "an end record alone": (b"PK\x03\x04" + b"PK\x05\x06" + bytes(18), "does not lie where|no data"),
    "a comment": (ZIP[:-2] + b"\5\0hello", NO_END),
    "compressed": (zipped(zipfile.ZIP_DEFLATED), "is compressed; torch.save only stores"),
    "compressed by bzip2": (zipped(zipfile.ZIP_BZIP2), "is compressed"),
    "compressed by lzma": (zipped(zipfile.ZIP_LZMA), "is compressed|encrypted or of an unknown kind"),
    "a bomb": (bomb(), "'x/data/9' is compressed"),
    "encrypted": (changed(FIRST, flags=0x809), "is encrypted"),
    "strongly encrypted": (changed(FIRST, flags=0x848), "is encrypted"),
    "wrong checksum of the pickle": (damaged(PKL), "the checksum of 'x/data.pkl' is wrong"),
    "wrong checksum of a storage": (damaged(FIRST), "the checksum of 'x/data/0' is wrong"),
    "wrong checksum of the byte order": (damaged("x/byteorder"), "the checksum of 'x/byteorder' is wrong"),
    "wrong checksum in the directory": (changed(FIRST, crc=7, local={"flags": 0x808}), "checksum|contradicts"),
    "wrong checksum in the local header": (changed(FIRST, local={"crc": 7, "flags": 0x800}), CONTRADICTS),
    "local header: other name": (changed(FIRST, local={"name": b"x/data/1"}), CONTRADICTS),
    "local header: long name": (changed(FIRST, local={"name": b"x" * 65535}), "reaches into the next|contradicts"),
    "local header: other size": (changed(FIRST, local={"size": 8, "flags": 0x800}), CONTRADICTS),
    "local header: other flags": (changed(FIRST, flags=0x808, local={"flags": 0x800}), CONTRADICTS),
    "local header: compressed": (changed(FIRST, local={"method": 8}), CONTRADICTS),
    "local header elsewhere": (changed(FIRST, header=3), f"reaches into the next one|{CONTRADICTS}"),
    "local header in the directory": (changed(FIRST, header=len(ZIP) - 200), "lies outside the archive"),
    "local header beyond the file": (changed(FIRST, header=2**32 - 2), "lies outside the archive"),
    "members that overlap": (changed("x/data/1", header=ZIP.index(b"PK\x03\x04", 300)), "reaches into|contradicts"),
    "two members in one place": (changed("x/data/1", header=0), "'x/data/?.*' reaches into the next one|contradicts"),
    "member that reaches into the next": (changed(FIRST, size=2**20, packed=2**20), "reaches into the next one"),
    "member of 4 GB": (changed(FIRST, size=2**32 - 2, packed=2**32 - 2), "reaches into the next one"),
    "member of 8 EB": (changed(FIRST, **WIDE(2**63)), "reaches into the next one"),
    "member of 16 EB": (changed(FIRST, **WIDE(2**64 - 1)), "reaches into the next one"),
    "zip64 sizes missing": (changed(FIRST, size=0xFFFFFFFF, packed=0xFFFFFFFF), "lacks its zip64 sizes"),
    "zip64 sizes cut short": (
        changed(FIRST, size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=struct.pack("<2HQ", 1, 8, 400)),
        "lacks its zip64 sizes",
    ),
    "zip64 sizes beyond the extra field": (
        changed(FIRST, size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=struct.pack("<2H", 1, 16)),
        "lacks its zip64 sizes",
    ),
    "extra fields of 64 KB": (changed(FIRST, extra=bytes(65535)), "holds notes on its members"),
    "packed size other than size": (changed(FIRST, packed=7), "is compressed"),
    "a member twice": (writer.zip_archive([*MEMBERS, (FIRST, b"")]), "has the member 'x/data/0' twice"),
    "the pickle twice": (writer.zip_archive([*MEMBERS, (PKL, b"\x80\x02}.")]), "the member 'x/data.pkl' twice"),
    "two folders": (with_member("y/data/0"), "no data.pkl below one folder"),
    "a member without a folder": (with_member("data.pkl"), "no data.pkl below one folder"),
    "TorchScript": (with_member("x/constants.pkl"), "it holds no module"),
    "no pickle": (writer.zip_archive(MEMBERS[1:]), "no data.pkl below one folder"),
    "no members": (writer.zip_archive([]), "expected a checkpoint|no data.pkl"),
    "a storage missing": (writer.zip_archive([m for m in MEMBERS if m[0] != FIRST]), "is not in the archive"),
    "a storage too short": (
        writer.zip_archive([(name, data[:-4] if name == FIRST else data) for name, data in MEMBERS]),
        "storage x/data/0 has 396 bytes where 100 elements of float32 take 400",
    ),
    "a storage too long": (
        writer.zip_archive([(name, data + bytes(4) if name == FIRST else data) for name, data in MEMBERS]),
        "storage x/data/0 has 404 bytes",
    ),
    "big-endian": (
        writer.zip_archive([(name, b"big" if name == "x/byteorder" else data) for name, data in MEMBERS]),
        "written on a big-endian machine",
    ),
    "a byte order of 1 MB": (
        writer.zip_archive([(name, bytes(2**20) if name == "x/byteorder" else data) for name, data in MEMBERS]),
        "x/byteorder has 1048576 bytes; no checkpoint's has more than 16",
    ),
    "a pickle of 5 MB": (
        writer.zip_archive([(PKL, b"\x80\x02" + bytes(5 * 2**20)), *MEMBERS[1:]]),
        "x/data.pkl has 5242882 bytes",
    ),
    "something after the pickle": (
        writer.zip_archive([(PKL, MEMBERS[0][1] + b"\x80\x02}."), *MEMBERS[1:]]),
        "something follows the pickle",
    ),
    "11,001 members": (
        writer.zip_archive([*MEMBERS, *((f"x/{i}", b"") for i in range(11_001))], pad=False),
        "more than 11000 archive members",
    ),
    "zip64: more members than there are": (
        patched(ZIP, ZIP.index(b"PK\x06\x06") + 24, "<2Q", 2**40, 2**40),
        "two end records contradict each other|does not lie where",
    ),
    "zip64: other directory": (patched(ZIP, ZIP.index(b"PK\x06\x06") + 48, "<Q", 64), "contradict each other"),
    "zip64: long record": (patched(ZIP, ZIP.index(b"PK\x06\x06") + 4, "<Q", 2**40), "not one that torch.save writes"),
    "zip64: locator elsewhere": (patched(ZIP, ZIP.index(b"PK\x06\x07") + 8, "<Q", 0), "locator does not point"),
    "zip64: locator far away": (patched(ZIP, ZIP.index(b"PK\x06\x07") + 8, "<Q", 2**64 - 1), "locator does not point"),
    "zip64: several disks": (patched(ZIP, ZIP.index(b"PK\x06\x07") + 16, "<L", 3), "locator does not point"),
    "several disks": (patched(ZIP, len(ZIP) - 18, "<H", 1), "end record is not one that torch.save writes"),
    "other count": (patched(ZIP, len(ZIP) - 14, "<2H", 2, 2), "contradict each other"),
    "an entry more than counted": (
        patched(writer.zip_archive(MEMBERS, zip64=False), -14, "<2H", len(MEMBERS) - 1, len(MEMBERS) - 1),
        "the archive's directory does not have the length that it names",
    ),
    "directory one byte off": (
        patched(writer.zip_archive(MEMBERS, zip64=False), -6, "<L", ZIP.index(b"PK\x01\x02") + 1),
        "does not lie where its end record says",
    ),
    "directory of a sparse file": (big_directory, "the archive's directory has .* bytes; at most 4194304 are read"),
    "storage of a sparse file": (sparse, "most of bytes .* was never written"),
    **{
        f"member {name!r}": (with_member("x/data/9", name=name), ODD_NAME)
        for name in (
            b"../../evil", b"x/../../evil", b"/etc/evil", b"x//evil", b"x/./evil", b"x\\..\\evil", b"C:\\evil",
            b"x/evil\0.txt", b"x/evil\n", b"x/evil\x1b[2J", b"x/", b"", b"x/" + b"y" * 600, "x/\u202eevil".encode(),
        )
    },
    "member of a name that is not UTF-8": (with_member("x/data/9", name=b"x/\xff"), "a member whose name is not UTF-8"),
}  # fmt: skip

LEGACY = writer.torch_legacy(VALUE)
HEAD = len(writer.LEGACY_HEAD)
TAIL = struct.pack("<q", 100) + NUMBERS.tobytes()
AT = LEGACY.index(TAIL)
KEYS = pickles.pickled(["0", "1"])[0]
KEYS_AT = LEGACY.rindex(KEYS)


def with_keys(keys):
    return LEGACY[:KEYS_AT] + pickles.pickled(keys)[0] + LEGACY[KEYS_AT + len(KEYS) :]


def viewed(*view):
    return writer.torch_legacy({"x": pickles.Tensor(pickles.Storage("0", NUMBERS, view), (1,))})


OUTSIDE = "a view that lies outside its storage"
LEGACIES = {
    "cut in its head": (LEGACY[:20], "does not begin with a pickle protocol|it does not end|takes more"),
    "cut in its value": (LEGACY[:200], "it does not end|ends inside an instruction|a length of|does not end"),
    "cut in its keys": (LEGACY[: KEYS_AT + 5], "does not end|a length of"),
    "cut before its storages": (LEGACY[:AT], "would end at byte"),
    "cut in a storage": (LEGACY[: AT + 100], "storage '0' would end at byte"),
    "cut one byte": (LEGACY[:-1], "storage '1' would end at byte"),
    "something added": (LEGACY + b"\0", "1 bytes follow its last storage"),
    "another protocol": (LEGACY.replace(b"M\xe9\x03.", b"M\xea\x03."), "but is none"),
    "another magic number": (LEGACY.replace(b"\x50\x19.", b"\x50\x18."), "a pickle that torch.save did not write"),
    "facts that are a list": (
        writer.LEGACY_HEAD + pickles.pickled([])[0] + pickles.pickled(VALUE, legacy=True)[0] + KEYS,
        "but is none",
    ),
    "more elements than the tensors need": (
        patched(LEGACY, AT, "<q", 101),
        "has 101 elements where the tensors need 100",
    ),
    "2**63 - 1 elements": (patched(LEGACY, AT, "<q", 2**63 - 1), "elements where the tensors need 100"),
    "negative elements": (patched(LEGACY, AT, "<q", -1), "has -1 elements"),
    "a key missing": (with_keys(["0"]), "not the list of those that its tensors use"),
    "a key too many": (with_keys(["0", "1", "2"]), "not the list of those that its tensors use"),
    "a key twice": (with_keys(["0", "1", "0"]), "list of storages is malformed"),
    "keys that are numbers": (with_keys([0, 1]), "list of storages is malformed"),
    "keys that are lists": (with_keys([["0"], "1"]), "list of storages is malformed"),
    "keys that are no list": (with_keys({"0": 0}), "list of storages is malformed"),
    "view beyond the end": (viewed("1", 90, 11), OUTSIDE),
    "view before the beginning": (viewed("1", -1, 1), OUTSIDE),
    "view of -1 elements": (viewed("1", 0, -1), OUTSIDE),
    "view of 2**62 elements": (viewed("1", 2**62, 2**62), OUTSIDE),
    "view without elements for a tensor": (viewed("1", 3, 0), "lies outside its storage of 0"),
    "view in four parts": (viewed("1", 0, 1, 2), OUTSIDE),
    "view that is a number": (viewed(), OUTSIDE),
}

ALL = {
    **{f"zip: {name}": case for name, case in ZIPS.items()},
    **{f"legacy: {name}": case for name, case in LEGACIES.items()},
}


@functools.cache
def pickle_files(pickle: bytes) -> tuple[bytes, bytes]:
    """A pickle as the value of a zip and of a legacy checkpoint."""
    rest = LEGACY[HEAD : LEGACY.index(pickles.pickled(VALUE, legacy=True)[0])]
    return writer.zip_archive([("x/data.pkl", pickle)]), writer.LEGACY_HEAD + rest + pickle + pickles.pickled([])[0]
