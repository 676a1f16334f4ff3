"""Sizes, boxes and masks: closed forms, and the properties that inpainting relies on."""

import numpy as np
import pytest
from scipy import ndimage

from sdjax.pictures import Box, PictureError, composite, crop_around, expand, pad_to, paste, resize, round_size

RNG = np.random.default_rng(7)
OLD, NEW = RNG.integers(0, 256, (2, 40, 50, 3)).astype(np.uint8)


def mask_of(*boxes: Box, shape=(40, 50), value: int = 255) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    for box in boxes:
        mask[box.slices] = value
    return mask


@pytest.mark.parametrize(("size", "multiple", "expected"), [
    ((512, 768), 64, (512, 768)), ((511, 769), 64, (448, 768)), ((1, 63), 64, (64, 64)), ((65, 127), 64, (64, 64)),
    ((95, 96), 32, (64, 96)), ((7, 1000), 1, (7, 1000)),
])  # fmt: skip
def test_sizes_are_rounded_down_to_one_multiple_at_least(size, multiple, expected):
    assert round_size(*size, multiple) == expected


@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("method", ["lanczos", "bicubic", "bilinear", "nearest", "area"])
def test_every_filter_keeps_a_constant_and_every_channel_apart(method, dtype, channels):
    shape = (7, 5) if channels is None else (7, 5, channels)
    values = (np.arange(channels or 1) * 20 + 10).astype(dtype)
    pixels = np.broadcast_to(values if channels else values[0], shape).astype(dtype)
    for height, width in (14, 3), (2, 11), (7, 5):
        out = resize(pixels, height, width, method)
        assert out.dtype == dtype
        assert out.shape == (height, width, *shape[2:])
        # constants are kept exactly in uint8; in float32 the weights sum to 1 within rounding
        np.testing.assert_allclose(out, np.broadcast_to(pixels[0, 0], out.shape), rtol=0 if dtype == np.uint8 else 1e-6)


def test_area_is_the_mean_and_nearest_the_pixel_at_the_centre():
    values = RNG.normal(size=(12, 8)).astype(np.float32)
    np.testing.assert_allclose(resize(values, 4, 4, "area"), values.reshape(4, 3, 4, 2).mean((1, 3)), atol=1e-6)
    np.testing.assert_array_equal(resize(values, 4, 8, "nearest"), values[1::3])
    np.testing.assert_array_equal(resize(values, 24, 16, "nearest"), values.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(("method", "kernel", "support"), [
    ("bilinear", lambda x: 1 - x, 1),
    ("bicubic", lambda x: np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2), 2),
    ("lanczos", lambda x: np.sinc(x) * np.sinc(x / 3), 3),
])  # fmt: skip
@pytest.mark.parametrize(("old", "new"), [(16, 7), (16, 40)])
def test_filters_are_their_kernels_widened_when_shrinking(method, kernel, support, old, new):
    signal = RNG.normal(size=(1, old)).astype(np.float32)
    scale = max(old / new, 1)
    centre = (np.arange(new) + 0.5) * old / new
    distance = np.abs(np.arange(old) + 0.5 - centre[:, None]) / scale
    weight = np.where(distance < support, kernel(distance), 0)
    expected = signal @ (weight / weight.sum(1, keepdims=True)).T
    np.testing.assert_allclose(resize(signal, 1, new, method), expected, atol=1e-5)  # float32


def test_the_same_size_is_a_copy():
    out = resize(OLD, 40, 50)
    np.testing.assert_array_equal(out, OLD)
    assert not np.shares_memory(out, OLD)


@pytest.mark.parametrize("bad", [
    lambda: resize(OLD, 0, 5), lambda: resize(OLD, 5, -1), lambda: resize(OLD, 5, 5, "cubic"),
    lambda: resize(OLD[None], 5, 5), lambda: resize(OLD.astype(float), 5, 5), lambda: resize(OLD[:0], 5, 5),
    lambda: round_size(0, 5), lambda: pad_to(OLD, 0), lambda: pad_to(OLD[:, :0], 8),
    lambda: composite(NEW, OLD[1:], mask_of()), lambda: composite(NEW, OLD, mask_of(shape=(40, 51))),
    lambda: composite(NEW, OLD, np.zeros((40, 50))), lambda: composite(NEW, OLD, mask_of(), -1),
    lambda: composite(NEW.astype(float), OLD, mask_of()), lambda: crop_around(mask_of(), 1, 8),
    lambda: crop_around(mask_of(Box(1, 1, 2, 2)), -1, 8), lambda: crop_around(mask_of(Box(1, 1, 2, 2)), 1, 0),
    lambda: crop_around(mask_of(Box(1, 1, 2, 2)), 1, 8, (50, 40)), lambda: paste(OLD, NEW, Box(0, 0, 51, 40)),
    lambda: paste(OLD, NEW, Box(0, 0, 5, 4)), lambda: paste(OLD, NEW[:4, :5].astype(float), Box(0, 0, 5, 4)),
    lambda: paste(OLD, NEW[:0], Box(0, 0, 50, 0)), lambda: expand(OLD, -1, 0, 0, 0),
])  # fmt: skip
def test_arguments_out_of_range_are_refused(bad):
    with pytest.raises(ValueError):
        bad()


@pytest.mark.parametrize("shape", [(5, 7), (64, 128), (65, 1), (3, 4, 1), (63, 64, 4), (1, 1, 9)])
def test_padding_repeats_the_edge_and_is_cut_off_again(shape):
    pixels = RNG.integers(0, 256, shape).astype(np.uint8)
    padded, (height, width) = pad_to(pixels, 64), shape[:2]
    assert padded.shape[0] % 64 == padded.shape[1] % 64 == 0
    assert padded.shape[0] - height < 64
    np.testing.assert_array_equal(padded[:height, :width], pixels)
    np.testing.assert_array_equal(padded[height:], np.broadcast_to(padded[height - 1], padded[height:].shape))
    np.testing.assert_array_equal(
        padded[:, width:], np.broadcast_to(padded[:, width - 1 : width], padded[:, width:].shape)
    )


@pytest.mark.parametrize("feather", [0, 1, 5, 100])
def test_what_lies_outside_of_the_mask_stays_byte_by_byte(feather):
    for mask in (
        RNG.random((40, 50)) < 0.5,
        mask_of(Box(10, 5, 30, 25)),
        RNG.integers(0, 256, (40, 50)).astype(np.uint8),
    ):
        out = composite(NEW, OLD, mask, feather)
        np.testing.assert_array_equal(out[mask == 0], OLD[mask == 0])
        assert out.dtype == np.uint8


def test_masks_of_nothing_and_of_everything():
    for feather in 0, 9:
        np.testing.assert_array_equal(composite(NEW, OLD, mask_of(), feather), OLD)
        np.testing.assert_array_equal(composite(NEW, OLD, mask_of() + np.uint8(255), feather), NEW)


def test_grey_masks_mix_by_their_level():
    m = RNG.integers(0, 256, (40, 50)).astype(np.uint8)
    share = m[..., None] / 255
    np.testing.assert_array_equal(composite(NEW, OLD, m), np.rint(share * NEW + (1 - share) * OLD))
    grey = composite(NEW[..., 0], OLD[..., 0], m)
    np.testing.assert_array_equal(grey, composite(NEW, OLD, m)[..., 0])


@pytest.mark.parametrize("feather", [1, 3, 8, 30])
@pytest.mark.parametrize("name", ["box", "ring", "noise"])
def test_a_feather_is_the_distance_to_the_outside(name, feather):
    y, x = np.mgrid[:40, :50]
    mask = {
        "box": mask_of(Box(10, 5, 45, 38)) > 0,
        "ring": (np.hypot(y - 20, x - 25) < 19) & (np.hypot(y - 20, x - 25) > 6),
        "noise": RNG.random((40, 50)) < 0.97,
    }[name]
    white, black = np.full((40, 50), 255, np.uint8), np.zeros((40, 50), np.uint8)
    ramp = np.minimum(ndimage.distance_transform_edt(mask) / (feather + 1), 1)
    np.testing.assert_allclose(composite(white, black, mask, feather), 255 * ramp, atol=0.501)  # rounded once


def test_a_feather_is_a_straight_ramp_at_a_straight_edge_and_none_at_the_border():
    mask = np.zeros((6, 20), bool)
    mask[:, 10:] = True
    out = composite(np.full((6, 20), 255, np.uint8), np.zeros((6, 20), np.uint8), mask, 4)
    assert out[3].tolist() == [0] * 10 + [51, 102, 153, 204] + [255] * 6


def test_crop_is_the_smallest_box_of_the_multiple():
    assert crop_around(mask_of(Box(20, 10, 23, 14)), 0, 1) == Box(20, 10, 23, 14)
    assert crop_around(mask_of(Box(20, 10, 23, 14)), 2, 1) == Box(18, 8, 25, 16)
    assert crop_around(mask_of(Box(0, 0, 1, 1)), 3, 8) == Box(0, 0, 8, 8)  # shifted inside
    assert crop_around(mask_of(Box(49, 39, 50, 40)), 3, 8) == Box(42, 32, 50, 40)
    assert crop_around(mask_of(Box(0, 0, 1, 1), Box(49, 39, 50, 40)), 0, 64) == Box(0, 0, 50, 40)  # smaller than 64
    assert crop_around(mask_of(Box(0, 0, 50, 40)), 9, 8) == Box(0, 0, 50, 40)


@pytest.mark.parametrize("seed", range(30))
def test_crops_hold_the_padded_mask_and_lie_inside(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 200, 2)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(1, 4)):
        mask[rng.integers(height), rng.integers(width)] = rng.integers(1, 256)
    padding, multiple = int(rng.integers(0, 20)), int(rng.choice([1, 8, 64]))
    box = crop_around(mask, padding, multiple, (height, width))
    rows, columns = np.nonzero(mask)
    assert 0 <= box.top <= max(rows.min() - padding, 0)
    assert min(rows.max() + 1 + padding, height) <= box.bottom <= height
    assert 0 <= box.left <= max(columns.min() - padding, 0)
    assert min(columns.max() + 1 + padding, width) <= box.right <= width
    assert box.height % multiple == 0 or box.height == height
    assert box.width % multiple == 0 or box.width == width
    assert box.height - (np.ptp(rows) + 1 + 2 * padding) < multiple


def test_pasting_a_crop_back_changes_nothing_but_the_box():
    box = Box(7, 3, 31, 19)
    np.testing.assert_array_equal(paste(OLD, OLD[box.slices], box), OLD)
    out = paste(OLD, NEW[box.slices], box)
    inside = mask_of(box) > 0
    np.testing.assert_array_equal(out[inside], NEW[inside])
    np.testing.assert_array_equal(out[~inside], OLD[~inside])


def test_a_larger_canvas_continues_its_edges():
    canvas, mask = expand(OLD, 3, 4, 5, 6)
    assert canvas.shape == (50, 58, 3)
    np.testing.assert_array_equal(canvas[4:44, 3:53], OLD)
    np.testing.assert_array_equal(mask == 0, np.pad(np.ones((40, 50), bool), ((4, 6), (3, 5))))
    np.testing.assert_array_equal(canvas[4:44, :3], np.broadcast_to(OLD[:, :1], (40, 3, 3)))
    np.testing.assert_array_equal(canvas[44:, 3:53], np.broadcast_to(OLD[-1], (6, 50, 3)))
    np.testing.assert_array_equal(canvas[:4, :3], np.broadcast_to(OLD[0, 0], (4, 3, 3)))
    same, none = expand(OLD, 0, 0, 0, 0, overlap=9)
    np.testing.assert_array_equal(same, OLD)
    assert not none.any()


def test_the_overlap_lies_along_the_sides_that_grew():
    _, mask = expand(OLD, 0, 0, 10, 0, overlap=4)
    np.testing.assert_array_equal(mask, np.broadcast_to(np.where(np.arange(60) < 46, 0, 255), (40, 60)))
    _, everything = expand(OLD, 5, 5, 5, 5, overlap=30)
    assert everything.all()
    grey, _ = expand(OLD[..., 0], 1, 1, 1, 1)
    assert grey.shape == (42, 52)


def test_a_canvas_of_more_than_forty_million_pixels_is_refused():
    with pytest.raises(PictureError, match="40 million"):
        expand(OLD, 10**6, 0, 0, 0)
