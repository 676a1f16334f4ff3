"""Picture files written byte by byte, so that what they hold is known without reading them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

MAGIC = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
RNG = np.random.default_rng(4)
RGB = RNG.integers(0, 256, (11, 9, 3))
DEEP = RNG.integers(0, 65536, (11, 9, 4))
DEEP[0, 0] = 0x00FF, 0x80FE, 0xFF7F, 0xFFFF  # here the high byte alone is another level than the rounded value
ALPHA = RNG.integers(0, 256, (11, 9))
COLOURS = RNG.integers(0, 256, (256, 3))
ADAM7 = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))  # y, x


def chunk(name: bytes, data: bytes = b"", crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def header(width: int, height: int, depth: int, kind: int, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlace))


def pack(row: np.ndarray, depth: int) -> bytes:
    """The bytes of a row of samples."""
    row = row.reshape(-1)
    if depth == 16:
        return row.astype(">u2").tobytes()
    if depth == 8:
        return row.astype(np.uint8).tobytes()
    bits = (row[:, None] >> np.arange(depth)[::-1]) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1)).tobytes()


def filtered(rows: list[bytes], step: int, kinds: list[int]) -> bytes:
    """Rows with PNG's filters 0 to 4 (none, sub, up, average, Paeth), `step` bytes a pixel."""
    out, above = b"", bytes(len(rows[0])) if rows else b""
    for row, kind in zip(rows, kinds):
        coded = bytearray([kind])
        for i, value in enumerate(row):
            a, b, c = row[i - step] if i >= step else 0, above[i], above[i - step] if i >= step else 0
            p = a + b - c
            paeth = min((a, b, c), key=lambda v: (abs(p - v), (a, b, c).index(v)))
            coded.append((value - (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
        out, above = out + bytes(coded), row
    return out


def png(
    samples, depth: int = 8, kind: int = 2, *, interlace: bool = False, filters: int | None = 0, palette=None,
    transparency: bytes = b"", before: bytes = b"", after: bytes = b"", piece: int | None = None,
) -> bytes:  # fmt: skip
    """A PNG of samples [h, w, channels]; chunks `before` and `after` the pixels; IDATs of `piece` bytes."""
    samples = np.asarray(samples).reshape(np.shape(samples)[0], np.shape(samples)[1], -1)
    assert samples.shape[-1] == CHANNELS[kind]
    height, width = samples.shape[:2]
    parts = [samples[y::dy, x::dx] for y, dy, x, dx in ADAM7] if interlace else [samples]
    raw = b""
    for part in parts:
        if part.size:
            rows = [pack(row, depth) for row in part]
            kinds = [i % 5 for i in range(len(rows))] if filters is None else [filters] * len(rows)
            raw += filtered(rows, max(1, depth * CHANNELS[kind] // 8), kinds)
    stream = zlib.compress(raw)
    pieces = [stream[i : i + piece] for i in range(0, len(stream), piece)] if piece else [stream]
    colours = chunk(b"PLTE", bytes(np.asarray(palette, np.uint8).reshape(-1))) if palette is not None else b""
    return (
        MAGIC + header(width, height, depth, kind, int(interlace)) + before + colours
        + (chunk(b"tRNS", transparency) if transparency else b"")
        + b"".join(chunk(b"IDAT", p) for p in pieces) + after + chunk(b"IEND")
    )  # fmt: skip


def saved(pixels, kind: str = "JPEG", mode: str | None = None, **options) -> bytes:
    """A file that Pillow writes of an array."""
    file = io.BytesIO()
    image = Image.fromarray(np.asarray(pixels, np.uint8)) if mode is None else mode_image(pixels, mode)
    image.save(file, kind, **options)
    return file.getvalue()


def mode_image(pixels, mode: str) -> Image.Image:
    pixels = np.ascontiguousarray(pixels, np.uint8)
    return Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), pixels.tobytes())


def blocks(values) -> np.ndarray:
    """Each value, or colour, as a flat square of 16 x 16, which a JPEG of quality 100 keeps but for rounding."""
    return np.asarray(values, np.uint8).repeat(16, 0).repeat(16, 1)


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """An EXIF block (without its `Exif` mark) that states an orientation, after two other entries."""
    value = struct.pack(f"{order}I" if kind == 4 else f"{order}HH", *([orientation] if kind == 4 else [orientation, 0]))
    entries = [(0x010E, 2, 1, b"a\0\0\0"), (0x0110, 2, 1, b"b\0\0\0"), (0x0112, kind, 1, value)]
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    listed = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    return start + struct.pack(f"{order}H", len(entries)) + listed + bytes(4)


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def inserted(jpeg: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments after its start."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(struct.pack("<4sI", name, len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def riff_chunks(webp: bytes) -> list[tuple[bytes, bytes]]:
    at, out = 12, []
    while at < len(webp):
        name, length = struct.unpack_from("<4sI", webp, at)
        out.append((name, webp[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return out


# The primaries of sRGB in ICC's D50 space (Bradford), as in every sRGB profile
RED, GREEN, BLUE = (0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)


def profile(space: bytes = b"RGB ", primaries=(RED, GREEN, BLUE), gamma: float = 1.0) -> bytes:
    """An ICC profile, version 2, of three primaries, or of grey, and a power law."""

    def xyz(values) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    white = (0.9642, 1.0, 0.8249)
    tags = {b"wtpt": xyz(white), b"cprt": b"text\0\0\0\0none\0\0\0\0",
            b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"a\0" + bytes(80)}  # fmt: skip
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {name: xyz(values) for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries)}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, at + len(body), len(data))
        body += data
    size = at + len(body)
    return (
        struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02100000, b"mntr", space, b"XYZ ") + bytes(12) + b"acsp"
        + bytes(28) + xyz(white)[8:] + bytes(48) + table + body
    )  # fmt: skip


def iccp(data: bytes) -> bytes:
    return chunk(b"iCCP", b"name\0\0" + zlib.compress(data))


def grey(values) -> np.ndarray:
    return np.repeat(np.asarray(values)[..., None], 3, -1)


def rounded(values, scale: float) -> np.ndarray:
    return np.rint(np.asarray(values, np.float64) / scale)


def laid(rgb, alpha, top: int = 255, background: float = 255) -> np.ndarray:
    """alpha rgb + (1 - alpha) background in levels of 255."""
    cover = np.asarray(alpha, np.float64)[..., None] / top
    return np.rint((cover * np.asarray(rgb, np.float64) / top + (1 - cover) * background / 255) * 255)


def index(depth: int) -> np.ndarray:
    return np.arange(99).reshape(11, 9) * 5 % 2**depth


def cmyk(*inks) -> np.ndarray:
    c, m, y, k = (np.asarray(ink, np.float64) for ink in inks)
    return np.stack([(255 - ink) * (255 - k) / 255 for ink in (c, m, y)], -1)


def animated(kind: str, **options) -> bytes:
    first, *more = (Image.fromarray(np.full((5, 6, 3), level, np.uint8)) for level in (200, 100, 0))
    file = io.BytesIO()
    first.save(file, kind, save_all=True, append_images=more, **options)
    return file.getvalue()
