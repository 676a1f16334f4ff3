"""Pictures as the networks that judge them take them: what each way of resizing does, by hand and by Pillow."""

import numpy as np
import pytest
from PIL import Image

from sdjax.evaluate import resizing
from sdjax.pictures import preprocess

RNG = np.random.default_rng(5)


def column(*values):
    return np.repeat(np.array(values, np.uint8)[:, None, None], 3, axis=2)


@pytest.mark.parametrize("function", [resizing.inception_pytorch, resizing.inception_tensorflow])
def test_bilinear_without_a_filter_by_hand(function):
    got = function(np.repeat(column(0, 100, 200), 4, axis=1), 6)[:, 0, 0]
    places = {
        resizing.inception_pytorch: np.clip((np.arange(6) + 0.5) / 2 - 0.5, 0, 2),  # the middle of pixels
        resizing.inception_tensorflow: np.clip(np.arange(6) / 2, 0, 2),  # their beginning
    }[function]
    scaled = {
        resizing.inception_pytorch: 2 * 100 * places / 255 - 1,
        resizing.inception_tensorflow: (100 * places - 128) / 128,
    }[function]
    np.testing.assert_allclose(got, scaled, atol=1e-6)


def test_shrinking_without_a_filter_skips_pixels_and_clean_fids_does_not():
    stripes = np.repeat(np.array([0, 255, 0, 255] * 8, np.uint8)[:, None, None], 3, 2).repeat(32, 1)
    assert np.ptp(resizing.inception_tensorflow(stripes, 16)) == 0  # only black rows
    assert resizing.inception_tensorflow(stripes, 16).max() == -1
    middle = resizing.inception_clean(stripes, 8)[2:-2]
    assert np.abs(middle * 128 + 128 - 127.5).max() < 2  # half of black and white


def test_clean_fids_is_pillows_bicubic_in_floats_with_values_kept_in_range():
    picture = RNG.integers(0, 256, (40, 70, 3), np.uint8)
    want = [Image.fromarray(picture[..., i].astype(np.float32)).resize((29, 29), Image.Resampling.BICUBIC)
            for i in range(3)]  # fmt: skip
    want = np.stack([np.asarray(one).clip(0, 255) for one in want], -1)
    np.testing.assert_allclose(resizing.inception_clean(picture, 29) * 128 + 128, want, atol=1e-4)


def test_the_networks_own_size_changes_no_pixel():
    picture = RNG.integers(0, 256, (19, 19, 3), np.uint8)
    for function, scale, shift in (
        (resizing.inception_pytorch, 127.5, 127.5), (resizing.inception_tensorflow, 128, 128),
        (resizing.inception_clean, 128, 128),
    ):  # fmt: skip
        np.testing.assert_allclose(function(picture, 19) * scale + shift, picture, atol=1e-4)


@pytest.mark.parametrize("shape", [(56, 57), (57, 56), (56, 59), (90, 40), (1, 300), (1, 1)])
def test_clips_middle_is_cut_as_torchvision_does(shape):
    picture = RNG.integers(0, 256, (*shape, 3), np.uint8)
    got = resizing.clip(picture, 56)
    assert got.shape == (56, 56, 3)
    assert got.dtype == np.float32
    whole = preprocess.shortened(picture, 56)
    rest = [side - 56 for side in whole.shape[:2]]
    top, left = (int(round(one / 2.0)) for one in rest)  # torchvision's center_crop
    want = whole[top : top + 56, left : left + 56] / 255
    np.testing.assert_allclose(got * preprocess.STD + preprocess.MEAN, want, atol=1e-6)


def test_cmmds_is_the_resized_middle_square():
    picture = RNG.integers(0, 256, (50, 80, 3), np.uint8)
    want = Image.fromarray(picture).crop((15, 0, 65, 50)).resize((33, 33), Image.Resampling.BICUBIC)
    got = resizing.cmmd(picture, 33) * preprocess.STD + preprocess.MEAN
    np.testing.assert_allclose(got * 255, np.asarray(want), atol=1e-4)


def test_dinov2s_squeezes_the_whole_picture():
    picture = RNG.integers(0, 256, (50, 80, 3), np.uint8)
    want = Image.fromarray(picture).resize((28, 28), Image.Resampling.BICUBIC)
    got = resizing.dinov2(picture, 28) * resizing.IMAGENET_STD + resizing.IMAGENET_MEAN
    np.testing.assert_allclose(got * 255, np.asarray(want), atol=1e-4)
