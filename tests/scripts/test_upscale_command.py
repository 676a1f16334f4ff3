"""`sdjax upscale`: what its flags mean, what it writes, what it refuses before weights are read."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from command_checks import check_bad_usage, read, write

import sdjax
from sdjax import configs
from sdjax.scripts.main import main

OUT = Path("outputs/upscale-samples")


@pytest.fixture
def upscaler(fake, monkeypatch):
    """A Fake whose model is an upscaler: it repeats pixels."""
    fake.config = configs.get("x4_upscaler")

    def stand_in(pipe, images, prompts, **options):
        fake.note(prompts, images=images, **options)
        return [image.repeat(4, 0).repeat(4, 1) for image in images]

    monkeypatch.setattr(sdjax, "upscale", stand_in, raising=False)
    return fake


def upscale(*flags: str, given: str = "a.png") -> int:
    return main(["upscale", "--ckpt", "model.ckpt", "--init-img", given, *flags])


def test_defaults_are_stabilitys(upscaler, capsys) -> None:
    pixels = write("a.png", 40, 60)
    assert upscale() == 0
    (call,) = upscaler.made
    np.testing.assert_array_equal(call["images"], [pixels])
    assert (call["prompts"], call["seed"], call["noise_level"]) == ([""], [42], 20)
    assert (call["num_steps"], call["guidance_scale"]) == (50, None)
    assert upscaler.config.guidance_scale == 9  # the model's own, as in scripts/streamlit/superresolution.py
    assert capsys.readouterr().out.split() == [str(OUT / "samples/00000.png"), str(OUT / "grid-0000.png")]
    made, found = read(OUT / "samples/00000.png")
    assert made.shape == (160, 240, 3)
    assert (found["task"], found["noise_level"], found["init_img"]["width"]) == ("upscale", 20, 60)
    assert (found["width"], found["height"]) == (240, 160)


def test_a_folder_with_prompts_is_upscaled_one_by_one(upscaler) -> None:
    pixels = [write(f"in/{i}.png", seed=i) for i in range(3)]
    Path("p.txt").write_text("a\nb\nc\n")
    assert upscale("--from-file", "p.txt", "--noise_level", "100", given="in") == 0
    np.testing.assert_array_equal([call["images"][0] for call in upscaler.made], pixels)
    for i, call in enumerate(upscaler.made):
        assert (call["prompts"], call["seed"], call["noise_level"]) == (["abc"[i]], [42 + i], 100)


@pytest.mark.parametrize("level", ["351", "-1", "20.5", "many"])
def test_a_noise_level_out_of_range_is_refused(upscaler, capsys, level) -> None:
    write("a.png")
    check_bad_usage(upscale, f"--noise_level={level}", capsys)
    assert not upscaler.loaded


def test_too_large_a_picture_a_missing_one_and_no_model_are_refused_before_weights_are_read(upscaler, capsys) -> None:
    write("large.png", 513, 64)
    write("a.png")
    for flags, sentence in (
        (["--ckpt", "model.ckpt", "--init-img", "large.png"], "at most 512 x 512 pixels"),
        (["--ckpt", "model.ckpt", "--init-img", "none.png"], "cannot be read"),
        (["--init-img", "a.png"], "give its checkpoint with --ckpt"),
    ):
        assert main(["upscale", *flags]) == 2
        assert sentence in capsys.readouterr().err
    assert not upscaler.loaded


def test_a_model_of_another_kind_is_refused_before_weights_are_read(upscaler, capsys) -> None:
    write("a.png")
    upscaler.config = configs.get("sd1")
    assert upscale() == 2
    assert "upscale needs a model" in capsys.readouterr().err
    few = configs.get("x4_upscaler")
    upscaler.config = dataclasses.replace(few, unet=dataclasses.replace(few.unet, num_classes=100))
    assert upscale("--noise_level", "120") == 2
    assert "from 0 to 99" in capsys.readouterr().err
    assert not upscaler.loaded
