"""Pixels, grids and PNG files."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdjax.pictures import image

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def test_truncation_is_the_release_scripts_and_nearest_diffusers() -> None:
    # By hand: 255 (x + 1) / 2 is 0, 127.5, 254.8725, 255, and values outside are clipped
    x = np.float32([-1, 0, 0.999, 1, -2, 2, np.inf, -np.inf])
    assert image.to_uint8(x).tolist() == [0, 127, 254, 255, 0, 255, 255, 0]
    assert image.to_uint8(x, rounding="nearest").tolist() == [0, 128, 255, 255, 0, 255, 255, 0]


def test_nearest_undoes_to_float() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    floats = image.to_float(pixels)
    assert floats.dtype == np.float32
    assert (floats[0], floats[255]) == (-1, 1)
    np.testing.assert_array_equal(image.to_uint8(floats, rounding="nearest"), pixels)


def test_what_has_no_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="not numbers"):
        image.to_uint8(np.float32([0, np.nan]))
    with pytest.raises(ValueError, match="truncate, nearest; got 'up'"):
        image.to_uint8(np.zeros(1), rounding="up")
    with pytest.raises(ValueError, match="uint8; got float64"):
        image.to_float(np.zeros(1))


@pytest.mark.torch
def test_to_uint8_equals_the_release_scripts_in_torch() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(0, 0.7, (1, 64, 64, 3)).astype(np.float32)
    theirs = 255.0 * torch.clamp((torch.from_numpy(x) + 1.0) / 2.0, min=0.0, max=1.0).numpy()
    np.testing.assert_array_equal(image.to_uint8(x), theirs.astype(np.uint8))


def test_grid_is_torchvisions() -> None:
    # make_grid(nrow=2, padding=2): pictures of 4 x 6 start at multiples of side + 2, after a line of 2
    pictures = np.stack([np.full((4, 6, 3), value, np.uint8) for value in (50, 100, 150)])
    expected = np.zeros((14, 18, 3), np.uint8)
    expected[2:6, 2:8], expected[2:6, 10:16], expected[8:12, 2:8] = 50, 100, 150
    np.testing.assert_array_equal(image.grid(pictures, 2), expected)
    assert image.grid(pictures, 9).shape == (8, 26, 3)  # no more columns than pictures
    np.testing.assert_array_equal(image.grid(pictures[:1], 3), pictures[0])
    with pytest.raises(ValueError, match="at least one"):
        image.grid(pictures, 0)


def test_png_holds_pixels_and_texts(tmp_path: Path) -> None:
    texts = {
        "parameters": "caf\xe9, \u65e5\u672c \U0001f600\nSteps: 1",
        "sdjax": json.dumps({"prompt": "\u65e5\udcff"}),
    }
    image.save_png(tmp_path / "a.png", PICTURE, texts)
    with Image.open(tmp_path / "a.png") as png:
        png.load()
        np.testing.assert_array_equal(np.asarray(png), PICTURE)
        assert png.text == texts
        assert json.loads(png.text["sdjax"]) == {"prompt": "\u65e5\udcff"}


def test_text_that_utf8_cannot_hold_is_replaced() -> None:
    data = image.encode_png(PICTURE, {"parameters": "a\udcffb\0c\u65e5"})
    assert "a?b?c\u65e5".encode() in data


def test_png_is_the_same_every_time() -> None:
    assert image.encode_png(PICTURE, {"a": "b"}) == image.encode_png(PICTURE.copy(), {"a": "b"})


@pytest.mark.parametrize("wrong", [np.zeros((4, 6, 3)), PICTURE[0], PICTURE[None], PICTURE[:0], PICTURE[..., :1]])
def test_what_is_not_a_picture_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[h, w, 3\]"):
        image.encode_png(wrong)


def test_save_png_never_overwrites(tmp_path: Path) -> None:
    image.save_png(tmp_path / "a.png", PICTURE)
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(FileExistsError):
        image.save_png(tmp_path / "a.png", PICTURE[::-1])
    assert (tmp_path / "a.png").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_numbers_go_on_above_the_highest(tmp_path: Path) -> None:
    for name in ("00002.png", "00007.png", "grid-0041.png", "7.png", "00009.jpg", "x00009.png"):
        (tmp_path / name).touch()
    assert image.save_numbered(tmp_path, PICTURE).name == "00008.png"
    assert image.save_numbered(tmp_path, PICTURE, prefix="grid-", digits=4).name == "grid-0042.png"
    (tmp_path / "99999.png").touch()
    assert image.save_numbered(tmp_path, PICTURE).name == "100000.png"
    assert image.save_numbered(tmp_path, PICTURE).name == "100001.png"


def test_first_number_is_zero(tmp_path: Path) -> None:
    assert image.save_numbered(tmp_path, PICTURE).name == "00000.png"


def write_ten(folder: Path, value: int) -> list[str]:
    return [image.save_numbered(folder, np.full((8, 8, 3), value, np.uint8)).name for _ in range(10)]


def test_two_processes_never_take_the_same_number(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        names = pool.starmap(write_ten, [(tmp_path, 1), (tmp_path, 2)])
    assert sorted(names[0] + names[1]) == [f"{i:05}.png" for i in range(20)] == sorted(os.listdir(tmp_path))
    for value, written in enumerate(names, start=1):
        for name in written:
            with Image.open(tmp_path / name) as png:
                assert (np.asarray(png) == value).all()


def test_race_for_a_number_is_lost_gracefully(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_next_number", lambda *args: 0)
    assert [image.save_numbered(tmp_path, PICTURE).name for _ in range(3)] == ["00000.png", "00001.png", "00002.png"]


def test_file_systems_without_hard_links_work_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert image.save_numbered(tmp_path, PICTURE).name == "00000.png"
    assert image.save_numbered(tmp_path, PICTURE).name == "00001.png"
    with pytest.raises(FileExistsError):
        image.save_png(tmp_path / "00001.png", PICTURE)
    with Image.open(tmp_path / "00001.png") as png:
        np.testing.assert_array_equal(np.asarray(png), PICTURE)
    assert sorted(os.listdir(tmp_path)) == ["00000.png", "00001.png"]


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        image.save_numbered(tmp_path, PICTURE)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_files_have_the_users_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    path = image.save_numbered(tmp_path, PICTURE)
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def read_pairs(line: str) -> dict[str, str]:
    """Returns the pairs of an infotext's last line: values end at a comma, or are JSON strings that may hold some."""
    pairs = {}
    while line:
        key, line = line.split(": ", 1)
        if line.startswith('"'):
            value, end = json.JSONDecoder().raw_decode(line)
        else:
            value = line.split(",")[0]
            end = len(value)
        pairs[key], line = value, line[end:].removeprefix(", ")
    return pairs


def test_infotext_is_what_other_tools_read() -> None:
    text = image.infotext("a cat,\nsitting", "dog", {"Steps": 50, "Sampler": "DDIM", "Model": 'odd, "name"'})
    *prompt, negative, last = text.split("\n")
    assert prompt == ["a cat,", "sitting"]
    assert negative == "Negative prompt: dog"
    assert read_pairs(last) == {"Steps": "50", "Sampler": "DDIM", "Model": 'odd, "name"'}
    assert "Negative" not in image.infotext("a", "", {"Steps": 1})


def test_keywords_are_png_text_chunks() -> None:
    data = image.encode_png(PICTURE, {"parameters": "a", "sdjax": "{}"})
    assert data.index(b"tEXtparameters\0a") < data.index(b"tEXtsdjax\0{}") < data.index(b"IDAT")
