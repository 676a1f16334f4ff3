"""The texts in a picture file: chunks of a PNG, EXIF of a JPEG or WebP. Sizes and numbers are limited."""

import struct
import zlib
from collections.abc import Iterator

from sdjax.pictures import png
from sdjax.pictures.samples import MAX_BYTES, MAX_CHUNKS, PictureError

MAX_TEXT = 2**22  # bytes of one text, unpacked: a large ComfyUI workflow has some 100,000
MAX_TEXTS = 100
MAX_ENTRIES = 1000  # of an EXIF directory

IMAGE_DESCRIPTION, MAKE, MODEL, EXIF_DIRECTORY, USER_COMMENT = 0x010E, 0x010F, 0x0110, 0x8769, 0x9286
NAMES = {IMAGE_DESCRIPTION: "ImageDescription", MAKE: "Make", MODEL: "Model", USER_COMMENT: "UserComment"}


def read_texts(data: bytes) -> dict[str, str]:
    """Returns the texts of a file by keyword. If a keyword is there several times, the first one counts.

    PNG: tEXt, zTXt, iTXt and eXIf chunks. JPEG and WebP: the EXIF entries in NAMES. ComfyUI writes "prompt:..." into an
    entry of a WebP's EXIF; that part becomes the keyword. Raises PictureError for a damaged file or another format.
    """
    if len(data) > MAX_BYTES:
        raise PictureError(f"the file has {len(data)} bytes, and at most {MAX_BYTES} are read")
    if data.startswith(png.MAGIC):
        return _of_png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _of_exif(_exif_of_jpeg(data))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _of_exif(_exif_of_webp(data))
    raise PictureError("settings are read from PNG, JPEG and WebP files, and this is none")


def _of_png(data: bytes) -> dict[str, str]:
    texts: dict[str, str] = {}
    exif = b""
    for name, content, _ in png.chunks(data):
        if name == b"eXIf" and not exif:
            exif = bytes(content[:MAX_TEXT])
        if name not in (b"tEXt", b"zTXt", b"iTXt") or len(texts) >= MAX_TEXTS:
            continue
        keyword, found, rest = bytes(content).partition(b"\0")
        text = _text(name, rest) if found and len(keyword) <= 79 else None
        if text is not None:
            texts.setdefault(keyword.decode("latin-1"), text)
    return {**_of_exif(exif), **texts}


def _text(name: bytes, rest: bytes) -> str | None:
    """Returns the text of a chunk behind its keyword; None if it is damaged or too long."""
    if name == b"tEXt":
        return rest.decode("latin-1") if len(rest) <= MAX_TEXT else None
    if name == b"zTXt":
        unpacked = _unpack(rest[1:])
        return None if unpacked is None else unpacked.decode("latin-1")
    packed, _, rest = rest[:1], rest[1:2], rest[2:]
    _, _, rest = rest.partition(b"\0")  # language
    _, _, rest = rest.partition(b"\0")  # translated keyword
    content = _unpack(rest) if packed == b"\1" else rest
    return None if content is None or len(content) > MAX_TEXT else content.decode("utf-8", "replace")


def _unpack(packed: bytes) -> bytes | None:
    inflate = zlib.decompressobj()
    try:
        content = inflate.decompress(packed, MAX_TEXT)
    except zlib.error:
        return None
    return content if inflate.eof else None


def _exif_of_jpeg(data: bytes) -> bytes:
    at = 2
    for _ in range(MAX_CHUNKS):
        if at + 4 > len(data) or data[at] != 0xFF:
            return b""
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in (0xDA, 0xD9):  # the scan, the end
            return b""
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return data[at + 10 : at + 2 + length]
        at += 2 + length
    return b""


def _exif_of_webp(data: bytes) -> bytes:
    at = 12
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return b""
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF":
            return data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
        at += 8 + length + length % 2
    return b""


def _of_exif(exif: bytes) -> dict[str, str]:
    """Returns the texts of an EXIF block."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return {}
    texts: dict[str, str] = {}
    directories = [struct.unpack_from(f"{order}I", exif, 4)[0]]
    for start in directories:  # grows by the Exif directory, once
        for tag, value in _entries(exif, order, start):
            if tag == EXIF_DIRECTORY and len(directories) == 1 and len(value) == 4:
                directories.append(struct.unpack(f"{order}I", value)[0])
            elif tag == USER_COMMENT:
                texts.setdefault("UserComment", _comment(value))
            elif tag in NAMES:
                text = value.split(b"\0")[0].decode("utf-8", "replace")
                word, colon, rest = text.partition(":")
                if colon and word in ("prompt", "workflow"):  # ComfyUI's
                    texts.setdefault(word, rest)
                else:
                    texts.setdefault(NAMES[tag], text)
    return texts


def _entries(exif: bytes, order: str, start: int) -> Iterator[tuple[int, bytes]]:
    """Yields tag and bytes of the entries of a directory: texts, undefined bytes and 32-bit numbers."""
    if start + 2 > len(exif):
        return
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for i in range(min(count, MAX_ENTRIES)):
        at = start + 2 + 12 * i
        if at + 12 > len(exif):
            return
        tag, kind, number = struct.unpack_from(f"{order}HHI", exif, at)
        size = {1: 1, 2: 1, 4: 4, 7: 1}.get(kind, 0) * number
        if not 0 < size <= MAX_TEXT:
            continue
        place = at + 8 if size <= 4 else struct.unpack_from(f"{order}I", exif, at + 8)[0]
        yield tag, exif[place : place + size]


def _comment(value: bytes) -> str:
    """Returns the text of a UserComment: eight bytes name its encoding."""
    kind, content = value[:8], value[8:]
    if kind != b"UNICODE\0":
        return content.decode("utf-8", "replace").rstrip("\0")
    # The standard does not say which byte first, and tools differ: most characters of a prompt are ASCII
    big = content[::2].count(0) >= content[1::2].count(0)
    return content.decode("utf-16-be" if big else "utf-16-le", "replace").rstrip("\0")
