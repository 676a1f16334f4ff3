"""Weights of 8 bits in safetensors files: sdjax's, ComfyUI's with scales, and float8 without."""

import ml_dtypes
import numpy as np
import pytest
import small_models
from flax.traverse_util import flatten_dict

import sdjax
from sdjax import convert
from sdjax.nn.quantised.leaf import is_quantised

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
NAME = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
PATH = "unet/down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel"
CONV = "model.diffusion_model.input_blocks.1.0.in_layers.2"


@pytest.fixture(scope="module")
def v1():
    return small_models.model("v1")


def leaves(pipe):
    return flatten_dict(pipe.params, sep="/")


@pytest.mark.few(1)
@pytest.mark.parametrize("beside", ["scale_weight", "weight_scale"])
def test_comfyuis_float8_with_scales_is_read(beside, v1, tmp_path):
    """One number for a tensor, a mark, and scales of inputs that nothing here needs. Source: comfy/ops.py."""
    config, tensors = v1
    scale = np.float32(0.25)
    weight = (tensors[f"{NAME}.weight"] / scale).astype(FLOAT8)
    more = {
        f"{NAME}.weight": weight, f"{NAME}.{beside}": scale.reshape(1), f"{NAME}.scale_input": np.ones(1, np.float32),
        "model.diffusion_model.scaled_fp8": np.zeros(2, FLOAT8),
    }  # fmt: skip
    path = small_models.write(tmp_path / "a.safetensors", {**tensors, **more})
    want = weight.astype(np.float32) * scale
    pipe = sdjax.load(path, config=config)
    assert not any("unknown" in notice or "no part" in notice for notice in pipe.notices)
    assert is_quantised(leaves(pipe)[PATH])
    assert np.array_equal(np.asarray(leaves(pipe)[PATH]), want.T)
    assert np.array_equal(flatten_dict(convert.load(path, config=config)[1], sep="/")[PATH], want.T)


def test_float8_without_scales_stays_float8_in_memory(v1, tmp_path):
    config, tensors = v1
    small = {name: array.astype(FLOAT8) if array.ndim in (2, 4) else array for name, array in tensors.items()}
    small = {name: tensors[name] if tensors[name].dtype.kind == "i" else array for name, array in small.items()}
    path = small_models.write(tmp_path / "a.safetensors", small)
    pipe = sdjax.load(path, config=config)
    kernels = [path for path, leaf in leaves(pipe).items() if is_quantised(leaf)]
    assert PATH in kernels
    assert any("conv1" in path for path in kernels)
    assert np.array_equal(np.asarray(leaves(pipe)[PATH]), small[f"{NAME}.weight"].astype(np.float32).T)
    pipe.save(tmp_path / "again.safetensors")
    again = convert.read(tmp_path / "again.safetensors")
    assert again[f"{NAME}.weight"].dtype == FLOAT8
    assert not is_quantised(leaves(sdjax.load(path, config=config, quantise="no"))[PATH])


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_what_is_written_is_loaded_again(kind, v1, tmp_path):
    config, tensors = v1
    source, target = small_models.write(tmp_path / "v1.safetensors", tensors), tmp_path / "a.safetensors"
    convert.convert(source, target, config=config, quantise=kind)
    file = convert.read(target)
    for name in (NAME, CONV):  # a matrix and a convolution
        d = tensors[f"{name}.weight"].shape[0]
        assert file[f"{name}.weight"].dtype == (np.int8 if kind == "int8" else FLOAT8)
        assert file[f"{name}.scale_weight"].size == d
        codes = file[f"{name}.weight"].astype(np.float32)
        assert np.all(np.abs(codes.reshape(d, -1)).max(axis=1) == (127 if kind == "int8" else 448))
    here, there = (
        leaves(sdjax.load(path, config=config, quantise=how)) for path, how in ((source, kind), (target, "auto"))
    )
    for path, leaf in here.items():
        assert is_quantised(leaf) == is_quantised(there[path])
        assert np.array_equal(np.asarray(leaf), np.asarray(there[path])), path
    assert not is_quantised(there["unet/conv_in/kernel"])
    assert not any(is_quantised(leaf) for path, leaf in there.items() if path.startswith("vae/"))


@pytest.mark.slow
def test_fused_projections_of_v2_are_written_and_read(tmp_path):
    config, tensors = small_models.model("v2_base")
    source, target = small_models.write(tmp_path / "v2.safetensors", tensors), tmp_path / "a.safetensors"
    convert.convert(source, target, config=config, quantise="int8")
    here, there = (
        leaves(sdjax.load(path, config=config, quantise=how)) for path, how in ((source, "int8"), (target, "auto"))
    )
    queries = [path for path in here if path.startswith("text/") and path.endswith("q_proj/kernel")]
    assert queries
    for path in queries:
        assert is_quantised(there[path])
        assert np.array_equal(np.asarray(here[path]), np.asarray(there[path]))


def test_codes_without_scales_are_refused(v1, tmp_path):
    config, tensors = v1
    codes = {f"{NAME}.weight": tensors[f"{NAME}.weight"].astype(np.int8)}
    for more in ({}, {f"{NAME}.scale_weight": np.ones(5, np.float32)}):
        path = small_models.write(tmp_path / "a.safetensors", {**tensors, **codes, **more})
        with pytest.raises(convert.CheckpointError, match="int8|quantised model"):
            convert.load(path, config=config)


def test_wrong_types_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"quantise is one of auto, no, int8.*; got 'q6_k'"):
        sdjax.load(tmp_path / "missing.safetensors", quantise="q6_k")
    with pytest.raises(ValueError, match=r"quantise is one of .*; got 8"):
        sdjax.load("builtin", quantise=8)
    with pytest.raises(ValueError, match=r"a type to quantise to is one of int8"):
        convert.convert("builtin", tmp_path / "a.gguf", quantise="no")
