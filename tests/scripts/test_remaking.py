"""`sdjax reproduce` of pictures that were made from other pictures: what it needs, and the same bits again."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from command_checks import read, write
from PIL import Image

from sdjax import convert
from sdjax.pictures.image import save_png
from sdjax.scripts.main import main
from sdjax.scripts.shared import noise_files

import models


def write_files() -> None:
    """Writes in.png, mask.png, depth.png and noise.npy."""
    write("in.png")
    write("other.png", seed=1)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 8:32] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(np.mgrid[:64, :64][1].astype(np.uint8)).save("depth.png")
    Path("noise.npy").write_bytes(noise_files.encode(np.random.default_rng(0).normal(size=(8, 8, 4))))


def reproduce(picture: Path, *flags: str, ckpt: str = "model.ckpt") -> int:
    return main(["reproduce", str(picture), "--ckpt", ckpt, *flags])


def make(task: str, *flags: str) -> Path:
    """Returns the path of the last picture that a command makes."""
    command = [task, "--ckpt", "model.ckpt", "--n_samples", "1", "--n_iter", "1", "--skip_grid", "--outdir", "o"]
    assert main([*command, *flags]) == 0
    return max(Path("o/samples").iterdir())


INPAINTED = "--only-masked --padding 9 --method blend --no-composite --strength 0.7 --background 1,2,3"


def test_inpainting_gets_its_own_flags_again(fake, capsys) -> None:
    write_files()
    made = make("inpaint", "--init-img", "in.png", "--mask", "mask.png", *INPAINTED.split())
    assert reproduce(made) == 2
    assert "was made from more than its file holds, namely in.png: give --init-img" in capsys.readouterr().err
    assert reproduce(made, "--init-img", "in.png") == 2
    assert "namely mask.png: give --mask" in capsys.readouterr().err
    assert reproduce(made, "--init-img", "other.png", "--mask", "mask.png") == 0
    err = capsys.readouterr().err
    assert "--init-img other.png is not the file that was used, in.png: its contents differ" in err
    assert "--mask mask.png is not" not in err
    first, again = fake.made
    for name in "only_masked", "padding", "method", "composite", "prompts", "seed":
        assert again[name] == first[name], name
    assert (again["strength"], first["strength"]) == ([0.7], 0.7)
    assert read(Path("outputs/reproduced/samples/00000.png"))[1]["background"] == [1, 2, 3]


def test_outpainting_needs_no_mask_and_takes_none(fake, capsys) -> None:
    write_files()
    made = make("inpaint", "--init-img", "in.png", "--expand", "8,0,0,16", "--overlap", "4")
    assert reproduce(made, "--init-img", "in.png", "--mask", "mask.png") == 2
    assert "--mask has no effect" in capsys.readouterr().err
    assert reproduce(made, "--init-img", "in.png") == 0
    assert (fake.made[1]["expand"], fake.made[1]["overlap"]) == ((8, 0, 0, 16), 4)


def test_noise_from_a_file_is_needed_again(fake, capsys) -> None:
    write_files()
    made = make("txt2img", "--latents", "noise.npy")
    assert reproduce(made) == 2
    assert "namely noise.npy: give --latents" in capsys.readouterr().err
    assert reproduce(made, "--latents", "noise.npy") == 0
    np.testing.assert_array_equal(fake.made[1]["latents"], fake.made[0]["latents"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"feather": "1; rm -rf"}, "argument --feather"),
        ({"method": "../../x"}, "argument --method"),
        ({"dtype": "evil"}, "argument --dtype"),
        ({"expand": {"a": 1}}, "argument --expand"),
        ({"detector": "x.pt"}, "inpaint made it from detector, which it does not take"),
        ({"mixed": 3}, "mixed: expected a list of pictures"),
        ({"task": "__main__"}, "was made by __main__; only txt2img, img2img,"),
        ({"background": "x"}, "argument --background"),
    ],
)
def test_hostile_entries_are_one_sentence(fake, capsys, changed, said) -> None:
    write_files()
    made = make("inpaint", "--init-img", "in.png", "--mask", "mask.png")
    pixels, settings = read(made)
    save_png("bad.png", pixels, {"sdjax": json.dumps(settings | changed)})
    capsys.readouterr()
    try:
        status = reproduce(Path("bad.png"), "--init-img", "in.png", "--mask", "mask.png")
    except SystemExit as end:
        status = end.code
    err = capsys.readouterr().err
    assert status == 2
    assert said in err
    assert len(fake.made) == 1


AGAIN = {  # the model, the flags of making it, and those of making it again
    "img2img": ("models", "--init-img in.png --seamless x --ensd 3 --sampler euler_ancestral", "--init-img in.png"),
    "inpaint": ("models", "--init-img in.png --mask mask.png --feather 3", "--init-img in.png --mask mask.png"),
    "depth2img": ("test_depth", "--init-img in.png --depth depth.png", "--init-img in.png --depth depth.png"),
    "upscale": ("test_upscaling", "--init-img in.png --noise_level 30", "--init-img in.png"),
    "variations": (
        "test_variations",
        "--init-img in.png --init-img other.png --weights=2,-1 --noise_level 5,7 --clip-preprocess huggingface",
        "--init-img in.png --init-img other.png",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", AGAIN)
def test_every_command_makes_its_picture_again_bit_for_bit(monkeypatch, tmp_path, capsys, task) -> None:
    module, flags, again = AGAIN[task]
    pipe = models.pipeline() if module == "models" else importlib.import_module(module).pipeline()
    monkeypatch.chdir(tmp_path)
    write_files()
    convert.save(pipe.config, pipe.params, "model", to="native")
    common = ["--device", "cpu:0", "--dtype", "float32", "--steps", "2", "--prompt", "a (cat:1.2)", "--n_samples", "2"]
    assert main([task, "--ckpt", "model", *common, "--skip_grid", "--outdir", "o", *flags.split()]) == 0
    last = max(Path("o/samples").iterdir())
    capsys.readouterr()
    assert reproduce(last, "--device", "cpu:0", *again.split(), ckpt="model") == 0
    assert f"every pixel is that of {last}" in capsys.readouterr().err
    assert read(Path("outputs/reproduced/samples/00000.png"))[1] == read(last)[1]
