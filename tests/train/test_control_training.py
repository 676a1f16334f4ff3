"""Training of ControlNets: where they start, hints, the file, what is refused."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from models_to_train import TINY, write_model
from picture_sets import write_folder
from PIL import Image

from sdjax.checks.notes import Note
from sdjax.config import ConfigError
from sdjax.configs import controlnet
from sdjax.convert import read
from sdjax.convert.parts.controlnet import load_controlnet
from sdjax.convert.write.controlnet import write_control_lora, write_controlnet
from sdjax.description import build
from sdjax.evaluate.benchmark import random_model
from sdjax.loading.trainable.control import NETWORK, ControlTraining
from sdjax.nn.controlnet import of_unet
from sdjax.pictures.hints import PLAIN
from sdjax.train.build import Setup
from sdjax.train.builtin import vocabulary
from sdjax.train.config import DataConfig, TrainConfig
from sdjax.train.data.pictures import BadPicture
from sdjax.train.run import Run
from sdjax.train.training_set import make_examples, open_parts

NET = of_unet(TINY.unet, factor=TINY.vae.factor)


def values(folder, **data):
    config = controlnet.get_config().to_dict()
    config["data"] |= {"parts": [{"source": {"folder": str(folder)}}], "buckets": False, "flip": 0.0, **data}
    config["optim"] |= {"steps": 2, "warmup": 0, "learning_rate": 1e-2}
    config["log"] |= {"tensorboard": False, "every": 1}
    return config


def pictures(folder, with_hints=()):
    """Writes four pictures, and for some of them a plain hint that is named by a column of diffusers' scripts."""
    write_folder(folder, 4, sizes=((16, 16),), conditioning_image=[
        f"{i}_hint.png" if i in with_hints else None for i in range(4)
    ])  # fmt: skip
    for i in with_hints:
        Image.new("RGB", (16, 16), (i, 2 * i, 255)).save(folder / f"{i}_hint.png")
    return folder


@functools.cache
def new():
    base = random_model(TINY, "float32").params["unet"]
    return base, ControlTraining().prepared(TINY).init({"unet": base}, jax.random.key(0))[NETWORK]


def test_a_new_net_is_the_unets_encoder_with_last_layers_of_zero() -> None:
    base, net = new()
    for name in "time_embedding", "down_blocks_0", "mid_block":
        jax.tree.map(np.testing.assert_array_equal, net[name], base[name])
    last = [name for name in net if name.startswith(("controlnet_down", "controlnet_mid"))]
    assert len(last) == NET.outputs
    assert not any(np.any(leaf) for name in last for leaf in jax.tree.leaves(net[name]))
    with pytest.raises(ConfigError, match="UNet alone"):
        ControlTraining().prepared(TINY).init({"unet": base, "text": {}}, jax.random.key(0))


def example(folder, hints, **options):
    data = DataConfig(
        parts=({"source": {"folder": str(folder)}},), hints=hints, flip=1.0, hint_options=options, buckets=False
    )  # fmt: skip
    return make_examples(data, open_parts(data, 2, captions=True), TINY, 2)


def test_hints_are_made_of_the_picture_as_it_is_shown_or_lie_beside(tmp_path) -> None:
    folder = pictures(tmp_path / "set", with_hints=range(3))
    made = example(folder, "canny", low_threshold=10.0).load(0, 1, (16, 16), 0, 0)
    want = PLAIN["canny"](made["image"], low_threshold=10.0, high_threshold=200.0)
    np.testing.assert_array_equal(made["hint"], want)
    beside = example(folder, "files")
    assert len(beside.parts[0].source) == 4  # hints are no pictures of the set
    assert beside.load(0, 1, (16, 16), 0, 0)["hint"][0, 0].tolist() == [1, 2, 255]
    with pytest.raises(BadPicture, match="no hint"):
        beside.load(0, 3, (16, 16), 0, 0)


@pytest.mark.parametrize(("hints", "options", "said"), [
    ("cany", {}, "one of canny"), ("canny", {"low": 3}, "low"), ("canny", {"low_threshold": -1}, "low_threshold"),
])  # fmt: skip
def test_wrong_hints_are_refused(tmp_path, hints, options, said) -> None:
    with pytest.raises(ValueError, match=said):
        DataConfig(parts=({"source": {"folder": "x"}},), hints=hints, hint_options=options)


def test_a_run_without_hints_is_refused_and_hints_without_a_net_are_noted(tmp_path) -> None:
    config = values(tmp_path, hints=None)
    with pytest.raises(ConfigError, match="learns from hints"):
        Setup(build(TrainConfig, config), TINY)
    config = values(tmp_path, hints="canny") | {"trainable": {"kind": "parts"}}
    with pytest.warns(Note, match="no effect unless a ControlNet"):
        Setup(build(TrainConfig, config), TINY)


def test_a_written_net_is_read_again(tmp_path) -> None:
    pooled, (_, net) = dataclasses.replace(NET, pooled=True), new()
    write_controlnet(tmp_path / "a.safetensors", pooled, net)
    loaded = load_controlnet(tmp_path / "a.safetensors", TINY)
    assert loaded.config == pooled
    jax.tree.map(np.testing.assert_array_equal, loaded.params, net)


@pytest.mark.slow  # compiles a step of a whole model
def test_a_run_changes_only_the_net_and_leaves_its_file(tmp_path) -> None:
    folder = pictures(tmp_path / "set")
    tokenizer = vocabulary.learn(iter(["a red square on a wall", "a blue square"] * 20), TINY.text.vocab_size)
    write_model(TINY, random_model(TINY, "float32").params, tokenizer, tmp_path / "model")
    config = values(folder)
    config["model"]["path"] = str(tmp_path / "model")
    state = Run(build(TrainConfig, config), tmp_path / "run", lambda text: None, devices=jax.devices()[:1]).train()
    assert list(state.params) == [NETWORK]
    assert np.any(state.params[NETWORK]["controlnet_mid_block"]["kernel"])
    loaded = load_controlnet(tmp_path / "run" / "controlnet.safetensors", TINY)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, jax.device_get(state.params[NETWORK]))


def test_a_control_lora_keeps_the_difference_to_the_unet_up_to_its_rank(tmp_path) -> None:
    base, net = new()
    changed = jax.tree.map(np.array, net)
    kernel = changed["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]
    rng = np.random.default_rng(0)
    low = rng.normal(size=(9 * kernel.shape[2], 2)) @ rng.normal(size=(2, kernel.shape[3]))
    kernel += low.reshape(kernel.shape)
    changed["controlnet_mid_block"]["kernel"] += 1
    write_control_lora(tmp_path / "a.safetensors", NET, changed, base, rank=2, dtype=np.float32)
    loaded = load_controlnet(tmp_path / "a.safetensors", TINY, base)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), loaded.params, changed)
    names = read(tmp_path / "a.safetensors").keys()
    assert "input_blocks.1.0.in_layers.2.up" in names
    assert "input_blocks.1.0.in_layers.2.weight" not in names
