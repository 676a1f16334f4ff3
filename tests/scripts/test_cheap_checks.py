"""What is wrong with a command's arguments is said before the model is read, and leaves nothing behind."""

import os
from pathlib import Path

import command_checks
import pytest

import sdjax
from sdjax.scripts import main as cli

IMG, VAR = ["--init-img", "in.png"], ["variations", "--ckpt", "model.ckpt", "--init-img", "in.png"]
FILE = "is a file, and not a folder"
SHARED = [
    (["--ckpt", "none.ckpt"], "none.ckpt"),
    (["--ckpt", "model.ckpt", "--vae", "none.safetensors"], "none.safetensors"),
    (["--ckpt", "model.ckpt", "--safety-checker", "none.bin"], "none.bin"),
    (["--ckpt", "model.ckpt", "--outdir", "file"], FILE),
    (["--ckpt", "model.ckpt", "--outdir", "file/deeper/still"], FILE),
    (["--ckpt", "model.ckpt", "--outdir", "dangling"], "is a link to gone, which is not there"),
    (["--ckpt", "model.ckpt", "--outdir", "n" * 300], "a name in it has 300 bytes, too many"),
    (["--ckpt", "model.ckpt", "--outdir", "/proc/sdjax"], "/proc"),
    (["--ckpt", "model.ckpt", "--sampler-option", "nothing=1"], "has no nothing"),
    (["--ckpt", "model.ckpt", "--device", "nothing"], "JAX has no nothing"),
    (["--ckpt", "model.ckpt", "--precision", "full", "--dtype", "bfloat16"], "--precision full"),
    (["--ckpt", "model.ckpt", "--from-file", "none.txt"], "none.txt cannot be read"),
]
PICTURES = [
    (["--ckpt", "model.ckpt", "--init-img", "none.png"], "none.png cannot be read"),
    (["--ckpt", "model.ckpt", "--init-img", "model.ckpt"], "model.ckpt"),
    (["--ckpt", "model.ckpt", "--init-img", "empty"], "empty"),
]
COMMANDS = {
    "txt2img": [], "img2img": IMG, "inpaint": [*IMG, "--mask", "mask.png"], "depth2img": IMG, "upscale": IMG,
    "variations": IMG, "animate": ["--seed", "1,2"],
}  # fmt: skip
CASES = [([name, *given, *bad], said) for name, given in COMMANDS.items() for bad, said in SHARED]
CASES += [
    ([name, *(part for part in given if part not in IMG), *bad], said)
    for name, given in COMMANDS.items() if "--init-img" in given
    for bad, said in PICTURES
]  # fmt: skip
CASES += [
    (["txt2img", "--H", "100"], "multiple of 8"),
    (["animate", "--H", "100"], "multiple of 8"),
    (["animate", "--fps", "99"], "fps"),
    (["inpaint", *IMG, "--mask", "none.png"], "none.png cannot be read"),
    (["depth2img", *IMG, "--depth", "none.png"], "none.png cannot be read"),
    (["depth2img", *IMG, "--depth-model", "none.pt"], "none.pt"),
    ([*VAR, "--vision", "none.safetensors"], "none.safetensors"),
    ([*VAR, "--noise-stats", "none.th"], "none.th"),
    (["variations", "--ckpt", "model.ckpt", "--prompt", "a", "--prior", "none.bin"], "none.bin"),
    ([*VAR, "--weights", "1,2"], "--weights"),
    (["benchmark", "--json", "in.png/x.json"], FILE),
    (["benchmark", "--size", "100"], "multiple of 8"),
    (["evaluate-builtin", "--font", "none.ttf"], "none.ttf"),
    (["cache-latents", "out", "--folder", "none"], "none"),
    (["cache-latents", "out", "--folder", "empty"], "empty"),
    (["cache-latents", "in.png/out", "--folder", "pictures", "--default", "x"], FILE),
    (["cache-latents", "out", "--folder", "pictures", "--variants", "0", "--crop", "random"], "at least one variant"),
    (["cache-latents", "out", "--folder", "pictures", "--batch-size", "0"], "--batch-size"),
    (["cache-latents", "out", "--folder", "pictures", "--side", "512", "--flip", "2", "--default", "x"], "flip"),
    (["cache-latents", "out", "--folder", "pictures", "--shard", "3/2"], "--shard"),
    (["watermark", "in.png", "--embed", "SDV2", "--outdir", "file"], FILE),
    (["watermark", "none.png", "--embed", "SDV2"], "none.png cannot be read"),
    (["convert", "none.ckpt", "out"], "none.ckpt"),
    (["convert", "model.ckpt", "in.png/out"], FILE),
    (["convert", "model.ckpt", "out.safetensors", "--manifest", "in.png/x.json"], FILE),
    (["convert", "model.ckpt", "file"], "file is a file"),
    (["convert", "model.ckpt", "out", "--config", "none.yaml"], "none.yaml"),
    (["inspect", "none.ckpt"], "none.ckpt"),
]


def name_of(value: object) -> str:
    return " ".join(value)[:60] if isinstance(value, list) else "x"


@pytest.mark.parametrize(("flags", "said"), CASES, ids=name_of)
def test_bad_arguments_are_refused_before_the_model_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path, flags: list[str], said: str
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was read")

    monkeypatch.chdir(tmp_path)
    command_checks.write("in.png")
    command_checks.write("mask.png")
    command_checks.write("pictures/a.png")
    Path("empty").mkdir()
    Path("file").write_bytes(b"mine")
    Path("model.ckpt").write_bytes(b"weights")
    os.symlink("gone", "dangling")
    monkeypatch.setattr(sdjax, "load", load, raising=False)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(flags) in (1, 2, 3)
    err = capsys.readouterr().err
    assert "the model was read" not in err
    assert "internal error" not in err
    assert said in err
    assert sorted(path for path in tmp_path.rglob("*") if path.name != ".sdjax-index.npz") == before
