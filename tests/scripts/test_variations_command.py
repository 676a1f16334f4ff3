"""`sdjax variations`: what the flags mean, mixing, priors, what is written, what is refused before weights are read."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from command_checks import read, write

import sdjax
from sdjax import configs
from sdjax.config import PriorConfig, UNetConfig, VisionConfig
from sdjax.pictures import preprocess
from sdjax.scripts import variations as command
from sdjax.scripts.main import main
from sdjax.tasks import prior

import models

OUT = Path("outputs/variations-samples")


def settings(number: int = 0) -> dict:
    return read(OUT / f"samples/{number:05}.png")[1]


@pytest.fixture
def unclip_model(fake, monkeypatch):
    """A Fake whose model is unCLIP-H, and Karlo's prior of unCLIP-L's length."""
    fake.config = configs.get("sd2_unclip_h")

    def blank(pipe, images, prompts, **options):
        fake.note(prompts, images=images, **options)
        return np.stack([np.full((64, 64, 3), seed, np.uint8) for seed in options["seed"]])

    monkeypatch.setattr(sdjax, "image_variations", blank, raising=False)
    monkeypatch.setattr(sdjax, "prior_to_image", blank, raising=False)
    monkeypatch.setattr(sdjax.Prior, "load", lambda path, **how: prior.Prior(PriorConfig(), {}, None))
    return fake


def variations(*flags: str) -> int:
    return main(["variations", "--ckpt", "model.ckpt", *flags])


def test_names_and_numbers_are_the_librarys() -> None:
    assert tuple(preprocess.DIALECTS) == command.DIALECTS
    defaults = prior.Prior.embed.__kwdefaults__
    assert (defaults["num_steps"], defaults["guidance_scale"]) == (command.PRIOR_STEPS, command.PRIOR_SCALE)


def test_defaults_are_stabilitys(unclip_model, capsys) -> None:
    # scripts/streamlit/stableunclip.py: 2 rows of 2, 20 steps, eta 0, scale 10, noise level 0
    pixels = write("a.png")
    assert variations("--init-img", "a.png") == 0
    first, second = unclip_model.made
    assert [call["seed"] for call in (first, second)] == [[42, 43], [44, 45]]
    assert first["prompts"] == ["a professional photograph"] * 2
    assert (first["num_steps"], first["sampler"].eta, first["noise_level"], first["dialect"]) == (20, 0, [0], "ldm")
    assert (first["guidance_scale"], unclip_model.config.guidance_scale) == (None, 10)  # None: the model's own
    np.testing.assert_array_equal(first["images"], [pixels])  # CLIP sees it once, not once for every result
    assert len(capsys.readouterr().out.split()) == 5
    found = settings()
    assert (found["task"], found["noise_level"], found["init_img"]["name"]) == ("variations", 0, "a.png")


def test_several_pictures_make_one_each(unclip_model) -> None:
    pixels = [write("in/a.png", seed=0), write("in/b.png", 30, 30, seed=1), write("c.png", seed=2)]
    flags = ["--init-img", "in", "--init-img", "c.png", "--noise_level", "0,5,900", "--n_iter", "1"]
    assert variations(*flags, "--n_samples", "2", "--prompt", "a cat", "--clip-preprocess", "huggingface") == 0
    first, second = unclip_model.made
    filled = [*pixels, pixels[2]]  # so that the second batch is no other program
    for got, want in zip([*first["images"], *second["images"]], filled, strict=True):
        np.testing.assert_array_equal(got, want)
    assert (first["noise_level"], second["noise_level"]) == ([0, 5], [900, 900])
    assert (second["prompts"], second["seed"], second["dialect"]) == (["a cat"] * 2, [44, 44], "huggingface")
    assert (settings(2)["init_img"]["name"], settings(2)["noise_level"]) == ("c.png", 900)


def test_weights_mix_all_pictures_into_each_result(unclip_model) -> None:
    write("a.png")
    write("b.png")
    flags = ["--init-img", "a.png", "--init-img", "b.png", "--weights=-1,2.5", "--mix-noise-level", "7"]
    assert variations(*flags, "--noise-level", "3", "--n_iter", "1", "--H", "512") == 0
    (call,) = unclip_model.made
    assert (len(call["images"]), len(call["prompts"]), call["height"], call["width"]) == (2, 2, 512, None)
    assert (call["weights"], call["noise_level"], call["mix_noise_level"]) == ([-1, 2.5], [3, 3], 7)
    found = settings(1)
    assert [(one["init_img"]["name"], one["weight"]) for one in found["mixed"]] == [("a.png", -1), ("b.png", 2.5)]
    assert found["mix_noise_level"] == 7


def test_a_prior_needs_no_picture(unclip_model, tmp_path) -> None:
    unclip_model.config = configs.get("sd2_unclip_l")
    (tmp_path / "karlo").mkdir()
    (tmp_path / "stats.th").write_bytes(b"numbers")
    flags = ["--prior", "karlo", "--prompt", "a cat", "--prior-prompt", "a tabby", "--noise_level", "5"]
    assert variations(*flags, "--prior-steps", "9", "--n_iter", "1", "--noise-stats", "stats.th") == 0
    (call,) = unclip_model.made
    assert (call["prompts"], call["prior_prompt"]) == (["a cat"] * 2, "a tabby")
    assert (call["prior_steps"], call["prior_scale"], call["noise_level"]) == (9, 4, 5)
    assert unclip_model.loaded[0][1]["noise_stats"] == "stats.th"
    found = settings()
    assert (found["prior"]["name"], found["prior_steps"], found["noise_stats"]["bytes"]) == ("karlo", 9, 7)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "either --init-img (pictures) or --prior (a text alone); got neither"),
        (
            ["--init-img", "a.png", "--prior", "x", "--prompt", "a"],
            "either --init-img (pictures) or --prior (a text alone); got both",
        ),
        (["--init-img", "a.png", "--weights", "1,2"], "--weights needs one for each of the 1 pictures; got 2"),
        (["--init-img", "a.png", "--weights", "0"], "expected finite numbers whose sum is not 0"),
        (["--init-img", "a.png", "--weights", "1,nan"], "expected finite numbers whose sum is not 0"),
        (["--init-img", "a.png", "--noise_level", "1000"], "a noise level is from 0 to 999; got 1000"),
        (["--init-img", "a.png", "--noise_level", "1,2"], "for each of the 1 pictures; got 2"),
        (["--init-img", "a.png", "--mix-noise-level", "5"], "--mix-noise-level has no effect without --weights"),
        (["--init-img", "a.png", "--prior-steps", "5"], "--prior-steps has no effect without --prior"),
        (["--init-img", "a.png", "--H", "100"], "height is a multiple of 8"),
        (["--init-img", "none.png"], "--init-img none.png cannot be read"),
        (["--prior", ".", "--prompt", "a", "--weights", "1"], "--weights has no effect with --prior"),
        (["--prior", ".", "--prompt", "a", "--prior-steps", "1001"], "the prior takes 1 to 1000 steps"),
        (["--prior", "."], "--prior needs a text"),
        (["--init-img", "a.png", "--ckpt", "none.ckpt"], "none.ckpt: there is no such file"),
        (["--init-img", "a.png", "--vision", "none.ckpt"], "none.ckpt: there is no such file"),
        (["--prior", "./none.ckpt", "--prompt", "a"], "none.ckpt: there is no such file"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(unclip_model, capsys, flags, message) -> None:
    write("a.png")
    given = ["--ckpt", "model.ckpt"] * ("--ckpt" not in flags)
    try:
        status = main(["variations", *given, *flags])
    except SystemExit as stop:  # argparse's own
        status = stop.code
    assert status == (3 if "none.ckpt" in message else 2)
    assert message in capsys.readouterr().err
    assert not unclip_model.loaded


def test_models_that_cannot_are_refused_before_their_weights(unclip_model, capsys) -> None:
    write("a.png")
    assert variations("--prior", ".", "--prompt", "a") == 2
    assert "embeddings of 1024 numbers, the prior makes embeddings of 768" in capsys.readouterr().err
    unclip_model.config = dataclasses.replace(unclip_model.config, vision=None)
    assert variations("--init-img", "a.png") == 2
    assert "this model has no image tower: give one with --vision" in capsys.readouterr().err
    unclip_model.config = configs.get("sd2_v")
    assert variations("--init-img", "a.png") == 2
    assert "variations needs a model that takes image variations" in capsys.readouterr().err
    assert main(["variations", "--init-img", "a.png"]) == 2
    assert "no unCLIP model is named" in capsys.readouterr().err
    assert not unclip_model.loaded


@pytest.mark.slow
def test_a_small_model_goes_the_whole_way(monkeypatch, tmp_path) -> None:
    tiny = dataclasses.replace(
        models.TINY,
        unet=UNetConfig(channels=(32,), heads=(2,), mid_heads=2, transformer_depth=(1,), self_attention=(True,),
                        num_res_blocks=1, context_dim=32, label_dim=32),
        vision=VisionConfig(image_size=28, patch_size=14, width=32, layers=1, heads=2, projection=16),
        text=dataclasses.replace(models.TINY.text, layers=1),
        noise_stats=16,
    )  # fmt: skip
    pipe = models.pipeline(tiny)
    monkeypatch.chdir(tmp_path)
    Path("model.ckpt").write_bytes(b"weights")
    monkeypatch.setattr(sdjax, "load", lambda path, *, check, **how: [check(tiny), pipe][1])
    both = [write("a.png", seed=1), write("b.png", 50, 30, seed=2)]
    flags = ["--init-img", "a.png", "--init-img", "b.png", "--weights", "1,3", "--noise_level", "0,50"]
    flags += ["--steps", "2", "--n_iter", "1", "--n_samples", "1", "--scale", "1", "--skip_grid", "--device", "cpu:0"]
    assert variations(*flags) == 0
    shared = {"num_steps": 2, "guidance_scale": 1, "seed": 42, "devices": jax.devices()[:1]}
    want = sdjax.image_variations(pipe, both, command.PROMPT, weights=[1, 3], noise_level=[0, 50], **shared)
    np.testing.assert_array_equal(read(OUT / "samples/00000.png")[0], want[0])
