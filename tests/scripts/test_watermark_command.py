"""`sdjax watermark` and --watermark: what is read, written, passed by and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdjax.pictures import watermark
from sdjax.scripts import watermark as command
from sdjax.scripts.main import main


def picture(side: int = 256) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return np.stack([x % 256, y % 256, (x * y // 97) % 256], -1).astype(np.uint8)


def save(path: str, pixels: np.ndarray) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_written_and_read_back(fake, capsys) -> None:
    save("in/a.png", picture())
    assert main(["watermark", "--embed", "SDV2", "in"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == Path("outputs/watermarked/00000.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), watermark.embed(picture(), "SDV2"))
    assert main(["watermark", str(path), "in/a.png"]) == 0
    marked, plain = capsys.readouterr().out.splitlines()
    assert marked.startswith(f"{path}: SDV2 (")
    assert plain.startswith("in/a.png: no watermark (")
    assert main(["watermark", "--text", "mine", "--text", "SDV2", str(path)]) == 0
    assert ": SDV2 (" in capsys.readouterr().out


def test_unknown_bytes_are_read_with_their_agreement(fake, capsys) -> None:
    save("flat.png", watermark.embed(np.full((256, 256, 3), 200, np.uint8), "hello"))
    assert main(["watermark", "--bytes", "5", "flat.png"]) == 0
    assert capsys.readouterr().out == "flat.png: b'hello', 100% of the blocks agree\n"


def test_texts_are_the_releases() -> None:
    assert tuple(watermark.TEXTS.values()) == command.RELEASES


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--embed", "x", "--text", "y", "a.png"], "leave one of them out"),
        (["--bytes", "3", "--text", "y", "a.png"], "leave one of them out"),
        (["--embed", "", "a.png"], "a.png: a watermark is a text of at least one character"),
        (["small.png"], "small.png: a watermark needs a picture of at least 256 x 256"),
        (["--bytes", "1000", "a.png"], "1 to 1024 bits"),
        (["none.png"], "none.png cannot be read"),
        (["text.png"], "PNG"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(fake, capsys, flags, sentence) -> None:
    save("a.png", picture())
    save("small.png", picture(64))
    Path("text.png").write_text("no picture")
    assert main(["watermark", *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_making_commands_mark_pictures_and_grid(fake) -> None:
    flags = ["--H", "256", "--W", "256", "--n_iter", "1", "--n_samples", "2", "--watermark", "StableDiffusionV1"]
    assert main(["txt2img", "--ckpt", "model.ckpt", *flags]) == 0
    out = Path("outputs/txt2img-samples")
    for name in "samples/00000.png", "samples/00001.png", "grid-0000.png":
        with Image.open(out / name) as png:
            assert watermark.evidence(np.asarray(png), "StableDiffusionV1") > 8
            assert json.loads(png.text["sdjax"])["watermark"] == "StableDiffusionV1"


def test_pictures_without_room_are_written_unmarked_with_a_note(fake, capsys) -> None:
    flags = ["--n_iter", "1", "--n_samples", "1", "--skip_grid", "--watermark", "SDV2"]  # 96 x 96
    assert main(["txt2img", "--ckpt", "model.ckpt", *flags]) == 0
    assert "no watermark was written: a watermark needs" in capsys.readouterr().err
    found = np.asarray(Image.open("outputs/txt2img-samples/samples/00000.png"))
    np.testing.assert_array_equal(found, np.random.default_rng(42).integers(0, 256, (96, 96, 3), np.uint8))


def test_an_empty_watermark_is_refused_before_weights_are_read(fake, capsys) -> None:
    assert main(["txt2img", "--ckpt", "model.ckpt", "--watermark", ""]) == 2
    assert "--watermark needs at least one character" in capsys.readouterr().err
    assert not fake.loaded
