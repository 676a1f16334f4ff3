"""The depth network beside a model: every layout's bytes, files without it, other files', transformers' reading."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from small_models import write
from trips import check_round_trips, check_without, equal

from sdjax import configs, convert
from sdjax.config import DepthConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig
from sdjax.convert import CheckpointError
from sdjax.convert.describe import dpt_config
from sdjax.convert.names import depth as depth_names
from sdjax.convert.names import naming

import reference

SMALL = DepthConfig(
    image_size=64, stem_width=8, stage_widths=(32, 64, 96), stage_depths=(2, 1, 1), norm_groups=4, width=32, layers=3,
    heads=4, taps=(0, 2), neck_widths=(24, 40), features=16,
)  # fmt: skip
MODEL = ModelConfig(
    name="small",
    unet=UNetConfig(in_channels=5, channels=(32,), heads=(2,), mid_heads=2, transformer_depth=(1,),
                    self_attention=(True,), num_res_blocks=1, context_dim=64, linear_projection=True),
    vae=VAEConfig(channels=(32, 32), num_res_blocks=1),
    text=TextConfig(width=64, layers=1, heads=1, activation="gelu", pad_token_id=0),
    depth=SMALL,
)  # fmt: skip
DEPTH = "depth_model.model."


def tensors(depth=True):
    """Returns a single file's tensors, with those of the depth network that nobody uses."""
    out = reference.fill_all(convert.tensor_shapes(MODEL, "ldm"))
    out["alphas_cumprod"] = np.linspace(1, 0, 1000, dtype=np.float32)
    for name in depth_names.UNUSED:
        convolution = (SMALL.features,) if name.endswith("bias") else (SMALL.features, SMALL.features, 3, 3)
        shape = (SMALL.width,) if "layernorm" in name else convolution
        out[DEPTH + depth_names.midas_name(name)] = reference.fill(name, shape)
    for name in depth_names.CLASSIFIER:
        out[DEPTH + name] = reference.fill(name, (10,) if name.endswith("bias") else (10, SMALL.width))
    return out if depth else {name: array for name, array in out.items() if not name.startswith("depth_model.")}


def test_every_layout_and_back_is_byte_exact(tmp_path):
    check_round_trips(tmp_path, tensors(), MODEL)
    assert not convert.load_model(tmp_path / "a.safetensors", MODEL).report.notices
    folder = convert.read(tmp_path / "diffusers/depth_estimator")
    assert set(depth_names.UNUSED) < set(folder)
    index = json.loads((tmp_path / "diffusers/model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionDepth2ImgPipeline"
    assert index["depth_estimator"] == ["transformers", "DPTForDepthEstimation"]
    assert index["feature_extractor"] == ["transformers", "DPTImageProcessor"]


def test_every_layout_gives_the_same_model(tmp_path):
    start = write(tmp_path / "a.safetensors", tensors())
    config, params = convert.load(start, config=MODEL)
    assert config.depth == SMALL
    for to in ("native", "diffusers"):
        convert.convert(start, tmp_path / to, to=to, config=MODEL)
        again, read = convert.load(tmp_path / to)
        assert again.depth == SMALL
        assert jax.tree.all(jax.tree.map(np.array_equal, params, read))
        alone, depth = convert.load_depth(tmp_path / to)
        assert alone == SMALL
        assert jax.tree.all(jax.tree.map(np.array_equal, params["depth"], depth))


def test_rows_of_a_fused_tensor_are_queries_keys_and_values():
    fused = tensors()[f"{DEPTH}pretrained.model.blocks.1.attn.qkv.weight"]
    _, params = convert.load(tensors(), config=MODEL)
    layer = params["depth"]["dpt"]["encoder"]["layer_1"]["attention"]["attention"]
    for name, rows in zip(("query", "key", "value"), np.split(fused, 3)):
        assert np.array_equal(layer[name]["kernel"], rows.T)


def test_a_model_without_it_is_a_model_all_the_same(tmp_path):
    model = check_without("depth", "depth_estimator", tmp_path, tensors(depth=False), MODEL)
    assert model.config == dataclasses.replace(MODEL, depth=None)
    assert model.report.notices == ("it has no depth network: depth maps have to be given",)


def test_it_comes_from_another_file_where_that_is_wanted(tmp_path):
    start = write(tmp_path / "a.safetensors", tensors(depth=False))
    whole = tensors()
    alone = {name.removeprefix(DEPTH): array for name, array in whole.items() if name.startswith(DEPTH)}
    folder = tmp_path / "dpt"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dpt_config.transformers_file(SMALL)))
    convert.convert(write(tmp_path / "b.safetensors", whole), tmp_path / "d", to="diffusers", config=MODEL)
    save_file(dict(convert.read(tmp_path / "d/depth_estimator")), folder / "model.safetensors")
    config, params = convert.load(start, config=MODEL, depth=folder)
    assert config == MODEL
    _, want = convert.load(whole, config=MODEL)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, want))
    with pytest.raises(CheckpointError, match="depth network that is described"):  # MiDaS's file is the released one's
        convert.load(start, config=MODEL, depth=alone)


def test_half_a_network_is_no_network():
    broken = tensors()
    del broken[f"{DEPTH}scratch.layer2_rn.weight"]
    with pytest.raises(CheckpointError, match=f"{DEPTH}scratch.layer2_rn.weight is missing"):
        convert.load(broken, config=MODEL)


def test_a_network_of_another_kind_is_kept_and_said_to_be_unused(tmp_path):
    convert.convert(write(tmp_path / "a.safetensors", tensors()), tmp_path / "d", to="diffusers", config=MODEL)
    path = tmp_path / "d/depth_estimator/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_hybrid": False}))
    model = convert.load_model(tmp_path / "d")
    assert model.config.depth is None
    assert "its depth network is none that is known here" in " ".join(model.report.notices)
    convert.convert(tmp_path / "d", tmp_path / "d2", to="diffusers")
    assert equal(tmp_path / "d", tmp_path / "d2")


def test_averages_of_the_unet_leave_it_alone():
    assert not [name for name in convert.tensor_shapes(MODEL, "ldm") if name.startswith(naming.EMA_PREFIX)]
    assert configs.get("sd2_depth").depth == DepthConfig()


@pytest.mark.torch
@pytest.mark.filterwarnings("default")
def test_diffusers_finds_everything_in_our_folder(tmp_path):
    import diffusers
    import transformers

    convert.convert(write(tmp_path / "a.safetensors", tensors()), tmp_path / "d", to="diffusers", config=MODEL)
    _, info = transformers.DPTForDepthEstimation.from_pretrained(
        tmp_path / "d/depth_estimator", output_loading_info=True
    )
    assert not [names for names in info.values() if names]
    pipe = diffusers.StableDiffusionDepth2ImgPipeline.from_pretrained(tmp_path / "d")
    pixels = pipe.feature_extractor(np.zeros((96, 80, 3), np.uint8), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 64, 64)
    assert float(pixels.max()) == -1
