"""Commands refuse bad arguments before the model is read, and leave no files behind."""

import os
import sys
from pathlib import Path

import command_checks
import pytest

import sdjax
from sdjax.convert.containers.stored import StoredTensor
from sdjax.scripts import main as cli

import models

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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a picture and a training set."""
    folder = tmp_path_factory.mktemp("whole")
    models.pipeline().save(folder / "model")
    command_checks.write(str(folder / "in.png"))
    command_checks.write(str(folder / "pictures/a.png"))
    (folder / "file").write_bytes(b"mine")
    return folder


OF_MODELS = [
    (["--config", "none.yaml"], "none.yaml"),
    (["--vocab", "none.txt"], "none.txt"),
    (["--variant", "fp16"], "fp16"),
    (["--vae", "file"], "file"),
]
DRAWN = [
    (["--C", "9"], "--C 9 contradicts"),
    (["--steps", "5000"], "--steps"),
    (["--scale", "1", "--negative-prompt", "b"], "--negative-prompt has no effect"),
    (["--safety-checker", "file"], "file"),
]
LATENTS, TRAIN = ["cache-latents", "out", "--folder", "pictures", "--default", "x"], ["train", "--data", "pictures"]
OF_WHOLE = [
    (["txt2img", *ckpt, "--prompt", "a", *bad], said)
    for ckpt in (["--ckpt", "model"], [])
    for bad, said in [*OF_MODELS, *DRAWN]
    if ckpt or "--variant" not in bad
] + [(["img2img", "--ckpt", "model", *IMG, *bad], said) for bad, said in DRAWN]
OF_WHOLE += [
    (["convert", "model", "out", *bad], said) for bad, said in [*OF_MODELS, (["--manifest", "pictures"], "is a folder")]
]
OF_WHOLE += [
    (["depth2img", "--ckpt", "model", *IMG], "depth2img needs a model that takes 5 channels"),
    (["upscale", "--ckpt", "model", *IMG], "upscale needs a model"),
    (["variations", "--ckpt", "model", *IMG], "variations needs a model"),
    (["inpaint", "--ckpt", "model", *IMG, "--mask", "in.png", "--method", "concat"], "concat"),
    (["animate", "--ckpt", "model", "--seed", "1,2", "--vocab", "none.txt"], "none.txt"),
    (["inspect", "model", "--variant", "fp16"], "fp16"),
    (["evaluate-builtin", "--font", "file"], "file cannot be used as the font"),
    ([*LATENTS, "--model", "model", "--side", "17"], "a multiple of 8"),
    ([*LATENTS, "--beam", "--runner=DirectRunner"], "Apache Beam is not installed"),
    ([*TRAIN, "--default", "x", "--ckpt", "model", "--set", "data.side=500"], "multiple of 64"),
    ([*TRAIN, "--default", "x", "--ckpt", "model", "--batch-size", "8", "--set", "model.vae=file"], "file"),
    ([*TRAIN, "--default", "x", "--ckpt", "model", "--profile", "file"], "file, and not a folder"),
    ([*TRAIN, "--default", "x", "--ckpt", "model", "--set", "train=('nothing',)"], "train"),
    (["train", "--data", "none", "--ckpt", "model"], "none is no folder of pictures"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "said"), OF_WHOLE, ids=name_of)
def test_no_tensor_is_read_for_arguments_that_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, whole: Path, flags: list[str], said: str
) -> None:
    read: list[int] = []
    monkeypatch.chdir(whole)
    monkeypatch.setattr(StoredTensor, "array", lambda tensor: read.append(tensor.nbytes))
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    (whole / "pictures/.sdjax-index.npz").unlink(missing_ok=True)
    before = sorted(whole.rglob("*"))
    assert cli.main(flags) in (1, 2, 3)
    err = capsys.readouterr().err
    assert "internal error" not in err
    assert "this run is kept in" not in err
    assert said in err
    assert not read
    assert sorted(path for path in whole.rglob("*") if path.name != ".sdjax-index.npz") == before
