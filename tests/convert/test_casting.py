"""Numbers that a type cannot hold: the tensors are named, and nothing is written unless asked to."""

import json

import ml_dtypes
import numpy as np
import pytest
from small_models import write

import sdjax
from sdjax import convert
from sdjax.convert import CheckpointError
from sdjax.convert.containers.casting import cast, loss
from sdjax.scripts.main import main

import models

OUT = "model.diffusion_model.out.2.weight"
IN = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("values", "before", "after", "lost"),
    [
        ([1.0, 65504.0], np.float32, np.float16, None),
        ([1.0, 65519.0], np.float32, np.float16, None),  # rounds to 65504
        ([1.0, 65520.0], np.float32, np.float16, (1, 0)),  # rounds to infinity: IEEE 754, 7.4
        ([1.0, -1e5, 1e9], np.float32, np.float16, (2, 0)),
        ([np.inf, np.nan, 1.0], np.float32, np.float16, None),  # what was not finite before is not lost
        ([1.0, 1e-12], np.float32, np.float16, None),  # one small number among large ones is rounding
        ([1e-9] * 4, np.float32, np.float16, (0, 4)),
        ([1e-9] * 4, np.float32, ml_dtypes.bfloat16, None),
        ([0.0] * 4, np.float32, np.float16, None),
        ([3.4e38], np.float32, ml_dtypes.bfloat16, (1, 0)),
        ([1e300, 1.0], np.float64, np.float32, (1, 0)),
        ([1e-300], np.float64, np.float32, (0, 1)),
        ([448.0], ml_dtypes.float8_e4m3fn, np.float16, None),
        ([57344.0], ml_dtypes.float8_e5m2, np.float16, None),
        ([1e38], ml_dtypes.bfloat16, np.float16, (1, 0)),
    ],
)
def test_what_a_cast_loses_is_found(values, before, after, lost):
    wide = np.array(values).astype(before)
    found = loss(wide, cast(wide, np.dtype(after)))
    assert (None if found is None else (found.infinite, found.zero)) == lost


def test_a_conversion_that_loses_numbers_writes_nothing_and_names_the_tensors(tmp_path, capsys):
    models.pipeline().save(tmp_path / "x.safetensors")
    tensors = dict(convert.read(tmp_path / "x.safetensors"))
    (tmp_path / "x.safetensors").unlink()
    tensors[OUT] = np.full_like(tensors[OUT], 1e6)
    tensors[IN] = np.full_like(tensors[IN], 1e-10)
    start = write(tmp_path / "a.safetensors", tensors, {"sdjax.config": json.dumps(models.TINY.to_dict())})
    for target in ("b.safetensors", "native"):
        assert main(["convert", str(start), str(tmp_path / target), "--dtype", "float16"]) != 0
        said = capsys.readouterr().err
        for part in ("2 tensors", OUT, IN, "too large, up to 1e+06", "too small", "bfloat16", "--lossy"):
            assert part in said
        assert not (tmp_path / target).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]
    assert main(["convert", str(start), str(tmp_path / "b.safetensors"), "--dtype", "float16", "--lossy"]) == 0
    assert "written as infinite numbers and zeros" in capsys.readouterr().err
    assert np.isinf(convert.read(tmp_path / "b.safetensors")[OUT]).all()
    assert main(["convert", str(start), str(tmp_path / "c.safetensors"), "--dtype", "bfloat16"]) == 0
    assert "cannot hold" not in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="float16 cannot hold the numbers of 2 tensors.*; choose bfloat16"):
        convert.load(start, dtype="float16")
    notice = sdjax.load(start, dtype="float16").notices[-1]
    assert OUT in notice
    assert "choose bfloat16" in notice
    with pytest.raises(CheckpointError, match=OUT):
        sdjax.load(start).save(tmp_path / "d.safetensors", dtype="float16")
    assert not (tmp_path / "d.safetensors").exists()


@pytest.mark.parametrize(
    "name", ["OUT.ckpt", "o.pt", "o.pth", "o.bin", "o.CKPT", "o.ckpt ", "o.onnx", "o.png", "o.json"]
)
def test_a_name_that_ends_as_a_file_makes_no_folder(name, tmp_path, capsys):
    pipe = sdjax.load()
    for write_it in (
        lambda: pipe.save(tmp_path / name),
        lambda: convert.save(pipe.config, pipe.params, tmp_path / name, tokenizer=pipe.tokenizer),
        lambda: convert.convert(sdjax.loading.builtin.FOLDER, tmp_path / name),
        lambda: convert.convert(sdjax.loading.builtin.FOLDER, tmp_path / name, to="diffusers"),
    ):
        with pytest.raises(ValueError, match=r"ends as a file does.*for one file give a name in .safetensors"):
            write_it()
    with pytest.raises(ValueError, match="an ldm file is written as .safetensors"):
        pipe.save(tmp_path / name, to="ldm")
    assert main(["convert", str(sdjax.loading.builtin.FOLDER), str(tmp_path / name)]) != 0
    assert ".safetensors" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_name_in_capitals_is_the_file_that_it_says(tmp_path):
    sdjax.load().save(tmp_path / "A.SAFETENSORS")
    assert (tmp_path / "A.SAFETENSORS").is_file()
    for name, to in (("b.safetensors", "native"), ("b.safetensors", "diffusers"), ("b.SafeTensors", "native")):
        with pytest.raises(ValueError, match=r"ends as a file does, in .safetensors, and the .* format is a folder"):
            sdjax.load().save(tmp_path / name, to=to)
    for name in ("c.safetensors/", ".safetensors"):
        with pytest.raises(ValueError, match="an ldm file is written as .safetensors"):
            sdjax.load().save(f"{tmp_path}/{name}")
    sdjax.load().save(tmp_path / "v1.5")  # a dot in a folder's name is no ending
    assert (tmp_path / "v1.5").is_dir()


def test_a_manifest_never_replaces_the_model(tmp_path):
    target = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="the manifest and the model cannot both be"):
        convert.convert(sdjax.loading.builtin.FOLDER, target, manifest=target, overwrite=True)
    assert not list(tmp_path.iterdir())
