"""The built-in model: that it is found, said, and packed."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

import sdjax
from sdjax import convert
from sdjax.loading import builtin
from sdjax.nn.controlnet import of_unet
from sdjax.tasks import controls

import models

ROOT = Path(__file__).resolve().parents[1]
CONTENT = ("config.json", "model.safetensors", "LICENSE", "README.md", "tokenizer/vocab.json", "tokenizer/merges.txt")


def test_load_without_a_path_takes_the_built_in_model_and_says_so(monkeypatch, tmp_path):
    pipe = models.pipeline()
    monkeypatch.setattr(builtin, "FOLDER", tmp_path / "builtin")
    convert.save(pipe.config, pipe.params, tmp_path / "builtin", to="native", tokenizer=pipe.tokenizer)
    loaded = sdjax.load()
    assert loaded.config == pipe.config
    assert loaded.source == str(tmp_path / "builtin")
    assert loaded.notices[0] == builtin.NOTICE
    assert builtin.NOTICE not in sdjax.load(tmp_path / "builtin").notices
    np.testing.assert_array_equal(loaded.params["unet"]["conv_in"]["kernel"], pipe.params["unet"]["conv_in"]["kernel"])


def test_load_without_a_path_and_a_model_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(builtin, "FOLDER", tmp_path / "builtin")
    with pytest.raises(convert.CheckpointError, match="builtin: this copy of sdjax has no built-in model"):
        sdjax.load()


def test_the_inpainting_model_is_the_base_with_the_parameters_of_its_file(monkeypatch, tmp_path):
    pipe = models.pipeline()
    monkeypatch.setattr(builtin, "FOLDER", tmp_path / "builtin")
    convert.save(pipe.config, pipe.params, tmp_path / "builtin", to="native", tokenizer=pipe.tokenizer)
    with pytest.raises(convert.CheckpointError, match="has no built-in inpainting model; .* by blending"):
        sdjax.load("builtin-inpainting")
    kernel = np.asarray(pipe.params["unet"]["conv_in"]["kernel"])
    wide = np.concatenate([kernel + 1, np.ones((3, 3, 5, kernel.shape[-1]), np.float32)], axis=2)
    safetensors.numpy.save_file({"unet/conv_in/kernel": wide}, tmp_path / "builtin-inpainting.safetensors")
    loaded = sdjax.load("builtin-inpainting", vae=tmp_path / "builtin")
    assert loaded.config.unet.in_channels == kernel.shape[2] + 5
    assert loaded.tokenizer.encode("a red fox") == pipe.tokenizer.encode("a red fox")
    np.testing.assert_array_equal(loaded.params["unet"]["conv_in"]["kernel"], wide)
    other = {**pipe.params["unet"], "conv_in": {**pipe.params["unet"]["conv_in"], "kernel": wide}}
    expected = {**pipe.params, "unet": other}
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, loaded.params, expected)))


def test_the_whole_model_is_packed(tmp_path):
    """Runs the build's own choice of files on a copy of the package's outline that holds the built-in model."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package in setuptools["packages"]:
        parent = next(p for p in (package, package.rpartition(".")[0], "sdjax") if p in setuptools["package-dir"])
        folder = setuptools["package-dir"][parent] + package.removeprefix(parent).replace(".", "/")
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        if not package.startswith("sdjax.assets"):
            (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "sdjax/_version.py").write_text('__version__ = "0"\n')
    for path in (ROOT / "sdjax/assets").glob("*.*"):
        (tmp_path / "sdjax/assets").mkdir(exist_ok=True)
        (tmp_path / "sdjax/assets" / path.name).write_bytes(b"")
    for name in CONTENT:
        path = tmp_path / "sdjax/assets/builtin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    code = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    built = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    assert "Warning" not in built.stderr  # setuptools warns of folders that it takes for packages left out
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {f"sdjax/assets/builtin/{name}" for name in CONTENT} <= packed
    assert {"sdjax/assets/bpe_simple_vocab_16e6.txt.gz", "sdjax/assets/builtin-inpainting.safetensors"} <= packed
    licences = {name.split("/licenses/")[1] for name in packed if "/licenses/" in name}
    assert {"LICENSE", "sdjax/assets/bpe_simple_vocab_16e6.LICENSE", "sdjax/assets/builtin/LICENSE"} == licences
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0 AND MIT AND OFL-1.1"  # of the three, in this order


@pytest.mark.parametrize("to", ["diffusers", "ldm"])
def test_the_built_in_model_goes_through_every_layout(tmp_path, to):
    path = tmp_path / {"diffusers": "folder", "ldm": "model.safetensors"}[to]
    pipe = sdjax.load(builtin.NAME)
    pipe.save(path, to=to)
    again = sdjax.load(path)
    assert (again.config.text, again.config.unet) == (pipe.config.text, pipe.config.unet)
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, pipe.params))


def test_the_built_in_model_is_whole_and_small():
    files = {path.relative_to(builtin.folder()).as_posix(): path for path in builtin.folder().rglob("*")}
    assert set(CONTENT) <= set(files)
    assert sum(path.stat().st_size for path in files.values() if path.is_file()) <= 16_000_000
    assert builtin.changes().stat().st_size <= 6_000_000
    assert sdjax.load().config.image_size >= 64
    assert sdjax.load("builtin-inpainting").config.unet.in_channels == 33


def test_the_built_in_controlnet_fits_the_built_in_model() -> None:
    pipe = sdjax.load()
    use = controls.read_control(controls.ControlUse(builtin.EDGES), pipe)
    assert use.loaded.source == "lora"
    assert use.loaded.config == of_unet(pipe.config.unet, factor=pipe.config.vae.factor)
    assert builtin.control(builtin.EDGES).stat().st_size < 3_000_000
