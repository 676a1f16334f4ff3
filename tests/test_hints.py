"""Hints without weights, against OpenCV and controlnet_aux, and the command that makes them.

golden/hints.npz holds a picture and what opencv-python 5.0.0 (cv2.Canny, GaussianBlur, resize, cvtColor) and
controlnet_aux 0.0.10 (LineartStandardDetector, ContentShuffleDetector after numpy.random.seed(3), nms, resize_image)
make of it.
"""

from pathlib import Path

import numpy as np
import pytest

import sdjax
from sdjax import pictures
from sdjax.pictures import image
from sdjax.pictures.hints import PLAIN, edges, filters, inpaint_hint, tones
from sdjax.preprocessors import PREPROCESSORS
from sdjax.scripts.main import main

GOLDEN = np.load(Path(__file__).parent / "golden" / "hints.npz")
PICTURE = GOLDEN["picture"]


def differences(made: np.ndarray, expected: np.ndarray) -> np.ndarray:
    expected = expected if expected.ndim == made.ndim else edges.to_rgb(expected)
    assert made.shape == expected.shape
    assert made.dtype == expected.dtype == np.uint8
    return np.abs(made.astype(int) - expected)


@pytest.mark.parametrize(("name", "thresholds"), [("canny", (100, 200)), ("canny_low", (60.5, 20))])
def test_canny_is_opencvs_to_the_bit(name, thresholds):
    low, high = thresholds
    made = sdjax.make_hint(PICTURE, "canny", low_threshold=low, high_threshold=high)
    assert differences(made, GOLDEN[name]).max() == 0
    assert made.any()


@pytest.mark.parametrize("method", ["area", "linear", "cubic", "lanczos"])
def test_resizing_is_opencvs_up_to_rounding(method):
    assert differences(filters.resize(PICTURE, 57, 101, method), GOLDEN[f"resized_{method}"]).max() <= 1


def test_a_resolution_is_that_of_other_tools():
    assert differences(filters.resize(PICTURE[:40, :40], 83, 70, "lanczos"), GOLDEN["resized_up"]).max() <= 1
    assert differences(filters.resize_shorter(PICTURE[:100], 64), GOLDEN["shorter"]).max() <= 1
    assert sdjax.make_hint(PICTURE, "invert", resolution=128).shape == (128, 128, 3)


@pytest.mark.parametrize(
    ("name", "options", "golden", "most", "share"),
    [  # most levels of difference, and the share of values that differ: OpenCV rounds 8 bits in its own places
        ("lineart_standard", {}, "lineart_standard", 1, 0.001),
        ("shuffle", {"seed": 3, "cell": 64}, "shuffle", 8, 0.6),  # its places are multiples of 1/32 pixel
        ("blur_gaussian", {"sigma": 4}, "blur", 2, 0.2),
        ("recolor_luminance", {}, "luminance", 1, 0.3),
        ("t2ia_color_grid", {}, "grid", 1, 0.01),
        ("scribble_xdog", {}, "xdog", 0, 0),
    ],
)  # fmt: skip
def test_a_hint_is_that_of_opencv(name, options, golden, most, share):
    difference = differences(sdjax.make_hint(PICTURE, name, **options), GOLDEN[golden])
    assert difference.max() <= most
    assert (difference > 0).mean() <= share


def test_ridges_are_those_of_controlnet_aux():
    difference = differences(filters.thin(PICTURE[..., 0], 127, 3.0), GOLDEN["thin"])
    assert (difference > 0).mean() < 0.001
    assert GOLDEN["thin"].any()


def test_a_scribble_follows_the_soft_edge_of_a_disc():
    y, x = np.mgrid[:96, :96] - 48
    distance = np.hypot(x, y)
    disc = edges.to_rgb(np.where(distance < 30, 220, 30).astype(np.uint8))
    soft = sdjax.make_hint(disc, "softedge_gradient")[..., 0]
    assert (soft[np.abs(distance - 30) < 1] > 200).all()
    assert not soft[np.abs(distance - 30) > 8].any()
    line = sdjax.make_hint(disc, "scribble_gradient")[..., 0]
    assert set(np.unique(line)) == {0, 255}
    assert (line[np.abs(distance - 30) < 3] == 255).all()
    assert not line[np.abs(distance - 30) > 12].any()
    for name in ("softedge_gradient", "scribble_gradient", "lineart_standard", "canny"):
        assert not sdjax.make_hint(np.full([64, 64, 3], 90, np.uint8), name).any()  # nothing is seen in nothing


def test_simple_tones():
    levels = np.arange(0, 255, 5, dtype=np.uint8).reshape(1, 17, 3).repeat(4, 0)
    assert (tones.invert(levels) == 255 - levels).all()
    assert (tones.threshold(levels, threshold=100)[0, :, 0] == np.where(levels[0, :, 0] > 100, 255, 0)).all()
    assert (tones.recolor_intensity(levels, gamma_correction=1.0)[..., 0] == levels.max(-1)).all()
    assert (tones.tile_resample(PICTURE, down_sampling_rate=1.0) == PICTURE).all()
    squared = np.trunc((levels.max(-1) / 255.0) ** 2 * 255 + 1e-4)
    assert np.abs(tones.recolor_intensity(levels, gamma_correction=2.0)[..., 1] - squared).max() <= 1


def test_a_hint_for_inpainting_is_minus_one_where_the_mask_is_white():
    mask = np.zeros(PICTURE.shape[:2], np.uint8)
    mask[:3], mask[3:5] = 128, 127
    hint = inpaint_hint(PICTURE, mask)
    assert (hint[:3] == -1).all()
    assert np.allclose(hint[3:], PICTURE[3:] / 255)
    assert hint.dtype == np.float32
    with pytest.raises(ValueError, match="a mask is uint8"):
        inpaint_hint.__wrapped__(PICTURE, mask[:-1])  # the tests' check of shapes would come first


def test_the_table_has_every_preprocessor_once():
    assert list(PLAIN) == [name for name, one in PREPROCESSORS.items() if not one.needs]
    assert all(o.low <= o.default <= o.high for one in PREPROCESSORS.values() for o in one.options.values())


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 70, 3)])
def test_small_pictures_have_hints_of_their_size(name, shape):
    made = sdjax.make_hint(np.full(shape, 200, np.uint8), name)
    assert made.shape == shape
    assert made.dtype == np.uint8


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("cany",), {}, "there is no preprocessor 'cany' .did you mean canny.*; the known ones are canny"),
        (("canny",), {"low": 3}, "canny has no option 'low': its options are low_threshold, high_threshold"),
        (("invert",), {"low": 3}, "invert has no option 'low': it has no options"),
        (("canny",), {"low_threshold": float("nan")}, "low_threshold of canny is a number from 0 to 2040; got nan"),
        (("canny",), {"low_threshold": True}, "low_threshold of canny is a number"),
        (("shuffle",), {"seed": 1.5}, "seed of shuffle is a whole number from 0 to 4294967295; got 1.5"),
        (("canny",), {"resolution": 32}, "resolution is a whole number from 64 to 2048; got 32"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        sdjax.make_hint(PICTURE, *arguments, **options)


def test_a_long_picture_is_refused_before_it_grows():
    with pytest.raises(ValueError, match="at most 8 times as long"):
        sdjax.make_hint(np.zeros([1, 2000, 3], np.uint8), "canny", resolution=512)


def test_the_command_writes_the_hints_of_a_picture_and_of_a_folder(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b"):
        image.save_png(folder / f"{name}.png", PICTURE)
    out = str(tmp_path / "hint.png")
    assert main(["hint", "canny", str(folder / "a.png"), "--out", out, "--resolution", "128"]) == 0
    assert (pictures.open_picture(out).pixels == sdjax.make_hint(PICTURE, "canny")).all()
    assert main(["hint", "shuffle", str(folder), "--out", str(tmp_path / "new"), "--option", "seed=3"]) == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.png", "b.png"]
    capsys.readouterr()
    assert main(["hint", "canny", str(folder / "a.png"), "--out", out]) == 1
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["canny", "no.png", "--out", "x.jpg"], "a hint is written as PNG"),
        (["canny", "no.png", "--out", "x.png"], "no.png cannot be read"),
        (["canny", "no.png", "--out", "x.png", "--option", "low_threshold"], "--option is NAME=VALUE"),
        (["canny", "no.png", "--out", "x.png", "--option", "low_threshold=x"], "is a number from 0 to 2040; got 'x'"),
        (["canny", "no.png", "--out", "x.png", "--option", "low=1"], "canny has no option 'low'"),
    ],
)  # fmt: skip
def test_the_command_refuses_bad_flags(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["hint", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
