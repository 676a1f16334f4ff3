"""`sdjax reproduce`: says what a picture's file says, and makes the picture again."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_checks import read, write
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from sdjax import convert
from sdjax.adapters import Difference
from sdjax.convert.adapters.write import write_adapter
from sdjax.convert.names.naming import torch_name
from sdjax.nn.esrgan import RRDBConfig
from sdjax.nn.networks import NETWORKS
from sdjax.pictures.image import save_png
from sdjax.scripts.main import main

import models

A1111 = (
    "a cat\nNegative prompt: dog\nSteps: 7, Sampler: Euler a, CFG scale: 6.5, Seed: 5, Size: 64x96, "
    'Model hash: 0123456789, Model: v1-5, Lora hashes: "x: 1", Version: v1.10.1'
)


def reproduce(*flags: str, picture: str = "a.png", ckpt: str | None = "model.ckpt") -> int:
    return main(["reproduce", picture, *(["--ckpt", ckpt] if ckpt else []), *flags])


def write_with(text: str, keyword: str = "parameters", shape: tuple[int, int] = (96, 64)) -> None:
    Path("a.png").unlink(missing_ok=True)
    save_png("a.png", np.zeros((*shape, 3), np.uint8), {keyword: text})


def test_it_says_what_is_understood_and_what_not(fake, capsys) -> None:
    write_with(A1111)
    assert reproduce("--dry-run") == 0
    out = capsys.readouterr().out
    assert "a.png: made by A1111 or Forge, txt2img" in out
    assert "model: name v1-5, hash 0123456789" in out
    assert "  Steps: 7" in out.split("not understood")[0]
    assert "  Lora hashes: x: 1" in out.split("not understood")[1]
    assert not fake.loaded


def test_the_picture_of_another_tool_is_made_with_its_settings(fake, capsys) -> None:
    write_with(A1111)
    assert reproduce() == 0
    (call,) = fake.made
    assert call["prompts"] == ["a cat"]
    assert (call["seed"], call["num_steps"], call["guidance_scale"]) == ([5], [7], [6.5])
    assert (call["negative_prompt"], call["height"], call["width"]) == (["dog"], [96], [64])
    assert type(call["sampler"][0].recipe.sampler).__name__ == "Euler"
    err = capsys.readouterr().err
    assert "--ckpt model.ckpt is not the model of the picture, v1-5, whose hash is 0123456789" in err
    assert "the levels differ from those of a.png by" in err
    assert Path("outputs/reproduced/samples/00000.png").is_file()


def test_the_file_never_names_the_model(fake, capsys) -> None:
    Path("v1-5").write_bytes(b"weights")
    write_with(A1111)
    assert reproduce(ckpt=None) == 2
    assert "a.png was made with v1-5: name the model's file or folder with --ckpt" in capsys.readouterr().err
    assert not fake.loaded


REFUSED = [
    ("a\nSteps: 1, Sampler: Euler, Seed: 2, Denoising strength: 0.5", "give --init-img"),
    ("a\nSteps: 1, Sampler: Euler, Seed: 2, Mask blur: 4", "only txt2img and img2img can be made again"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_pictures_that_cannot_be_made_again_are_refused(fake, capsys, text, said) -> None:
    write_with(text)
    assert reproduce() == 2
    assert said in capsys.readouterr().err
    assert not fake.loaded


def test_a_picture_from_a_picture_needs_that(fake) -> None:
    write("b.png")
    write_with("a\nSteps: 9, Sampler: Euler, Seed: 2, Size: 64x64, Denoising strength: 0.5", shape=(64, 64))
    assert reproduce("--init-img", "b.png") == 0
    assert (fake.made[0]["strength"], fake.made[0]["num_steps"]) == ([0.5], [9])


def test_files_without_settings_and_files_that_are_none(fake, capsys) -> None:
    write("a.png")
    assert reproduce() == 2
    assert "does not say how it was made" in capsys.readouterr().err
    assert reproduce(picture="none.png") == 2
    assert "none.png cannot be read" in capsys.readouterr().err
    assert reproduce(picture=".") == 2


OURS = [
    "--n_samples 3",
    "--n_samples 2 --sampler euler_ancestral --scale 1 --lora-dir loras --sweep lora=one:2",
    *(
        pytest.param(flags, marks=pytest.mark.slow)
        for flags in (
            "--n_samples 1 --sampler dpm_solver --sampler-option order=3 --guidance-rescale 0.5 --exact",
            "--from-file lines.jsonl",
            "--n_samples 1 --hires 1.5 --hires-upscale bilinear --watermark abc",
            "--n_samples 1 --hires 1.5 --hires-steps 2 --hires-prompt dog --hires-sampler heun --hires-scale 3 "
            "--seamless x --patch token_merging:ratio=0.3 --window 64 --window-blend gaussian",
            "--n_samples 1 --hires 1.5 --hires-patch deep_cache:interval=2 --patch t_gate:gate=0.5",
            "--n_samples 2 --sweep patch=deep_cache:interval=2,t_gate:gate=0.5 --sampler dpm2",
        )
    ),
]


@pytest.mark.few(1)
@pytest.mark.parametrize("flags", OURS)
def test_a_picture_of_ours_is_made_again_bit_for_bit(monkeypatch, tmp_path, capsys, flags) -> None:
    pipe = models.pipeline()
    monkeypatch.chdir(tmp_path)
    convert.save(pipe.config, pipe.params, "model", to="native")
    lines = [{"prompt": "a cat", "steps": 2, "H": 72}, {"prompt": "a dog", "sampler": "heun", "negative_prompt": "x"}]
    Path("lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Path("loras").mkdir()
    bias = Difference(np.ones(models.TINY.unet.out_channels, "f"))
    write_adapter("loras/one.safetensors", {"unet/conv_out/bias": bias}, models.TINY)
    common = ["--ckpt", "model", "--device", "cpu:0", "--dtype", "float32"]
    assert (
        main(["txt2img", *common, "--steps", "3", "--n_iter", "1", "--skip_grid", "--outdir", "o", *flags.split()]) == 0
    )
    last = max(Path("o/samples").iterdir())
    capsys.readouterr()
    own = ["--lora-dir", "loras"] if "loras" in flags else []
    assert main(["reproduce", str(last), "--ckpt", "model", "--device", "cpu:0", *own]) == 0
    assert f"every pixel is that of {last}" in capsys.readouterr().err
    again = Path("outputs/reproduced/samples/00000.png")
    np.testing.assert_array_equal(read(again)[0], read(last)[0])
    assert read(again)[1] == read(last)[1]  # the same settings too


@pytest.mark.slow
def test_what_an_upscaler_made_is_made_again(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    config = RRDBConfig(channels=8, growth=4, num_blocks=1, doublings=1)
    leaves = flatten_dict(models.fill_tree(NETWORKS["rrdb"].shapes(config)), sep="/")
    tensors = {torch_name(path): np.asarray(leaf).T.swapaxes(-1, -2) for path, leaf in leaves.items() if leaf.ndim == 4}
    tensors |= {torch_name(path): np.asarray(leaf) for path, leaf in leaves.items() if leaf.ndim == 1}
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, "up.safetensors")
    save_png("a.png", models.picture(24, 32))
    assert main(["upscale", "--model", "up.safetensors", "--init-img", "a.png", "--times", "1.5", "--outdir", "o"]) == 0
    pipe = models.pipeline()
    convert.save(pipe.config, pipe.params, "model", to="native")
    flags = "--ckpt model --steps 2 --n_samples 1 --n_iter 1 --skip_grid --hires 1.5 --upscaler up.safetensors"
    assert main(["txt2img", *flags.split(), "--outdir", "o"]) == 0
    capsys.readouterr()
    for number, more in ("0", "--init-img a.png"), ("1", "--ckpt model"):
        last = f"o/samples/0000{number}.png"
        assert main(["reproduce", last, *more.split()]) == 2
        assert "up.safetensors: give --upscaler" in capsys.readouterr().err
        assert main(["reproduce", last, *more.split(), "--upscaler", "up.safetensors"]) == 0
        assert f"every pixel is that of {last}" in capsys.readouterr().err
