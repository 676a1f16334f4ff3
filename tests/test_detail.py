"""Detailing: which parts, that nothing else changes, and the detector."""

import jax
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.checks.notes import Note
from sdjax.convert.parts.detector import LoadedDetector
from sdjax.nn.detector import DetectorConfig
from sdjax.pictures.geometry import resize
from sdjax.scripts.main import main
from sdjax.tasks import detecting

import models

FEW = {"num_steps": 3, "devices": jax.devices()[:1]}
SMALL = DetectorConfig((8,) * 5, (8,) * 4, (1,) * 8, 2)


def picture(height=96, width=128, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def changed(before, after):
    """Returns the box (left, top, right, bottom) of the pixels that changed."""
    rows, columns = np.nonzero((before != after).any(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_only_the_parts_change_and_each_is_the_inpainting_of_its_square():
    pipe, given = models.pipeline(), picture()
    boxes = [(8, 8, 16, 16), (90, 40, 20, 30)]
    made = sdjax.detail(pipe, given, "a cat", boxes=boxes, strength=0.7, grow=0, padding=8, feather=0, seed=3, **FEW)
    assert made.shape == (1, *given.shape)
    mask = np.zeros(given.shape[:2], bool)
    for left, top, width, height in boxes:
        mask[top : top + height, left : left + width] = True
    np.testing.assert_array_equal(made[0][~mask], given[~mask])
    assert (made[0][mask] != given[mask]).mean() > 0.5
    square = given[32:78, 77:123]  # 46 pixels around the second box: its long side and twice the padding
    inner = mask[32:78, 77:123]
    side = pipe.config.image_size
    alone = sdjax.inpaint(
        pipe, resize(square, side, side), resize(np.uint8(255) * inner, side, side, "nearest") > 0, "a cat",
        strength=0.7, seed=4, composite=False, **FEW,
    )  # fmt: skip
    want = resize(alone[0], 46, 46)
    assert np.abs(want[inner].astype(int) - made[0][32:78, 77:123][inner]).max() <= 1


def test_the_connected_white_parts_of_a_mask_grow_and_the_largest_are_kept():
    given, mask = picture(), np.zeros((96, 128), bool)
    mask[10:20, 10:20] = mask[50:80, 60:90] = True
    made = sdjax.detail(models.pipeline(), given, masks=mask, most=1, grow=3, feather=0, **FEW)
    assert changed(given, made[0]) == (57, 47, 93, 83)


def test_pictures_without_parts_come_back_and_options_can_be_one_for_each():
    given = [picture(), picture(seed=1)]
    with pytest.warns(Note, match="picture 0 has no part"):
        first, second = sdjax.detail(
            models.pipeline(), given, ["a", "b"], boxes=[[], [(8, 8, 16, 16)]], strength=[0.2, 0.8], seed=[1, 2], **FEW
        )
    np.testing.assert_array_equal(first, given[0])
    assert (second != given[1]).any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "give boxes, or masks, or a detector"),
        ({"boxes": [(0, 0, 8, 8)], "masks": np.ones((96, 128), bool)}, "one of these"),
        ({"boxes": (0, 0, 8, 8)}, "in a list"),
        ({"boxes": [(0, 0, 8)]}, "left, top, width, height"),
        ({"boxes": [(200, 0, 8, 8)]}, "no pixel of a picture of 128 x 96"),
        ({"boxes": [(0, 0, 8, 8)], "most": 0}, "most"),
        ({"boxes": [(0, 0, 8, 8)], "grow": -1}, "grow"),
        ({"boxes": [(i, 0, 8, 8) for i in range(101)]}, "at most 100 parts"),
        ({"detector": 3}, "a detector is a file"),
    ],
)
def test_what_is_wrong_is_said(arguments, said):
    with pytest.raises(ValueError, match=said):
        sdjax.detail(models.pipeline(), picture(), **arguments, **FEW)


def detector():
    return LoadedDetector(SMALL, {}, "d.pt")


def test_the_detectors_boxes_are_in_the_pictures_pixels_the_surest_first_and_apart(monkeypatch):
    boxes = np.array([[64, 164, 192, 228], [70, 164, 192, 228], [320, 164, 384, 292], [0, 0, 640, 640]], np.float32)
    shares = np.array([[0.5, 0.1], [0.2, 0.9], [0.4, 0.31], [0.1, 0.2]], np.float32)
    monkeypatch.setattr(detecting, "_run", lambda *_: (boxes[None], shares[None]))
    found = detecting.boxes_of(detector(), picture(100, 128), 0.3)  # 5 times as large, 6 rows of border
    np.testing.assert_allclose(found, [[14, 31.6, 38.4, 44.4], [64, 31.6, 76.8, 57.2]], atol=1e-5)
    masks = detecting.find(detector(), picture(100, 128), 0.3)
    assert [tuple(np.argwhere(mask).min(0)) for mask in masks] == [(31, 14), (31, 64)]


@pytest.mark.slow  # loads and compiles the built-in model
def test_the_command_makes_several_parts_of_a_folders_pictures(tmp_path):
    for i in range(2):
        Image.fromarray(picture(seed=i)).save(tmp_path / f"{i}.png")
    where = ["--init-img", str(tmp_path), "--outdir", str(tmp_path / "out"), "--preview", str(tmp_path / "preview.png")]
    assert main(["detail", *where, "--box=8,8,16,16", "--box=90,40,20,30", "--grow=0", "--steps=2", "--skip_grid"]) == 0
    for i in range(2):
        made = np.asarray(Image.open(tmp_path / "out" / "samples" / f"{i:05}.png"))
        same = (made == picture(seed=i)).all(-1)
        assert not same[8:24, 8:24].all()
        assert not same[40:70, 90:110].all()
        same[8:24, 8:24] = same[40:70, 90:110] = True
        assert same.all()
