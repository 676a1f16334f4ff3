"""The directory of a zip archive of stored members, as torch.save writes it, read without reading the members.

Source: PKWARE's APPNOTE 6.3, sections 4.3 and 4.5. What torch does and does not write decides what is accepted: members
are stored, never compressed or encrypted; sizes may lie in data descriptors and be zero in the local headers; local
headers are padded by an extra field; zip64 records may be there; there is no comment, and nothing after the end.
TorchScript's code is compressed. It is left out.
"""

import dataclasses
import re
import struct
import zlib

from sdjax.convert.containers.budget import Budget
from sdjax.convert.containers.mapped import MappedFile
from sdjax.convert.containers.stored import MAX_NAME
from sdjax.convert.errors import shown

MAX_DIRECTORY = 4 * 2**20  # bytes; 3,500 members take 0.3 MB
MAX_EXTRA = 256  # bytes of extra fields that the directory gives a member; zip64 sizes take 32

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_HARMLESS_FLAGS = 0x080E  # UTF-8 names, data descriptors, hints to a compressor
_DESCRIPTOR = 0x0008
_CODE = re.compile(r"[^/]+/code/")  # of TorchScript: compressed, and never read


@dataclasses.dataclass(slots=True, eq=False)
class Member:
    """A member's bytes, given out once their checksum was found right (a storage of stored.py)."""

    file: MappedFile
    name: str
    crc: int
    size: int
    header: int  # where its local header starts
    limit: int  # where the next member or the directory starts
    flags: int
    _start: int | None = None  # where its bytes start, once they were checked

    def view(self) -> memoryview:
        """Returns the bytes without copying. Raises CheckpointError where header or checksum are wrong."""
        if self._start is None:
            start = self._data_start()
            if zlib.crc32(self.file.view(start, start + self.size)) != self.crc:
                raise self.file.error(f"the checksum of {shown(self.name)} is wrong: the file is damaged")
            self._start = start
        return self.file.view(self._start, self._start + self.size)

    def release(self) -> None:
        if self._start is not None:
            self.file.release(self._start, self._start + self.size)

    def _data_start(self) -> int:
        try:
            signature, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack(
                self.file.view(self.header, self.header + _LOCAL.size)
            )
        except struct.error as error:
            raise self.file.error("the archive is cut short") from error
        name_start = self.header + _LOCAL.size
        start = name_start + name_length + extra_length
        name = self.file.bytes(name_start, name_start + min(name_length, MAX_NAME * 4))
        sizes_known = {self.size, 0xFFFFFFFF} | ({0} if flags & _DESCRIPTOR else set())
        crc_known = {self.crc} | ({0} if flags & _DESCRIPTOR else set())
        if (
            signature != b"PK\x03\x04"
            or flags != self.flags
            or method != 0
            or name != self.name.encode()
            or not {packed, size} <= sizes_known
            or crc not in crc_known
            or start + self.size > self.limit
        ):
            raise self.file.error(f"the header of {shown(self.name)} contradicts the archive's directory")
        return start


def members(file: MappedFile, budget: Budget) -> dict[str, Member]:
    """Returns the members of the zip archive by name, without TorchScript's code.

    Raises:
        CheckpointError: where the archive is cut short, or is not of the kind that torch.save writes.
    """
    count, start, stop = _directory(file)
    budget.spend("archive members", count, file.path)
    if stop - start > MAX_DIRECTORY:
        raise file.error(f"the archive's directory has {stop - start} bytes; at most {MAX_DIRECTORY} are read")
    found: dict[str, Member] = {}
    position = start
    for _ in range(count):
        member, position = _entry(file, position, start, stop)
        if member.name in found:
            raise file.error(f"the archive has the member {shown(member.name)} twice")
        if _CODE.match(member.name) is None:
            found[member.name] = member
    if position != stop:
        raise file.error("the archive's directory does not have the length that it names")
    limit = start
    for member in sorted(found.values(), key=lambda member: member.header, reverse=True):
        member.limit = limit
        if member.header + _LOCAL.size + len(member.name.encode()) + member.size > limit:
            raise file.error(f"the member {shown(member.name)} reaches into the next one")
        limit = member.header
    return found


def _directory(file: MappedFile) -> tuple[int, int, int]:
    """Returns the number of members, and where the central directory starts and ends."""
    end = file.size - _END.size
    if end < 0 or file.bytes(end, end + 4) != b"PK\x05\x06":
        raise file.error("the archive has no end record: it was cut short, or something was added to it")
    _, disk, first_disk, here, count, size, start, comment = _END.unpack(file.bytes(end, file.size))
    if disk or first_disk or here != count or comment:
        raise file.error("the archive's end record is not one that torch.save writes")
    stop = end
    locator = end - _LOCATOR.size
    if locator >= 0 and file.bytes(locator, locator + 4) == b"PK\x06\x07":
        _, disk, at, disks = _LOCATOR.unpack(file.bytes(locator, end))
        if disk or disks > 1 or at + _END64.size != locator:
            raise file.error("the archive's zip64 locator does not point to its end record")
        signature, length, _, _, disk, first_disk, here, count64, size64, start64 = _END64.unpack(
            file.bytes(at, locator)
        )
        if signature != b"PK\x06\x06" or length != _END64.size - 12 or disk or first_disk or here != count64:
            raise file.error("the archive's zip64 end record is not one that torch.save writes")
        for short, full, most in ((count, count64, 0xFFFF), (size, size64, 0xFFFFFFFF), (start, start64, 0xFFFFFFFF)):
            if short not in (full, most):
                raise file.error("the archive's two end records contradict each other")
        count, size, start, stop = count64, size64, start64, at
    if start + size != stop or count * _CENTRAL.size > size:
        raise file.error("the archive's directory does not lie where its end record says; it was cut short or changed")
    return count, start, stop


def _entry(file: MappedFile, position: int, start: int, stop: int) -> tuple[Member, int]:
    """Returns the member that the central directory describes at `position`, and the next position."""
    if position + _CENTRAL.size > stop:
        raise file.error("the archive's directory is cut short")
    entry = _CENTRAL.unpack(file.bytes(position, position + _CENTRAL.size))
    signature, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment_length = entry[:13]
    disk, header = entry[13], entry[16]
    name_start = position + _CENTRAL.size
    extra_start = name_start + name_length
    after = extra_start + extra_length + comment_length
    if signature != b"PK\x01\x02" or after > stop:
        raise file.error("the archive's directory is damaged")
    if extra_length > MAX_EXTRA or comment_length:
        raise file.error("the archive's directory holds notes on its members, which torch.save does not write")
    name = _member_name(file, file.bytes(name_start, name_start + min(name_length, 4 * MAX_NAME + 1)))
    packed, size, header = _wide(file, name, file.bytes(extra_start, extra_start + extra_length), packed, size, header)
    if flags & ~_HARMLESS_FLAGS or disk:
        raise file.error(f"the member {shown(name)} is encrypted or of an unknown kind")
    if (method != 0 or packed != size) and _CODE.match(name) is None:
        raise file.error(f"the member {shown(name)} is compressed; torch.save only stores: save the checkpoint again")
    if header >= start:
        raise file.error(f"the member {shown(name)} lies outside the archive")
    return Member(file, name, crc, size, header, start, flags), after


def _member_name(file: MappedFile, raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise file.error("the archive has a member whose name is not UTF-8") from error
    parts = name.split("/")
    if len(name) > MAX_NAME or not name.isprintable() or "\\" in name or not {"", ".", ".."}.isdisjoint(parts):
        raise file.error(f"the archive has a member of the name {shown(name)}, which torch.save does not write")
    return name


def _wide(file: MappedFile, name: str, extra: bytes, packed: int, size: int, header: int) -> tuple[int, int, int]:
    """Returns sizes and place with those that do not fit 32 bits taken from the zip64 field."""
    position = 0
    wide = None
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4 + length
        if kind == 1 and wide is None and position <= len(extra):
            wide = extra[position - length : position]
    values = []
    for value in (size, packed, header):  # the order of the field
        if value == 0xFFFFFFFF:
            if wide is None or len(wide) < 8:
                raise file.error(f"the member {shown(name)} lacks its zip64 sizes")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        values.append(value)
    size, packed, header = values
    return packed, size, header
