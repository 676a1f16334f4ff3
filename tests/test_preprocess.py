"""Pictures as CLIP sees them: the reference's arrays in both dialects, and what must hold of any picture.

golden/clip_pixels.npz holds a picture with what kornia 0.6.0 and Pillow make of it at some rows and columns.
"""

import numpy as np
import pytest

from sdjax.pictures import preprocess

import reference
from checks import relative_error


@pytest.fixture(scope="module")
def arrays():
    return reference.golden("clip_pixels")


@pytest.mark.parametrize("dialect", ["ldm", "huggingface"])
def test_both_dialects_equal_the_reference(arrays, dialect):
    (got,) = preprocess.clip_pixels([arrays["image"]], 224, dialect=dialect)
    assert got.dtype == np.float32
    assert got.shape == (224, 224, 3)
    got = got[np.ix_(arrays["rows"], arrays["columns"])]
    if dialect == "ldm":
        assert relative_error(got, np.moveaxis(arrays["ldm"], 0, -1)) < 2e-5  # float32 rounding
    else:
        levels = (got * preprocess.STD + preprocess.MEAN) * 255
        assert np.array_equal(np.rint(levels), np.moveaxis(arrays["levels"], 0, -1))


def test_the_reference_blurs_by_a_gaussian_of_the_shrinking_factor():
    # A white line in a black picture of 8 times the size keeps its light (the blur's weights add up to 1): along a row
    # through it, the sum over the small picture times 8 is the line's width
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[:, 64:72] = 255
    row = preprocess.ldm(picture, 16)[8, :, 0]
    assert abs(row.sum() - 1) < 0.08  # bicubic with corners in place samples every 8.47 pixels, not every 8
    assert (row > 0.1).sum() >= 3  # unblurred it would be one or two


def test_a_picture_that_only_grows_is_not_blurred():
    corners = np.zeros((2, 2, 3), np.uint8)
    corners[0, 0] = 255
    large = preprocess.ldm(corners, 9)[..., 0]
    # Corners stay in place; halfway, bicubic with a = -0.75 and repeated borders gives one half along each axis
    np.testing.assert_allclose(large[[0, 0, 8, 4], [0, 8, 8, 4]], [1, 0, 0, 0.25], atol=1e-6)


@pytest.mark.parametrize("dialect", preprocess.DIALECTS)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (224, 224), (5, 4000), (37, 41)])
def test_a_flat_picture_of_any_size_stays_flat(dialect, size):
    colour = np.uint8([0, 127, 255])
    (got,) = preprocess.clip_pixels([np.broadcast_to(colour, (*size, 3))], 28, dialect=dialect)
    want = (colour / 255 - preprocess.MEAN) / preprocess.STD
    assert got.shape == (28, 28, 3)
    np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), atol=1e-5)


def test_the_crop_takes_the_middle():
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, 10:20] = 255
    assert preprocess.huggingface(picture, 10).min() == 1
    squeezed = preprocess.ldm(picture, 10)
    assert squeezed[:, 0].max() < 0.1
    assert squeezed[:, -1].max() < 0.1


def test_an_unknown_dialect_is_refused():
    with pytest.raises(ValueError, match="one of ldm, huggingface; got 'openai'"):
        preprocess.clip_pixels([np.zeros((4, 4, 3), np.uint8)], dialect="openai")
