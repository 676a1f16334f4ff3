"""Awkward pictures that are taken: every one with its pixels known from how the file was written."""

import io
import struct
import time
import zlib

import numpy as np
import picture_makers as make
import pytest
from picture_makers import ALPHA, COLOURS, DEEP, RGB, animated, cmyk, grey, index, laid, rounded
from PIL import Image

from sdjax import pictures

FLAT = [[[200, 30, 60], [10, 120, 240]], [[255, 255, 255], [0, 0, 0]]]  # squares of a JPEG
GREYS = [[0, 37, 128], [200, 254, 255]]
TURNED = {
    1: [[1, 2, 3], [4, 5, 6]], 2: [[3, 2, 1], [6, 5, 4]], 3: [[6, 5, 4], [3, 2, 1]], 4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]], 6: [[4, 1], [5, 2], [6, 3]], 7: [[6, 3], [5, 2], [4, 1]], 8: [[3, 6], [2, 5], [1, 4]],
}  # EXIF 2.32: which corner of the scene is the first stored pixel; written out by hand  # fmt: skip


def encoded(light) -> np.ndarray:
    """sRGB's transfer function (IEC 61966-2-1): light in [0, 1] to levels."""
    light = np.asarray(light, np.float64)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def without(jpeg: bytes, marker: int) -> bytes:
    """A JPEG less its first segment of that kind."""
    at = jpeg.index(bytes([0xFF, marker]))
    return jpeg[:at] + jpeg[at + 2 + struct.unpack_from(">H", jpeg, at + 2)[0] :]


def png_cases():
    for depth in 1, 2, 4, 8:
        for interlace in False, True:
            name = f"{depth} bits{' interlaced' * interlace}"
            v = index(depth)
            yield f"grey {name}", make.png(v, depth, 0, interlace=interlace), grey(v * (255 // (2**depth - 1))), ""
            yield (
                f"palette {name}",
                make.png(v, depth, 3, palette=COLOURS[: 2**depth], interlace=interlace),
                COLOURS[v],
                "",
            )
    for interlace in False, True:
        for filters in 0, None:
            tail = " interlaced" * interlace + " every filter" * (filters is None)
            how = {"interlace": interlace, "filters": filters}
            yield f"rgb{tail}", make.png(RGB, **how), RGB, ""
            both = np.dstack([RGB, ALPHA])
            yield f"rgba{tail}", make.png(both, 8, 6, **how), laid(RGB, ALPHA), "transparency"
            la = np.dstack([RGB[..., 0], ALPHA])
            yield f"la{tail}", make.png(la, 8, 4, **how), laid(grey(RGB[..., 0]), ALPHA), "transparency"
            deep = DEEP[..., 3]
            yield f"grey 16{tail}", make.png(DEEP[..., 0], 16, 0, **how), grey(rounded(DEEP[..., 0], 257)), "16 bits"
            yield f"rgb 16{tail}", make.png(DEEP[..., :3], 16, 2, **how), rounded(DEEP[..., :3], 257), "16 bits"
            yield f"rgba 16{tail}", make.png(DEEP, 16, 6, **how), laid(DEEP[..., :3], deep, 65535), "16 bits"
            yield (
                f"la 16{tail}",
                make.png(DEEP[..., 2:], 16, 4, **how),
                laid(grey(DEEP[..., 2]), deep, 65535),
                "16 bits",
            )
    few = bytes([0, 128, 255, 7])  # fewer than the palette has: the others are opaque
    alpha = np.array([*few, *[255] * 12])[index(4)]
    yield "palette with opacities", make.png(index(4), 4, 3, palette=COLOURS[:16], transparency=few), \
        laid(COLOURS[index(4)], alpha), "transparency"  # fmt: skip
    yield "one grey transparent", make.png(index(2), 2, 0, transparency=b"\0\2"), \
        grey(np.where(index(2) == 2, 255, index(2) * 85)), "transparency"  # fmt: skip
    yield (
        "one 1-bit grey transparent",
        make.png(index(1), 1, 0, transparency=b"\0\0"),
        grey(index(1) * 0 + 255),
        "transp",
    )
    yield "one colour transparent", make.png(RGB, transparency=struct.pack(">3H", *RGB[3, 4])), \
        np.where((RGB[3, 4] == RGB).all(-1, keepdims=True), 255, RGB), "transparency"  # fmt: skip
    near = DEEP[:2, :2, :3].copy()
    near[0, 0], near[1, 1] = (0x1234, 0x5678, 0x9ABC), (0x1235, 0x5678, 0x9ABC)  # the same high bytes
    expected = rounded(near, 257)
    expected[0, 0] = 255
    yield (
        "one 16-bit colour transparent",
        make.png(near, 16, 2, transparency=bytes.fromhex("123456789abc")),
        expected,
        "16",
    )
    yield "IDATs of one byte", make.png(RGB, piece=1), RGB, ""
    yield "empty IDATs", make.png(RGB, before=make.chunk(b"IDAT") * 3), RGB, ""
    bomb = make.chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24), 1)) * 12
    yield "text that unpacks to 192 MiB", make.png(RGB, before=bomb, after=bomb), RGB, ""
    yield "text that is no text", make.png(RGB, before=make.chunk(b"iTXt", b"\xff\0\7") + make.chunk(b"tEXt")), RGB, ""
    yield "broken checksum of a comment", make.png(RGB, before=make.chunk(b"tEXt", b"a\0b", crc=1)), RGB, ""
    yield "time, physical size, unknown chunks", make.png(
        RGB, before=make.chunk(b"pHYs", bytes(9)) + make.chunk(b"tIME", b"") + make.chunk(b"spAm", b"x" * 70000)
    ), RGB, ""  # fmt: skip
    yield "trailing bytes", make.png(RGB) + bytes(1000), RGB, "1000 bytes after the end"
    yield "archive behind", make.png(RGB) + b"PK\3\4<?php system('x') ?>", RGB, "bytes after the end"
    frames = make.chunk(b"fcTL", struct.pack(">5I2H2B", 0, 9, 11, 0, 0, 1, 1, 0, 0))
    second = make.chunk(b"fcTL", bytes(26)) + make.chunk(b"fdAT", b"\0\0\0\2nonsense")
    acts = make.chunk(b"acTL", struct.pack(">II", 2, 0))
    yield "animated PNG", make.png(RGB, before=acts + frames, after=second), RGB, "animation of 2 frames"
    yield "animated PNG by Pillow", animated("PNG"), np.full((5, 6, 3), 200), "animation of 3 frames"
    yield "twice animated PNG", make.png(RGB, before=acts * 2), RGB, "animation"
    yield "rows too many", make.MAGIC + make.header(9, 11, 8, 2) + make.chunk(
        b"IDAT", zlib.compress(b"".join(b"\0" + make.pack(row, 8) for row in RGB) + bytes(2**26))
    ) + make.chunk(b"IEND"), RGB, ""  # fmt: skip
    yield "gamma of 1", make.png(RGB, before=make.chunk(b"gAMA", struct.pack(">I", 100_000))), RGB, "gamma of 1 not"
    yield "gamma of sRGB", make.png(RGB, before=make.chunk(b"gAMA", struct.pack(">I", 45_455))), RGB, ""
    yield "HDR colours", make.png(RGB, before=make.chunk(b"cICP", bytes([9, 16, 0, 1]))), RGB, "cICP"
    yield "one pixel", make.png([[[1, 2, 3]]], interlace=True), [[[1, 2, 3]]], ""
    yield (
        "one row",
        make.png(np.arange(3 * 999).reshape(1, 999, 3) % 256),
        np.arange(3 * 999).reshape(1, 999, 3) % 256,
        "",
    )


def profile_cases():
    levels = np.arange(99).reshape(11, 9) * 2
    linear = make.profile(gamma=1.0)
    yield "linear light", make.png(RGB, before=make.iccp(linear)), encoded(RGB / 255), "converted to sRGB"
    swapped = make.profile(primaries=(make.BLUE, make.GREEN, make.RED), gamma=1.0)
    yield "red is blue", make.png(RGB, before=make.iccp(swapped)), encoded(RGB[..., ::-1] / 255), "converted to sRGB"
    dim = make.profile(b"GRAY", gamma=1.0)
    yield "linear grey", make.png(levels, 8, 0, before=make.iccp(dim)), encoded(grey(levels) / 255), "converted"
    deep = make.png(DEEP[..., :3], 16, 2, before=make.iccp(linear))
    yield "linear light of 16 bits", deep, encoded(rounded(DEEP[..., :3], 257) / 255), "converted"
    laid_on = make.png(np.dstack([RGB, ALPHA]), 8, 6, before=make.iccp(linear))
    yield "linear light, transparent", laid_on, laid(encoded(RGB / 255), ALPHA), "transparency"
    half = len(linear) // 2
    parts = [make.segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 2]) + linear[s])
             for i, s in ((2, slice(half, None)), (1, slice(half)))]  # fmt: skip
    flat = make.blocks(GREYS)
    jpeg = make.saved(grey(flat), quality=100)
    yield (
        "profile in two pieces, the wrong way round",
        make.inserted(jpeg, *parts),
        encoded(grey(flat) / 255),
        "converted",
    )
    webp = make.saved(RGB, "WEBP", lossless=True, icc_profile=linear)
    yield "linear light in WebP", webp, encoded(RGB / 255), "converted"
    for name, data in [
        ("grey's profile", make.iccp(dim)), ("no profile", make.iccp(b"spam" * 100)), ("short one", make.iccp(b"a")),
        ("cut one", make.iccp(linear[:200])), ("zero one", make.iccp(linear[:40] + bytes(len(linear) - 40))),
        ("bomb", make.iccp(bytes(2**26))), ("not packed", make.chunk(b"iCCP", b"a\0\0spam")),
        ("no name", make.chunk(b"iCCP", b"spam")), ("empty", make.chunk(b"iCCP")),
    ]:  # fmt: skip
        yield f"profile: {name}", make.png(RGB, before=data), RGB, "ignored"
    yield "profile: a piece missing", make.inserted(jpeg, parts[0]), grey(flat), "ignored"


def jpeg_cases():
    flat, squares = make.blocks(GREYS), make.blocks(FLAT)
    yield "grey", make.saved(flat, quality=100), grey(flat), ""
    for progressive in False, True:
        tail = " progressive" * progressive
        how = {"quality": 100, "subsampling": 0, "progressive": progressive}
        yield f"colour{tail}", make.saved(squares, **how), squares, ""
        inside = np.where(np.isin(np.arange(32) % 16, (0, 15)), np.nan, 0)  # halved chroma bleeds over edges
        inside = (inside + inside[:, None])[..., None] + squares
        yield f"colour 4:2:0{tail}", make.saved(squares, **how | {"subsampling": 2}), inside, ""
        yield f"cut at 13 x 25{tail}", make.saved(squares[:13, :25], **how | {"subsampling": 2}), inside[:13, :25], ""
        for every in 1, 2:
            data = make.saved(squares, restart_marker_blocks=every, **how)
            yield f"restarts each {every}{tail}", data, squares, ""
        yield f"own tables{tail}", make.saved(squares, optimize=True, **how), squares, ""
    yield "stored as RGB", make.saved(squares, quality=100, keep_rgb=True), squares, ""
    inks = make.blocks([[[0, 0, 0, 0], [200, 40, 10, 0]], [[0, 255, 0, 128], [90, 90, 90, 255]]])
    printed = make.saved(inks, mode="CMYK", quality=100)
    yield "CMYK as Adobe writes it", printed, cmyk(*np.moveaxis(inks, -1, 0)), "CMYK"
    yield "CMYK without Adobe's mark", without(printed, 0xEE), cmyk(*np.moveaxis(inks, -1, 0)), "CMYK"
    stored = make.blocks([[[120, 128, 128, 255], [90, 140, 120, 200]]])  # Y, Cb, Cr and inverted K as in the file
    ycck = make.saved(255 - stored, mode="CMYK", quality=100)
    ycck = ycck[: (at := ycck.index(b"Adobe") + 11)] + b"\2" + ycck[at + 1 :]
    y, cb, cr, k = np.moveaxis(stored.astype(float), -1, 0)
    inked = (y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128))
    yield "YCCK", ycck, cmyk(*inked, 255 - k), "CMYK"
    plain = make.saved(flat, quality=100)
    yield "trailing bytes", plain + b"spam", grey(flat), "4 bytes after"
    yield "filled before its end", plain[:-2] + b"\xff" * 50 + plain[-2:], grey(flat), ""
    yield "bytes too many before its end", plain[:-2] + b"\0\0" + plain[-2:], grey(flat), ""
    yield "junk between segments", plain[:20] + b"\0spam\0" + plain[20:], grey(flat), ""
    yield "comments of 64 KiB", make.inserted(plain, *[make.segment(0xFE, b"x" * 65533)] * 20), grey(flat), ""
    yield "notes of no sense", make.inserted(
        plain, *(make.segment(0xE1, b"Exif\0\0" + s) for s in (b"II*\0\xff\xff\xff\xff", b"spam")),
        make.segment(0xED, b"Photoshop 3.0\x008BIM" + b"\xff" * 20), make.segment(0xE2, b"MPF\0"),
    ), grey(flat), "several pictures"  # fmt: skip
    one, two = (Image.fromarray(f) for f in (flat, 255 - flat))
    file = io.BytesIO()
    one.save(file, "MPO", save_all=True, append_images=[two], quality=100)
    yield "two pictures (MPO)", file.getvalue(), grey(flat), "several pictures"
    scan = make.saved(flat, quality=100, restart_marker_blocks=1)
    last = bytes([0xFF, 0xD0 + (6 * 4 - 1) % 8])  # grey: blocks of 8, 24 of them
    yield "a restart at the very end", scan[:-2] + last + scan[-2:], grey(flat), ""


def webp_cases():
    yield "lossless", make.saved(RGB, "WEBP", lossless=True), RGB, ""
    both = np.dstack([RGB, ALPHA]).astype(np.uint8)
    yield "transparent", make.saved(both, "WEBP", lossless=True, exact=True), laid(RGB, ALPHA), "transparency"
    yield "animated", animated("WEBP", lossless=True), np.full((5, 6, 3), 200), "animation of 3 frames"
    frame = dict(make.riff_chunks(make.saved(RGB, "WEBP", lossless=True)))[b"VP8L"]
    part = struct.pack("<4sI", b"VP8L", len(frame)) + frame + b"\0" * (len(frame) % 2)
    place = bytes([2, 0, 0, 3, 0, 0, 8, 0, 0, 10, 0, 0, 100, 0, 0, 0])  # at (4, 6), in units of two
    whole = (b"VP8X", bytes([0x12, 0, 0, 0, 19, 0, 0, 29, 0, 0]))
    canvas = np.full((30, 20, 3), 255)
    canvas[6:17, 4:13] = RGB
    once = make.riff(whole, (b"ANIM", bytes(6)), (b"ANMF", place + part))
    yield "animation's frame is a part", once, canvas, "transparency"
    plain = make.saved(RGB, "WEBP", lossless=True)
    yield "trailing bytes", plain + bytes(7), RGB, "7 bytes"
    said = make.riff((b"VP8X", bytes([0x2C, 0, 0, 0, 8, 0, 0, 10, 0, 0])), (b"VP8L", frame))
    yield "extras stated that are not there", said, RGB, ""
    more = make.riff((b"VP8X", bytes([0, 0, 0, 0, 8, 0, 0, 10, 0, 0])), (b"spam", b"x" * 9), (b"VP8L", frame),
                     (b"XMP ", b"<" * 100_000))  # fmt: skip
    yield "unknown chunks", more, RGB, ""


# A conversion of colours by Little CMS, and JPEG at quality 100, are right to a level or two
CASES = [
    *(pytest.param(*case[1:], tolerance, id=f"{kind}: {case[0]}")
      for kind, cases, tolerance in (("PNG", png_cases, 0), ("ICC", profile_cases, 1), ("JPEG", jpeg_cases, 2),
                                     ("WebP", webp_cases, 0))
      for case in cases()),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected", "notice", "tolerance"), CASES)
def test_awkward_files_have_the_pixels_that_were_written(data, expected, notice, tolerance):
    start = time.process_time()
    picture = pictures.open_picture(data)
    assert time.process_time() - start < 60
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.flags.c_contiguous
    assert picture.pixels.flags.writeable
    assert picture.pixels.shape == np.shape(expected)
    assert np.nanmax(np.abs(picture.pixels - np.asarray(expected, np.float64))) <= tolerance + 0.5 * (tolerance > 0)
    assert notice in ", ".join(picture.notices)
    assert bool(picture.notices) == bool(notice)


def test_there_are_many_awkward_files():
    assert len(CASES) > 100


def test_sixteen_bits_are_not_what_pillow_makes_of_them():
    data = make.png(DEEP[..., :3], 16, 2)
    assert pictures.open_picture(data).pixels[0, 0].tolist() == [1, 128, 255]  # 255 / 257, 33022 / 257, 65407 / 257
    assert Image.open(io.BytesIO(data)).getpixel((0, 0)) == (0, 128, 255)  # high bytes


@pytest.mark.parametrize("number", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "PNG behind the pixels", "JPEG", "WEBP", "big-endian", "long", "Pillow"])
def test_pictures_are_turned_upright(kind, number):
    values = np.array(TURNED[1]) * 40
    note = make.exif(number, ">" if kind == "big-endian" else "<", 4 if kind == "long" else 3)
    marked = b"Exif\0\0" + note
    if kind == "PNG behind the pixels":
        data = make.png(values, 8, 0, after=make.chunk(b"eXIf", note))
    elif kind == "JPEG":
        data = make.saved(make.blocks(values), quality=100, exif=marked)
    elif kind == "WEBP":
        data = make.saved(grey(values), "WEBP", lossless=True, exif=marked)
    else:
        data = make.png(values, 8, 0, before=make.chunk(b"eXIf", note))
    picture = pictures.open_picture(Image.open(io.BytesIO(data)) if kind == "Pillow" else data)
    pixels = picture.pixels[8::16, 8::16] if kind == "JPEG" else picture.pixels
    np.testing.assert_array_equal(pixels, grey(np.array(TURNED[number]) * 40))
    assert bool(picture.notices) == (number != 1)


@pytest.mark.parametrize("note", [make.exif(0), make.exif(9), make.exif(65535), make.exif(6)[:-20], make.exif(6)[:9],
                                  make.exif(6, kind=2), b"", b"II*\0", b"II*\0\4\0\0\0\xff\xff"])  # fmt: skip
def test_senseless_exif_turns_nothing(note):
    picture = pictures.open_picture(make.png(RGB, before=make.chunk(b"eXIf", note)))
    np.testing.assert_array_equal(picture.pixels, RGB)
    assert picture.notices == ()


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 0, 128)])
def test_transparency_is_laid_on_the_stated_colour(background):
    data = make.png(np.dstack([RGB, ALPHA]), 8, 6)
    pixels, notices = pictures.open_picture(data, background=background)
    cover = ALPHA[..., None] / 255
    np.testing.assert_array_equal(pixels, np.rint(cover * RGB + (1 - cover) * background))
    assert str(background) in notices[0]
    with pytest.raises(pictures.PictureError, match="0 to 255"):
        pictures.open_picture(data, background=(0, 0, 256))


def test_lossy_webp_is_near_what_was_written():
    squares = make.blocks(FLAT)
    alpha = make.blocks([[255, 0], [128, 255]])
    plain = pictures.open_picture(make.saved(squares, "WEBP", quality=100)).pixels
    inside = (slice(4, None, 16), slice(4, None, 16))  # chroma is halved: edges of squares bleed
    assert np.abs(plain[inside].astype(int) - squares[inside]).max() <= 6
    laid_on = pictures.open_picture(make.saved(np.dstack([squares, alpha]), "WEBP", quality=100)).pixels
    assert np.abs(laid_on[inside] - laid(squares, alpha)[inside]).max() <= 6


def test_srgb_profile_leaves_every_level_alone():
    from PIL import ImageCms

    levels = grey(np.arange(256).reshape(16, 16))
    data = make.png(levels, before=make.iccp(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()))
    picture = pictures.open_picture(data)
    np.testing.assert_array_equal(picture.pixels, levels)
    assert picture.notices == ()
