"""Notes report unexpected behaviour, and a picture records the settings that were used."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.checks.notes import Note
from sdjax.samplers import DPMSolverMultistep
from sdjax.scripts.main import main
from sdjax.scripts.shared import input_pictures

import models

GREY = np.full((64, 64, 3), 128, np.uint8)
GREY[:32] = 30


def few() -> dict:
    import jax

    return {"num_steps": 1, "devices": jax.local_devices()[:1]}


def test_a_strength_that_leaves_no_step_is_said() -> None:
    with pytest.warns(Note, match="strength 0.1 leaves none of 1 steps"):
        sdjax.image_to_image(models.pipeline(), GREY, "a", strength=0.1, **few())


def test_a_mask_that_selects_nothing_is_said() -> None:
    with pytest.warns(Note, match="the mask of 1 of 1 pictures selects nothing"):
        made = sdjax.inpaint(models.pipeline(), GREY, np.zeros((64, 64), bool), "a", strength=0, **few())
    np.testing.assert_array_equal(made[0], GREY)


def test_a_negative_prompt_without_guidance_is_said() -> None:
    with pytest.warns(Note, match="negative_prompt has no effect at guidance_scale 1"):
        sdjax.image_to_image(models.pipeline(), GREY, "a", negative_prompt="b", guidance_scale=1, strength=0, **few())


def test_a_request_without_guidance_says_what_has_no_effect() -> None:
    pipe, given = models.pipeline(), {"guidance_rescale": 0.7, "negative_prompt_embeds": np.zeros((77, 32))}
    for name, value in given.items():
        with pytest.warns(Note, match=f"{name} has no effect at guidance_scale 1"):
            sdjax.text_to_image.session(pipe, "a", guidance_scale=[1, 5], **{name: value}, **few())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        requests = [sdjax.Request("a", guidance_scale=1), sdjax.Request("a", guidance_scale=5, **given)]
        sdjax.generate.session(pipe, requests)


def test_a_samplers_field_that_its_method_ignores_is_said(recwarn) -> None:
    DPMSolverMultistep(order=3, lower_order_below=0)
    assert not list(recwarn)
    with pytest.warns(Note, match="lower_order_below = 0 has no effect in order 1"):
        DPMSolverMultistep(order=1, lower_order_below=0)
    with pytest.warns(Note, match="quantile = 0.9 has no effect without thresholding"):
        DPMSolverMultistep(quantile=0.9)


@pytest.mark.slow
def test_a_picture_records_what_was_used(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    flags = "--scale 1 --steps 1 --n_iter 1 --n_samples 1 --sampler dpm_solver --watermark x --skip_grid --device cpu:0"
    assert main(["txt2img", "--prompt", "a rocket (red:1.3)", "--prompt-syntax", "plain", *flags.split()]) == 0
    err = capsys.readouterr().err
    assert err.count("another tool's syntax, which is read as plain words here and may spoil the picture: \"(red") == 1
    (path,) = Path("outputs").rglob("*.png")
    with Image.open(path) as png:
        found = json.loads(png.text["sdjax"])
    assert "negative_prompt" not in found
    assert "watermark" not in found  # the picture is too small for one
    assert found["sampler_options"].keys().isdisjoint({"atol", "joint", "quantile"})
    assert main(["txt2img", "--negative-prompt", "", *flags.split()]) == 2
    assert "--negative-prompt has no effect at guidance scale 1" in capsys.readouterr().err


def test_an_option_of_the_sampler_without_effect_is_refused(capsys) -> None:
    assert main(["txt2img", "--dpm", "--sampler-option", "quantile=0.995"]) == 2
    err = capsys.readouterr().err
    assert "quantile of the sampler dpm_solver has no effect" in err
    assert len(err.splitlines()) == 1


def test_a_background_of_opaque_pictures_is_said(tmp_path, capsys) -> None:
    for name, picture, said in ("opaque", GREY, True), ("clear", np.dstack([GREY, GREY[..., :1]]), False):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        input_pictures.read_pictures(str(tmp_path / f"{name}.png"), (1, 2, 3))
        assert ("--background has no effect" in capsys.readouterr().err) == said
