"""ControlNets and T2I-Adapters in the layouts that people have."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax import convert
from sdjax.convert.names.control import controlnet_table, t2i_table
from sdjax.nn.controlnet import of_unet
from sdjax.nn.t2i import T2IConfig

import models
import reference

MODEL = models.TINY
CONFIG = of_unet(MODEL.unet)
T2I = T2IConfig(hint_channels=1, channels=(16, 32, 32, 32), num_res_blocks=2)
LIGHT = T2IConfig(channels=(16, 32, 32, 32), num_res_blocks=3, widths=(4, 8, 8, 8), keeps_rest=True)


def of_table(table):
    return {entry.name: reference.fill(entry.name, entry.shape) for entry in table.entries}


def leaf(params, path):
    for name in path.split("/"):
        params = params[name]
    return np.asarray(params)


@pytest.mark.parametrize(("layout", "prefix"), [("ldm", "control_model."), ("ldm", ""), ("diffusers", "")])
def test_every_tensor_of_a_controlnets_file_is_used(layout, prefix, tmp_path):
    tensors = of_table(controlnet_table(CONFIG, layout, prefix))
    save_file(tensors, tmp_path / "net.safetensors")
    loaded = convert.load_controlnet(tmp_path / "net.safetensors", MODEL)
    assert loaded.config == CONFIG
    assert loaded.name == "net"
    first = {"ldm": f"{prefix}input_blocks.0.0.weight", "diffusers": "conv_in.weight"}[layout]
    np.testing.assert_array_equal(leaf(loaded.params, "conv_in/kernel"), tensors[first].transpose(2, 3, 1, 0))
    last = {"ldm": f"{prefix}zero_convs.1.0.bias", "diffusers": "controlnet_down_blocks.1.bias"}[layout]
    np.testing.assert_array_equal(leaf(loaded.params, "controlnet_down_blocks_1/bias"), tensors[last])


def test_a_whole_model_with_a_controlnet_gives_the_controlnet():
    tensors = of_table(controlnet_table(CONFIG, "ldm", "control_model."))
    model = convert.tensor_shapes(MODEL, "ldm")
    beside = {name: np.zeros(shape, np.float32) for name, shape in model.items()}
    loaded = convert.load_controlnet({**beside, **tensors}, MODEL)
    np.testing.assert_array_equal(
        leaf(loaded.params, "controlnet_mid_block/bias"), tensors["control_model.middle_block_out.0.bias"]
    )


def test_differences_and_missing_tensors_are_named_in_one_error():
    tensors = of_table(controlnet_table(CONFIG, "diffusers", ""))
    del tensors["controlnet_mid_block.bias"]
    tensors["conv_in.bias"] = np.zeros(7, np.float32)
    tensors["down_blocks.0.sparse.weight"] = np.zeros(3, np.float32)
    with pytest.raises(convert.CheckpointError) as raised:
        convert.load_controlnet(tensors, MODEL)
    for name in "controlnet_mid_block.bias", "conv_in.bias", "down_blocks.0.sparse.weight":
        assert name in str(raised.value)


def test_an_unknown_tensor_alone_is_refused():
    tensors = of_table(controlnet_table(CONFIG, "ldm", ""))
    with pytest.raises(convert.CheckpointError, match=r"frames\.mixer"):
        convert.load_controlnet({**tensors, "frames.mixer": np.zeros(3, np.float32)}, MODEL)


def test_a_difference_is_added_to_the_models_unet():
    unet = models.random_params(MODEL)["unet"]
    tensors = of_table(controlnet_table(CONFIG, "ldm", "control_model."))
    whole = convert.load_controlnet(tensors, MODEL).params
    marked = {**tensors, "difference": np.zeros((), np.float32)}
    loaded = convert.load_controlnet(marked, MODEL, unet)
    assert loaded.source == "difference"
    path = "mid_block/resnets_0/conv1/kernel"
    np.testing.assert_allclose(leaf(loaded.params, path), leaf(whole, path) + leaf(unet, path), rtol=1e-6)
    hint = "controlnet_cond_embedding/conv_in/kernel"
    np.testing.assert_array_equal(leaf(loaded.params, hint), leaf(whole, hint))
    with pytest.raises(convert.CheckpointError, match="unet="):
        convert.load_controlnet(marked, MODEL)


def test_a_control_lora_adds_products_to_the_models_unet():
    unet = models.random_params(MODEL)["unet"]
    tensors = of_table(controlnet_table(CONFIG, "ldm", ""))
    own = {n: t for n, t in tensors.items() if n.startswith(("input_hint_block", "zero_convs", "middle_block_out"))}
    stem = "middle_block.0.in_layers.2"
    up, down = np.full((32, 2, 1, 1), 0.5, np.float32), reference.fill("down", (2, 32, 3, 3))
    mark = {"lora_controlnet": np.zeros(0, np.float32)}
    loaded = convert.load_controlnet({**own, **mark, f"{stem}.up": up, f"{stem}.down": down}, MODEL, unet)
    path = "mid_block/resnets_0/conv1/kernel"
    product = (up.reshape(32, 2) @ down.reshape(2, -1)).reshape(32, 32, 3, 3).transpose(2, 3, 1, 0)
    np.testing.assert_allclose(leaf(loaded.params, path), leaf(unet, path) + product, rtol=1e-5, atol=1e-6)
    other = "mid_block/resnets_1/conv1/kernel"
    np.testing.assert_array_equal(leaf(loaded.params, other), leaf(unet, other))
    with pytest.raises(convert.CheckpointError, match=r"up.* does not fit"):
        convert.load_controlnet({**own, **mark, f"{stem}.up": up[:5], f"{stem}.down": down}, MODEL, unet)


def test_what_is_beside_a_file_or_its_name_says_that_it_is_pooled(tmp_path):
    tensors = of_table(controlnet_table(CONFIG, "ldm", ""))
    for name in "control_v11e_sd15_shuffle", "other", "reshuffled":
        save_file(tensors, tmp_path / f"{name}.safetensors")
    pooled = lambda name: convert.load_controlnet(tmp_path / f"{name}.safetensors", MODEL).config.pooled  # noqa: E731
    assert [pooled("control_v11e_sd15_shuffle"), pooled("other"), pooled("reshuffled")] == [True, False, False]
    (tmp_path / "other.yaml").write_text("model: {params: {global_average_pooling: true}}")
    (tmp_path / "control_v11e_sd15_shuffle.yaml").write_text("model: {params: {global_average_pooling: false}}")
    assert [pooled("control_v11e_sd15_shuffle"), pooled("other")] == [False, True]
    (tmp_path / "other.yaml").write_text("[" * 5000)
    assert not pooled("other")


def test_a_diffusers_folder_says_the_order_of_colours_and_pooling(tmp_path):
    save_file(of_table(controlnet_table(CONFIG, "diffusers", "")), tmp_path / "diffusion_pytorch_model.safetensors")
    said = {"_class_name": "ControlNetModel", "controlnet_conditioning_channel_order": "bgr"}
    (tmp_path / "config.json").write_text(json.dumps({**said, "global_pool_conditions": True}))
    config = convert.load_controlnet(tmp_path, MODEL).config
    assert (config.blue_first, config.pooled) == (True, True)


def test_a_controlnet_of_another_generation_is_refused_with_the_numbers():
    other = dataclasses.replace(MODEL.unet, context_dim=48)
    tensors = of_table(controlnet_table(of_unet(other), "ldm", ""))
    with pytest.raises(convert.CheckpointError, match="with 48 numbers a token, and the model has 32"):
        convert.load_controlnet(tensors, MODEL)


@pytest.mark.parametrize("config", [T2I, LIGHT])
@pytest.mark.parametrize(("layout", "prefix"), [("ldm", ""), ("ldm", "module."), ("diffusers", "adapter.")])
def test_every_tensor_of_a_t2i_adapters_file_is_used(config, layout, prefix):
    tensors = of_table(t2i_table(config, layout, prefix))
    loaded = convert.load_t2i(tensors)
    assert loaded.config == dataclasses.replace(config, keeps_rest=layout == "diffusers")
    assert sum(map(np.size, jax.tree.leaves(loaded.params))) == sum(map(np.size, tensors.values()))
    with pytest.raises(convert.CheckpointError, match=r"body\.1\.style"):
        convert.load_t2i({**tensors, f"{prefix}body.1.style": np.zeros(3, np.float32)})
