"""Hostile, damaged and foreign pictures: refused with one sentence, at once, and never half shown."""

import io
import os
import struct
import threading
import time
import zlib

import numpy as np
import picture_makers as make
import pytest
from PIL import Image

from sdjax import pictures
from sdjax.pictures.samples import MAX_BYTES

RNG = np.random.default_rng(5)
NOISE = RNG.integers(0, 256, (40, 40, 3)).astype(np.uint8)
PNG = make.png(NOISE, piece=500)
JPEG = make.saved(NOISE, quality=90)
GREY = make.saved(NOISE[..., 0], quality=90)
PROGRESSIVE = make.saved(NOISE, quality=90, progressive=True)
RESTARTS = make.saved(NOISE, quality=90, restart_marker_blocks=1)
WEBP = make.saved(NOISE, "WEBP", quality=90)
LOSSLESS = make.saved(NOISE, "WEBP", lossless=True)
EOI = b"\xff\xd9"


def pixels(rows: int) -> bytes:
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in NOISE[:rows]))


def png_of(header: bytes, *chunks: bytes) -> bytes:
    return make.MAGIC + header + b"".join(chunks) + make.chunk(b"IEND")


def sized(jpeg: bytes, height: int, width: int, marker: int = 0xC0) -> bytes:
    """A JPEG whose header states that size."""
    at = jpeg.index(bytes([0xFF, marker])) + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1
    return data.replace(old, new)


def scans(jpeg: bytes) -> list[int]:
    return [i for i in range(len(jpeg)) if jpeg[i : i + 2] == b"\xff\xda"]


def foreign():
    for kind in "GIF", "BMP", "TIFF", "ICO", "PPM", "PCX", "TGA", "JPEG2000", "PDF", "AVIF":
        file = io.BytesIO()
        Image.fromarray(NOISE).save(file, kind)
        name = {"ICO": "something", "PPM": "something", "PCX": "something", "TGA": "something", "JPEG2000": "JPEG 2000"}
        yield kind, file.getvalue(), f"this is .*{name.get(kind, kind)}"
    for name, data, what in [
        ("empty", b"", "empty"), ("one byte", b"\x89", "something else"), ("zeros", bytes(5000), "something else"),
        ("HTML", b"\n <!DOCTYPE html><html>", "markup"), ("SVG", b'\xef\xbb\xbf<svg width="9">', "markup"),
        ("archive", b"PK\3\4" + PNG, "ZIP"), ("a byte before a PNG", b" " + PNG, "something else"),
        ("line ends changed", PNG.replace(b"\r\n", b"\n"), "something else"),
        ("pointer", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"), ("text", b"spam" * 99, "something"),
        ("HEIC", b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"), ("film", b"\0\0\0\x18ftypisom" + bytes(99), "video"),
        ("sound", b"RIFF" + struct.pack("<I", 99) + b"WAVE" + bytes(99), "something else"),
    ]:  # fmt: skip
        yield name, data, what


def bad_pngs():
    head, rows = make.header(40, 40, 8, 2), make.chunk(b"IDAT", pixels(40))
    yield "nothing behind the mark", make.MAGIC, "truncated"
    yield "no pixels", png_of(head), "truncated: 0 of 4840"
    yield "half of the rows, well packed", png_of(head, make.chunk(b"IDAT", pixels(20))), "truncated: 2420 of 4840"
    yield "a byte too few", png_of(head, make.chunk(b"IDAT", zlib.compress(bytes(4839)))), "4839 of 4840"
    yield (
        "interlaced, a pass missing",
        png_of(make.header(40, 40, 8, 2, 1), make.chunk(b"IDAT", pixels(35))),
        "truncated",
    )
    yield "no end", PNG[:-12], "truncated"
    yield "higher than its rows", png_of(make.header(40, 80, 8, 2), rows), "truncated"
    yield "wider than its rows", png_of(make.header(80, 40, 8, 2), rows), "truncated"
    yield "deeper than its rows", png_of(make.header(40, 40, 16, 2), rows), "truncated"
    yield "no such filter", png_of(make.header(1, 1, 8, 0), make.chunk(b"IDAT", zlib.compress(b"\7\1"))), "damaged"
    yield "pixels that do not unpack", png_of(head, make.chunk(b"IDAT", b"spam" * 99)), "do not unpack"
    yield "wrong checksum", replaced(PNG, pixels(40)[100:104], b"spam"), "checksum of its IDAT"
    yield "header with a wrong checksum", png_of(make.chunk(b"IHDR", head[8:21], crc=0), rows), "checksum of its IHDR"
    yield "no header", png_of(rows), "header"
    yield "two headers", png_of(head, head, rows), "header"
    yield "short header", png_of(make.chunk(b"IHDR", head[8:20]), rows), "header"
    for depth, kind in (3, 0), (16, 3), (1, 2), (4, 6), (8, 5), (0, 0), (32, 2):
        yield f"{depth} bits of type {kind}", png_of(make.header(40, 40, depth, kind), rows), "no such kind"
    yield "interlaced in another way", png_of(make.header(40, 40, 8, 2, 2), rows), "no such kind"
    yield "no width", png_of(make.header(0, 40, 8, 2), rows), "no pixels"
    yield "no height", png_of(make.header(40, 0, 8, 2), rows), "no pixels"
    for width, height in (100_000, 100_000), (6325, 6325), (40_000_001, 1), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1):
        yield f"{width} x {height}", png_of(make.header(width, height, 1, 0), rows), "40 million"
    bomb = make.chunk(b"IDAT", zlib.compress(bytes(2**26), 1))
    yield "a bomb in a size that is allowed", png_of(make.header(6000, 6000, 16, 6), bomb), "truncated: 67108864"
    few = make.chunk(b"IDAT", zlib.compress(b"\0\0\1\2\3"))
    yield "no palette", png_of(make.header(4, 1, 8, 3), few), "no palette"
    yield "a colour that its palette lacks", png_of(
        make.header(4, 1, 8, 3), make.chunk(b"PLTE", bytes(9)), few), "colour 3 of a palette of 3"  # fmt: skip
    yield "a palette of 10 bytes", png_of(make.header(4, 1, 8, 3), make.chunk(b"PLTE", bytes(10)), few), "palette"
    yield "a palette of 257", png_of(make.header(4, 1, 8, 3), make.chunk(b"PLTE", bytes(771)), few), "palette"
    yield "something unknown needed", png_of(head, make.chunk(b"SPAM", b"x"), rows), r"unknown \(SPAM\)"
    parts = make.chunk(b"IDAT", pixels(40)[:99]), make.chunk(b"tEXt", b"a\0b"), make.chunk(b"IDAT", pixels(40)[99:])
    yield "pixels apart", png_of(head, *parts), "not together"
    yield "a chunk of 4 GB", make.MAGIC + head + struct.pack(">I", 2**32 - 1) + b"IDAT" + pixels(40), "no chunk"
    yield "a chunk of 2 GB", make.MAGIC + head + struct.pack(">I", 2**31 - 1) + b"IDAT" + pixels(40), "truncated"
    yield "a name of a chunk that is none", png_of(head, make.chunk(b"\0\1\2\3"), rows), "no chunk"
    yield "200001 chunks", png_of(head, make.chunk(b"spAm") * 200_001, rows), "200000 chunks"
    yield "a JPEG behind the mark", make.MAGIC + JPEG, "no chunk|truncated"


def bad_jpegs():
    yield "nothing behind the mark", b"\xff\xd8\xff", "truncated"
    yield "no end", JPEG[:-2], "truncated"
    yield "no scan", JPEG[: scans(JPEG)[0]] + EOI, "holds no pixels"
    yield "scan without a header", JPEG[:2] + JPEG[scans(JPEG)[0] :], "makes no sense"
    for name, data in ("colour", JPEG), ("grey", GREY), ("progressive", PROGRESSIVE), ("with restarts", RESTARTS):
        for cut in 3, 30, 300:
            yield f"{name}, ended {cut} bytes early", data[:-cut] + EOI, "missing|truncated|out of order|there"
    for cut in scans(PROGRESSIVE)[1:]:
        yield f"progressive, ended at a scan ({cut})", PROGRESSIVE[:cut] + EOI, "scans are missing"
    yield "higher than its scan", sized(JPEG, 80, 40), "a part of its pixels is missing"
    yield "a row of blocks more", sized(JPEG, 56, 40), "a part of its pixels is missing"
    yield "wider than its scan", sized(JPEG, 40, 80), "a part of its pixels is missing"
    yield "higher than its restarts", sized(RESTARTS, 80, 40), "9 of 15 stretches"
    yield "lower than its restarts", sized(RESTARTS, 16, 40), "out of order"
    yield "a restart lost", replaced(RESTARTS, b"\xff\xd3", b""), "out of order"
    yield "restarts changed", replaced(RESTARTS, b"\xff\xd3", b"\xff\xd5"), "out of order"
    yield "a mark in the middle", JPEG[:-200] + EOI + JPEG[-200:], "missing"
    yield "no height", sized(JPEG, 0, 40), "no pixels"
    yield "no width", sized(JPEG, 40, 0), "no pixels"
    yield "65500 x 65500", sized(JPEG, 65500, 65500), "40 million"
    yield (
        "two headers",
        make.inserted(JPEG, make.segment(0xC0, struct.pack(">BHHB3B", 8, 8, 8, 1, 1, 17, 0))),
        "damaged",
    )
    at = JPEG.index(b"\xff\xc0")
    for marker, what in (0xC3, "lossless"), (0xC9, "arithmetic"), (0xCA, "arithmetic"), (0xC5, "0xC5"), (0xDE, "0xDE"):
        yield f"kind {marker:x}", JPEG[: at + 1] + bytes([marker]) + JPEG[at + 2 :], what
    yield "12 bits", JPEG[: at + 4] + b"\x0c" + JPEG[at + 5 :], "12 bits"
    yield "2 channels", JPEG[: at + 9] + b"\2" + JPEG[at + 10 :], "2 channels"
    yield "sampled by 0", JPEG[: at + 11] + b"\0" + JPEG[at + 12 :], "no sense"
    yield "a scan of another channel", JPEG[: (s := scans(JPEG)[0]) + 5] + b"\x09" + JPEG[s + 6 :], "no sense"
    scan = PROGRESSIVE[scans(PROGRESSIVE)[0] : scans(PROGRESSIVE)[1]]
    yield "a thousand scans", PROGRESSIVE[:-2] + scan * 1000 + EOI, "more than 50 scans"
    yield "segment without a length", make.inserted(JPEG, b"\xff\xe1\0\0"), "no length"
    yield "segment longer than the file", make.inserted(GREY, b"\xff\xe1\xff\xff"), "truncated"
    yield "a million segments", make.inserted(JPEG, make.segment(0xFE, b"") * 10**6), "10000 segments"
    tables = JPEG.replace(b"\xff\xdb", b"\xff\xfe")
    yield "tables taken away", tables, "damaged|missing"


def bad_webps():
    frame = dict(make.riff_chunks(LOSSLESS))[b"VP8L"]
    lossy = dict(make.riff_chunks(WEBP))[b"VP8 "]

    def header(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
        sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        return b"VP8X", bytes([flags, 0, 0, 0]) + sides

    def placed(left: int, top: int, width: int, height: int, content: bytes) -> tuple[bytes, bytes]:
        numbers = (left // 2, top // 2, width - 1, height - 1, 100)
        part = struct.pack("<4sI", b"VP8L", len(content)) + content + b"\0" * (len(content) % 2)
        return b"ANMF", b"".join(n.to_bytes(3, "little") for n in numbers) + b"\0" + part

    anim = (b"ANIM", bytes(6))
    yield "nothing behind the mark", make.riff(), "holds no pixels"
    yield "header alone", make.riff(header(40, 40)), "holds no pixels"
    yield "short header", make.riff((b"VP8X", bytes(9)), (b"VP8L", frame)), "10 bytes"
    yield "canvas of 16384 x 16384", make.riff(header(16384, 16384), (b"VP8L", frame)), "40 million"
    yield "canvas of 2^24 x 2^24", make.riff(header(2**24, 2**24), (b"VP8L", frame)), "40 million"
    yield "another size than stated", make.riff(header(41, 40), (b"VP8L", frame)), "states .41, 40. pixels"
    large = b"\x2f" + struct.pack("<I", 16383 | 16383 << 14) + frame[5:]
    yield "lossless of 16384 x 16384", make.riff((b"VP8L", large)), "40 million"
    yield "large behind a small header", make.riff(header(40, 40), (b"VP8L", large)), "40 million"
    wide = lossy[:6] + struct.pack("<HH", 16383, 16383) + lossy[10:]
    yield "lossy of 16383 x 16383", make.riff((b"VP8 ", wide)), "40 million"
    yield (
        "lossy, higher than its rows",
        make.riff((b"VP8 ", lossy[:6] + struct.pack("<HH", 40, 400) + lossy[10:])),
        "damaged",
    )
    yield "lossy without a size", make.riff((b"VP8 ", lossy[:6] + bytes(4) + lossy[10:])), "no pixels"
    for cut in 10, len(lossy) // 2:
        yield f"lossy, {cut} less", make.riff((b"VP8 ", lossy[:-cut])), "damaged"
    for cut in 10, len(frame) // 2:
        yield f"lossless, {cut} less", make.riff((b"VP8L", frame[:-cut])), "damaged"
    whole = header(40, 40, 2)
    yield "animation without a frame", make.riff(whole, anim), "no frame"
    yield "frame out of the canvas", make.riff(whole, anim, placed(2, 0, 40, 40, frame)), "outside"
    yield "frame of another size", make.riff(whole, anim, placed(0, 0, 20, 40, frame)), "states .20, 40. pixels"
    yield "large frame", make.riff(whole, anim, placed(0, 0, 40, 40, large)), "40 million"
    yield "empty frame", make.riff(whole, anim, (b"ANMF", bytes(16))), "no frame"
    yield "animated outside of one", make.riff(header(40, 40, 0), anim, placed(0, 0, 40, 40, frame)), "no pixels"
    yield "chunk longer than the file", make.riff((b"VP8L", frame))[:-100], "truncated"
    size = struct.pack("<I", 2**32 - 1)
    yield "chunk of 4 GB", LOSSLESS[:16] + size + LOSSLESS[20:], "truncated"
    yield "file of 4 GB", LOSSLESS[:4] + size + LOSSLESS[8:], "truncated"


CASES = [
    pytest.param(data, what, id=f"{kind}: {name}")
    for kind, cases in (("foreign", foreign), ("PNG", bad_pngs), ("JPEG", bad_jpegs), ("WebP", bad_webps))
    for name, data, what in cases()
]


def refused(source, what: str | None = None, opener=pictures.open_picture) -> str:
    with pytest.raises(pictures.PictureError, match=what) as caught:
        opener(source)
    message = str(caught.value)
    assert message.count("\n") == 0
    assert len(message) < 300
    return message


@pytest.mark.parametrize(("data", "what"), CASES)
def test_bad_files_are_refused_at_once_with_one_sentence(data, what):
    start = time.process_time()
    refused(data, what)
    assert time.process_time() - start < 60
    refused(data, what, pictures.open_mask)
    refused(data, what, pictures.open_map)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "GREY", "PROGRESSIVE", "RESTARTS", "WEBP", "LOSSLESS"])
def test_no_beginning_of_a_file_is_taken_for_the_whole(name):
    data = globals()[name]
    for length in sorted({*range(0, len(data), 97), *range(len(data) - 20, len(data))}):
        refused(data[:length])


@pytest.mark.parametrize("name", ["JPEG", "GREY", "PROGRESSIVE", "RESTARTS"])
def test_a_jpeg_that_is_cut_and_ended_is_not_shown_in_grey(name):
    data = globals()[name]
    for length in range(scans(data)[0] + 16, len(data) - 2, 53):
        refused(data[:length].rstrip(b"\xff") + EOI)


def test_a_webp_that_is_cut_and_stated_so_is_refused():
    for name, data in make.riff_chunks(WEBP) + make.riff_chunks(LOSSLESS):
        for length in range(0, len(data) - 10, 61):
            refused(make.riff((name, data[:length])))


@pytest.mark.parametrize("source", [
    None, 7, 1.5, object(), [[1, 2], [3, 4]], {}, np.zeros((4, 4), np.float32), np.zeros((4, 4), np.int64),
    np.zeros((4, 4), np.uint16), np.zeros(4, np.uint8), np.zeros((1, 4, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8),
    np.zeros((4, 0, 3), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 5), np.uint8), np.uint8(7),
    np.array(["a"]), np.array([None]), np.broadcast_to(np.uint8(0), (6400, 6400)),
], ids=lambda v: f"{type(v).__name__}{getattr(v, 'shape', '')}")  # fmt: skip
def test_what_is_no_picture_is_refused(source):
    refused(source)


@pytest.mark.parametrize("image", [
    lambda: Image.new("1", (6400, 6400)), lambda: Image.new("RGB", (0, 5)), lambda: Image.new("F", (3, 4)),
    lambda: Image.new("I", (3, 4), -1), lambda: Image.new("I", (3, 4), 65536),
    lambda: Image.open(io.BytesIO(JPEG[:-500])), lambda: Image.open(io.BytesIO(PNG[:2000])),
])  # fmt: skip
def test_bad_pillow_images_are_refused(image):
    refused(image(), "Pillow image")


def test_a_closed_pillow_image_is_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    with Image.open(path) as image:
        pass
    refused(image)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        pictures.open_picture(tmp_path / "absent.png")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        pictures.open_picture(tmp_path / "file" / "a.png")
    refused(tmp_path, "folder")
    refused("a\0b.png")
    refused("\ud800.png")
    refused("/dev/zero", "device")
    message = refused(path := tmp_path / "file")
    assert message.startswith(str(path))
    with open(large := tmp_path / "large.png", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    refused(large, "at most 268435456")
    (tmp_path / "a\nb\x1b[1m.png").write_bytes(b"spam")
    assert "\x1b" not in refused(tmp_path / "a\nb\x1b[1m.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    thread = threading.Thread(target=refused, args=(tmp_path / "pipe.png", "device"), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
