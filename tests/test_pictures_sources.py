"""Every way to hand over a picture, a mask or a map: Pillow images, arrays, paths, bytes."""

import io
import struct

import numpy as np
import picture_makers as make
import pytest
from picture_makers import ALPHA, COLOURS, DEEP, RGB, animated, cmyk, grey, index, laid, rounded
from PIL import Image, ImageFile

from sdjax import pictures

PILLOW = {
    "1": lambda: (Image.fromarray(ALPHA > 99), grey(np.where(ALPHA > 99, 255, 0))),
    "L": lambda: (make.mode_image(ALPHA, "L"), grey(ALPHA)),
    "RGB": lambda: (make.mode_image(RGB, "RGB"), RGB),
    "RGBA": lambda: (make.mode_image(np.dstack([RGB, ALPHA]), "RGBA"), laid(RGB, ALPHA)),
    "LA": lambda: (make.mode_image(np.dstack([RGB[..., 0], ALPHA]), "LA"), laid(grey(RGB[..., 0]), ALPHA)),
    "RGBX": lambda: (make.mode_image(np.dstack([RGB, ALPHA]), "RGBX"), RGB),
    "CMYK": lambda: (make.mode_image(np.dstack([RGB, ALPHA]), "CMYK"), np.rint(cmyk(*np.moveaxis(RGB, -1, 0), ALPHA))),
    "I;16": lambda: (Image.fromarray(DEEP[..., 0].astype(np.uint16)), grey(rounded(DEEP[..., 0], 257))),
    "I": lambda: (Image.fromarray(DEEP[..., 0].astype(np.int32)), grey(rounded(DEEP[..., 0], 257))),
    "P": lambda: (Image.open(io.BytesIO(make.png(index(4), 4, 3, palette=COLOURS[:16]))), COLOURS[index(4)]),
    "P with transparency": lambda: (
        Image.open(io.BytesIO(make.png(index(2), 2, 3, palette=COLOURS[:4], transparency=b"\0"))),
        np.where(index(2)[..., None] == 0, 255, COLOURS[index(2)])),
    "L with transparency": lambda: (
        Image.open(io.BytesIO(make.png(ALPHA, 8, 0, transparency=struct.pack(">H", ALPHA[0, 0])))),
        grey(np.where(ALPHA[0, 0] == ALPHA, 255, ALPHA))),
    "GIF": lambda: (Image.open(io.BytesIO(animated("GIF"))), np.full((5, 6, 3), 200)),
}  # fmt: skip


@pytest.mark.parametrize("mode", PILLOW)
def test_pillow_images_of_every_mode_are_taken(mode):
    image, expected = PILLOW[mode]()
    pixels = pictures.open_picture(image).pixels
    np.testing.assert_array_equal(pixels, expected)


def test_arrays_are_taken_and_not_shared():
    array = RGB.astype(np.uint8)
    pixels = pictures.open_picture(array).pixels
    pixels[:] = 0
    np.testing.assert_array_equal(array, RGB)
    np.testing.assert_array_equal(pictures.open_picture(ALPHA.astype(np.uint8)).pixels, grey(ALPHA))
    np.testing.assert_array_equal(pictures.open_picture(ALPHA.astype(np.uint8)[..., None]).pixels, grey(ALPHA))
    four = np.dstack([RGB, ALPHA]).astype(np.uint8)
    np.testing.assert_array_equal(pictures.open_picture(four).pixels, laid(RGB, ALPHA))


def test_files_are_known_by_content_not_by_name(tmp_path):
    for name in "a.jpg", "a.exe", "a", "\u00fc\udcff.png":
        path = tmp_path / name
        path.write_bytes(make.png(RGB))
        for source in path, str(path):
            np.testing.assert_array_equal(pictures.open_picture(source).pixels, RGB)
    for kind in bytes, bytearray, memoryview:
        np.testing.assert_array_equal(pictures.open_picture(kind(make.png(RGB))).pixels, RGB)


def test_forty_million_pixels_are_taken():
    pixels = np.zeros((5000, 8000), np.uint8)
    data = make.saved(pixels, "PNG", compress_level=1)
    assert pictures.open_picture(data).pixels.shape == (5000, 8000, 3)


def test_a_setting_of_pillow_that_lets_damage_pass_changes_nothing(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = make.saved(make.RNG.integers(0, 256, (64, 64, 3)), quality=90)
    for cut in data[:-1000], data[:-1000] + b"\xff\xd9":
        with pytest.raises(pictures.PictureError, match="truncated"):
            pictures.open_picture(cut)


def test_masks_are_read_by_brightness_or_opacity():
    value = ALPHA
    assert (pictures.open_mask(make.png(value, 8, 0)).pixels == value).all()
    assert (pictures.open_mask(make.png(grey(value))).pixels == value).all()
    assert (pictures.open_mask(make.png(DEEP[..., 0], 16, 0)).pixels == rounded(DEEP[..., 0], 257)).all()
    assert (pictures.open_mask(value > 99).pixels == np.where(value > 99, 255, 0)).all()
    luma = np.rint(RGB @ [0.299, 0.587, 0.114])
    coloured = pictures.open_mask(make.png(RGB))
    assert np.abs(coloured.pixels - luma).max() <= 1  # a half may be rounded either way
    assert "brightness" in coloured.notices[0]


@pytest.mark.parametrize("shade", [0, 90, 255])
def test_a_layer_of_one_colour_is_a_mask_by_its_opacity(shade):
    layer = np.dstack([np.full_like(RGB, shade), ALPHA])
    mask = pictures.open_mask(make.png(layer, 8, 6))
    np.testing.assert_array_equal(mask.pixels, ALPHA)
    assert "opaque is replaced" in mask.notices[0]


def test_a_grey_layer_is_laid_on_black_and_a_picture_with_holes_painted_in_them():
    ink, cover = np.where(index(1), 255, 0), np.where(np.arange(9) < 4, 255, 0) * np.ones((11, 1), int)
    black_and_white = pictures.open_mask(make.png(np.dstack([ink, cover]), 8, 4))
    np.testing.assert_array_equal(black_and_white.pixels, np.where(cover, ink, 0))
    assert "they stay" in black_and_white.notices[0]
    holes = pictures.open_mask(make.png(np.dstack([RGB, cover]), 8, 6))
    np.testing.assert_array_equal(holes.pixels, 255 - cover)
    assert "transparent is replaced" in holes.notices[0]


def test_empty_layers_and_profiles_of_masks():
    none = pictures.open_mask(make.png(np.zeros((3, 4, 4), int), 8, 6))
    assert not none.pixels.any()
    mask = pictures.open_mask(make.png(ALPHA, 8, 0, before=make.iccp(make.profile(b"GRAY"))))
    np.testing.assert_array_equal(mask.pixels, ALPHA)  # numbers, not colours


def test_a_mask_of_another_size_is_refused():
    data = make.png(ALPHA, 8, 0)
    assert pictures.open_mask(data, size=(11, 9)).pixels.shape == (11, 9)
    with pytest.raises(pictures.PictureError, match="9 x 12; this one is 9 x 11"):
        pictures.open_mask(data, size=(12, 9))
    turned = make.png(ALPHA, 8, 0, before=make.chunk(b"eXIf", make.exif(6)))
    assert pictures.open_mask(turned, size=(9, 11)).pixels.shape == (9, 11)


def test_maps_keep_their_precision():
    eight = pictures.open_map(make.png(ALPHA, 8, 0)).values
    assert eight.dtype == np.float32
    np.testing.assert_allclose(eight, ALPHA / 255, rtol=1e-6)  # float32
    for data in make.png(DEEP[..., 0], 16, 0), make.png(grey(DEEP[..., 0]), 16, 2), DEEP[..., 0].astype(np.uint16):
        np.testing.assert_allclose(pictures.open_map(data).values, DEEP[..., 0] / 65535, rtol=1e-6)
    depth = make.RNG.normal(size=(5, 7)) * 1e4
    for source in depth, depth.astype(np.float32), depth[..., None], Image.fromarray(depth.astype(np.float32)):
        np.testing.assert_array_equal(pictures.open_map(source).values, depth.astype(np.float32))
    coloured = pictures.open_map(make.png(RGB))
    np.testing.assert_allclose(coloured.values, RGB @ [0.299, 0.587, 0.114] / 255, rtol=1e-5)
    assert "brightness" in coloured.notices[0]
    constant = pictures.open_map(np.full((3, 4), 7.0)).values
    assert (constant == 7).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_maps_are_finite_and_of_one_channel(bad):
    with pytest.raises(pictures.PictureError, match="finite"):
        pictures.open_map(np.array([[0.0, bad]]))
    with pytest.raises(pictures.PictureError, match="one channel"):
        pictures.open_map(np.zeros((3, 4, 3)))
