"""`sdjax depth2img`: what the flags mean, maps given and estimated, what is written and refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from command_checks import read, write
from PIL import Image

import sdjax
from sdjax import pictures
from sdjax.config import DepthConfig
from sdjax.scripts.main import main

OUT = Path("outputs/depth2img-samples")


def write_map(path, height=64, width=64):
    """Writes a ramp as grey of 16 bits and returns it."""
    ramp = np.linspace(0, 65535, height * width).astype(np.uint16).reshape(height, width)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ramp).save(path)
    return ramp


def depth2img(*flags, given="a.png"):
    return main(["depth2img", "--ckpt", "model.ckpt", "--init-img", given, "--n_iter", "1", *flags])


@pytest.fixture
def depth_model(fake, monkeypatch):
    """Makes the Fake a model that takes depth, with a network that estimates it."""
    unet = dataclasses.replace(fake.config.unet, in_channels=5)
    fake.config = dataclasses.replace(fake.config, unet=unet, depth=DepthConfig())

    def depth_to_image(pipe, images, prompts, *, depth_map, **options):
        return fake.from_pictures(pipe, images, depth_map, prompts, **options)

    def estimate_depth(pipe, images, **where):
        return [image[..., 0].astype(np.float32) for image in images]

    monkeypatch.setattr(sdjax, "depth_to_image", depth_to_image, raising=False)
    monkeypatch.setattr(sdjax, "estimate_depth", estimate_depth, raising=False)
    return fake


def test_the_defaults_are_those_of_stabilitys_demo(depth_model, capsys):
    write("a.png")
    assert depth2img() == 0
    (call,) = depth_model.made
    assert (call["strength"], call["num_steps"], call["guidance_scale"]) == (0.9, 50, None)  # None: the model's, 9
    assert (call["sampler"].eta, len(call["prompts"]), call["mask"]) == (0.0, 1, None)
    names = [OUT / "samples/00000.png", OUT / "grid-0000.png"]
    assert capsys.readouterr().out.split() == [str(name) for name in names]
    _, settings = read(names[0])
    assert (settings["task"], settings["depth"], settings["strength"]) == ("depth2img", None, 0.9)


def test_a_given_map_is_used_and_recorded(depth_model):
    write("a.png")
    ramp = write_map("d.png", 32, 32)
    assert depth2img("--depth", "d.png", "--n_samples", "2") == 0
    np.testing.assert_allclose(depth_model.made[0]["mask"][1], ramp / 65535, atol=1e-6)
    assert read(OUT / "samples/00001.png")[1]["depth"]["name"] == "d.png"


def test_a_folder_of_maps_goes_with_a_folder_of_pictures(depth_model):
    write("in/a.png")
    write("in/b.png", 128, 64)
    a, b = write_map("maps/a_depth.png"), write_map("maps/b.png", 64, 32)
    assert depth2img("--depth", "maps", given="in") == 0
    for got, want in zip(depth_model.made[0]["mask"], (a, b), strict=True):
        np.testing.assert_allclose(got, want / 65535, atol=1e-6)
    Path("maps/b.png").unlink()
    assert depth2img("--depth", "maps", given="in") == 2


def test_maps_are_saved_as_sixteen_bits(depth_model, capsys):
    pixels = write("a.png", 100, 120)
    assert depth2img("--save-depth", "--skip_grid") == 0
    path = OUT / "depth/00000.png"
    assert str(path) in capsys.readouterr().out.split()
    values = pictures.open_map(path).values
    want = pixels[..., 0].astype(np.float32)
    np.testing.assert_allclose(values, (want - want.min()) / np.ptp(want), atol=1e-5)
    assert depth2img("--depth", str(path)) == 0


def test_another_files_network_is_asked_for(depth_model):
    write("a.png")
    assert depth2img("--depth-model", "Intel/dpt-hybrid-midas") == 0
    assert depth_model.loaded[0][1]["depth"] == "Intel/dpt-hybrid-midas"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--depth", "wide.png"],
            "--depth wide.png: a depth map must have its picture's aspect ratio; got a map of 128",
        ),
        (["--depth", "none.png"], "--depth none.png cannot be read"),
        (["--depth", "text.png"], "PNG, JPEG and WebP files are read"),
        (["--depth", "d.png", "--depth-model", "x"], "leave one of them out"),
        (["--strength", "1.5"], "a strength is from 0 to 1"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(depth_model, capsys, flags, message):
    write("a.png")
    write_map("wide.png", 64, 128)
    write_map("d.png")
    Path("text.png").write_text("no picture")
    try:
        status = depth2img(*flags)
    except SystemExit as stop:  # argparse's own
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not depth_model.loaded


def test_models_that_cannot_are_refused(depth_model, capsys):
    write("a.png")
    whole = depth_model.config
    depth_model.config = dataclasses.replace(whole, depth=None)
    assert depth2img() == 2
    assert "no depth network: give the depth with --depth" in capsys.readouterr().err
    depth_model.config = dataclasses.replace(whole, unet=dataclasses.replace(whole.unet, in_channels=4), depth=None)
    assert depth2img() == 2
    assert "needs a model that takes 5 channels (latent, depth); this one (sd2_v) takes 4" in capsys.readouterr().err
    assert not depth_model.loaded
    write("big.png", 64, 2100)
    assert depth2img(given="big.png") == 2
    assert "at most 2048 x 2048" in capsys.readouterr().err
