"""Reads PNG files (W3C, Portable Network Graphics). Checks checksums and missing rows, and keeps 16 bits."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image as PillowImage

from sdjax.pictures.samples import (
    MAX_CHUNKS,
    MAX_PROFILE,
    PictureError,
    Samples,
    check_side,
    orientation,
    trailing,
)

MAGIC = b"\x89PNG\r\n\x1a\n"

# (depth, colour type) -> Pillow's mode and the raw modes to decode in: two of them where high and low bytes of 16 bits
# are read apart (Pillow itself keeps the high ones alone, of everything but grey). (16, 4) comes as four bytes.
_PNG_MODES = {
    (1, 0): ("1", "1"), (2, 0): ("L", "L;2"), (4, 0): ("L", "L;4"), (8, 0): ("L", "L"), (16, 0): ("I;16", "I;16B"),
    (8, 2): ("RGB", "RGB"), (16, 2): ("RGB", "RGB;16B", "RGB;16L"),
    (1, 3): ("P", "P;1"), (2, 3): ("P", "P;2"), (4, 3): ("P", "P;4"), (8, 3): ("P", "P"),
    (8, 4): ("LA", "LA"), (16, 4): ("RGBA", "RGBA"),
    (8, 6): ("RGBA", "RGBA"), (16, 6): ("RGBA", "RGBA;16B", "RGBA;16L"),
}  # fmt: skip
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """Yields name, content and end of every chunk as far as IEND."""
    view, at = memoryview(data), len(MAGIC)
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            raise PictureError("the PNG is truncated")
        length, name = struct.unpack_from(">I4s", data, at)
        if not name.isalpha() or length > 2**31 - 1:
            raise PictureError(f"the PNG is damaged: {name!r} is no chunk")
        end = at + 12 + length
        if end > len(data):
            raise PictureError("the PNG is truncated")
        if name[0] & 0x20 == 0 or name == b"tRNS":  # critical ones
            if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
                raise PictureError(f"the PNG is damaged: the checksum of its {name.decode()} is wrong")
            if name not in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"):
                raise PictureError(f"the PNG needs something unknown ({name.decode()})")
        yield name, view[at + 8 : end - 4], end
        at = end
        if name == b"IEND":
            return
    raise PictureError(f"the PNG has more than {MAX_CHUNKS} chunks")


def read(data: bytes) -> Samples:
    found: dict[bytes, bytes] = {}
    pixels: list[memoryview] = []
    last, stop = b"", 0
    for name, content, end in chunks(data):
        if (name == b"IHDR") != (not last) or (name == b"IHDR" and len(content) != 13):
            raise PictureError("the PNG is damaged: its header is not the first chunk, or not of 13 bytes")
        if name == b"IHDR":
            width, height, depth, kind, *methods = struct.unpack(">IIBBBBB", content)
            check_side(width, height)
            if (depth, kind) not in _PNG_MODES or methods[:2] != [0, 0] or methods[2] > 1:
                raise PictureError(f"the PNG is damaged: no such kind of pixels ({depth} bits, type {kind})")
        elif name == b"IDAT":
            if pixels and last != b"IDAT":
                raise PictureError("the PNG is damaged: its pixels are not together")
            pixels.append(content)
        elif name in (b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"gAMA", b"sRGB", b"cICP", b"acTL") and name not in found:
            found[name] = bytes(content)
        last, stop = name, end
    stream = b"".join(pixels)
    interlaced = methods[2]
    _check_rows(stream, _png_size(width, height, depth * _PNG_CHANNELS[kind], interlaced))
    mode, *raws = _PNG_MODES[depth, kind]
    parts = [np.asarray(PillowImage.frombytes(mode, (width, height), stream, "zip", raw, interlaced)) for raw in raws]
    samples = parts[0].astype(np.uint8) * 255 if depth == 1 and kind == 0 else parts[0]
    if depth == 16 and kind != 0:
        high, low = parts if len(parts) == 2 else (samples[..., ::2], samples[..., 1::2])
        samples = high.astype(np.uint16) << 8 | low
    samples = samples.reshape(height, width, -1)
    notices = trailing(data, stop) + _png_notices(found)
    transparency = found.get(b"tRNS", b"")
    alpha = None
    if kind == 3:
        samples, alpha = _look_up(samples[..., 0], found.get(b"PLTE", b""), transparency)
    elif kind in (4, 6):
        samples, alpha = samples[..., :-1], samples[..., -1]
    elif len(transparency) == 2 * samples.shape[-1]:
        key = np.frombuffer(transparency, ">u2") & (2**depth - 1)  # one transparent colour
        key = key * (255 // (2**depth - 1)) if depth < 8 else key
        top = np.iinfo(samples.dtype).max
        alpha = np.where(np.all(samples == key.astype(samples.dtype), axis=-1), 0, top).astype(samples.dtype)
    profile = _inflate(found[b"iCCP"]) if b"iCCP" in found else None
    if b"iCCP" in found and profile is None:
        notices.append("damaged colour profile ignored")
    return Samples(samples, alpha, profile, orientation(found.get(b"eXIf", b"")), tuple(notices))


def _png_size(width: int, height: int, bits: int, interlaced: int) -> int:
    """Returns the bytes of all rows, each with its filter's byte; Adam7's seven passes if interlaced."""
    passes = [(0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2)]
    total = 0
    for left, step_x, top, step_y in passes if interlaced else [(0, 1, 0, 1)]:
        w, h = -(-(width - left) // step_x), -(-(height - top) // step_y)
        total += h * (1 + -(-w * bits // 8)) if w > 0 and h > 0 else 0
    return total


def _check_rows(stream: bytes, expected: int) -> None:
    """Raises PictureError unless a zlib stream has `expected` bytes. Pillow would leave missing parts black."""
    inflate = zlib.decompressobj()
    view, got = memoryview(stream), 0
    for at in range(0, len(stream), 2**16):
        rest = view[at : at + 2**16]
        while len(rest) and got < expected and not inflate.eof:
            try:
                got += len(inflate.decompress(rest, 2**20))
            except zlib.error as error:
                raise PictureError(f"the PNG is damaged: its pixels do not unpack ({error})") from error
            rest = memoryview(inflate.unconsumed_tail)
        if got >= expected:
            return
    raise PictureError(f"the PNG is truncated: {got} of {expected} bytes of pixels are there")


def _look_up(index: np.ndarray, palette: bytes, transparency: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    count = len(palette) // 3
    if not 1 <= count <= 256 or len(palette) % 3:
        raise PictureError("the PNG is damaged: it has no palette, or one of a wrong size")
    if index.max() >= count:
        raise PictureError(f"the PNG is damaged: it uses colour {index.max()} of a palette of {count}")
    colours = np.frombuffer(palette, np.uint8).reshape(count, 3)[index]
    if not transparency:
        return colours, None
    table = np.full(256, 255, np.uint8)
    table[: len(transparency[:256])] = np.frombuffer(transparency[:256], np.uint8)
    return colours, table[index]


def _png_notices(found: dict[bytes, bytes]) -> list[str]:
    notices = []
    if len(animation := found.get(b"acTL", b"")) >= 4 and (frames := struct.unpack_from(">I", animation)[0]) > 1:
        notices.append(f"animation of {frames} frames: its still picture taken")
    if b"cICP" in found and len(found[b"cICP"]) == 4 and found[b"cICP"][:2] != b"\x01\x0d":  # 1, 13: sRGB
        notices.append("colour space stated by numbers (cICP) not applied")
    elif b"gAMA" in found and len(found[b"gAMA"]) == 4 and not found.keys() & {b"sRGB", b"iCCP", b"cICP"}:
        gamma = struct.unpack(">I", found[b"gAMA"])[0]
        if not 43_000 < gamma < 48_000:  # 45,455 is sRGB's
            notices.append(f"stated gamma of {gamma / 100_000:.4g} not applied")
    return notices


def _inflate(chunk: bytes) -> bytes | None:
    """Returns the profile of an iCCP chunk, None if there is something wrong with it."""
    _, separator, rest = chunk.partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(rest[1:], MAX_PROFILE)
    except zlib.error:
        return None
    return profile if separator and rest[:1] == b"\0" and inflate.eof else None
