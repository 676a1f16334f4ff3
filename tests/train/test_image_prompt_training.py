"""Training of IP-Adapters: where they start, what learns, the file, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_to_train import TINY

import sdjax
from sdjax.config import ConfigError, VisionConfig
from sdjax.configs import image_prompt as configured
from sdjax.convert.parts.ip_adapter import load_ip_adapter
from sdjax.convert.write.ip_adapter import write_ip_adapter
from sdjax.description import build
from sdjax.evaluate.benchmark import random_model
from sdjax.loading.trainable import image_prompt
from sdjax.loading.trainable.image_prompt import ENCODER, NETWORK, ImagePromptTraining
from sdjax.nn.ip_adapter import attention_paths
from sdjax.nn.networks import NETWORKS
from sdjax.train.build import Setup
from sdjax.train.config import TrainConfig
from sdjax.train.objectives import draws

import models

VISION = VisionConfig(image_size=28, patch_size=14, width=16, layers=1, heads=2, projection=8)


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    made = VISION, models.fill_tree(NETWORKS["vision"].shapes(VISION))
    monkeypatch.setattr(image_prompt, "_vision", lambda path: made)


@functools.cache
def base():
    return random_model(TINY, "float32").params


def new(tokens=4):
    what = ImagePromptTraining("encoder", tokens)
    return what.prepared(TINY).init({"unet": base()["unet"]}, jax.random.key(0))[NETWORK]


def setup(**changes):
    config = configured.get_config().to_dict()
    config["trainable"] |= {"encoder": "encoder", "dropout": 0.5, **changes}
    config["data"] |= {"parts": [{"source": {"folder": "pictures"}}], "buckets": False}
    return Setup(build(TrainConfig, config), TINY)


def test_a_new_adapter_has_the_keys_and_values_of_texts() -> None:
    made = new()
    for i, (path, _) in enumerate(attention_paths(TINY.unet)):
        layer = functools.reduce(lambda tree, name: tree[name], path.split("/"), base()["unet"])
        for one in "kv":
            np.testing.assert_array_equal(
                made[f"attention_{i}"][f"to_{one}_ip"]["kernel"], layer[f"to_{one}"]["kernel"]
            )
    with pytest.raises(ConfigError, match="UNet alone"):
        ImagePromptTraining("encoder").prepared(TINY).init({"unet": base()["unet"], "text": {}}, jax.random.key(0))


def test_a_written_adapter_is_read_again(tmp_path) -> None:
    made = new(tokens=3)
    config = ImagePromptTraining("encoder", 3).network(TINY)
    write_ip_adapter(tmp_path / "a.safetensors", config, made)
    loaded = load_ip_adapter(tmp_path / "a.safetensors", TINY)
    assert loaded.config == config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, made)
    embedding = np.ones((1, VISION.projection), np.float32)
    assert sdjax.ImagePrompt(loaded, embedding=embedding).encode(TINY).adapter is loaded


def test_wrong_settings_are_refused() -> None:
    for changes, said in ({"tokens": 0}, "tokens"), ({"dropout": 2}, "dropout"), ({"encoder": None}, "image encoder"):
        with pytest.raises((ConfigError, ValueError), match=said):
            setup(**changes)


@pytest.mark.slow  # compiles the gradient of a whole model
def test_gradients_reach_the_adapter_alone_and_follow_the_picture() -> None:
    made = setup()
    parts = {name: base()[name] for name in ("unet", "vae", "text")}
    trained, frozen = made.split(parts, jax.random.key(1))
    assert list(trained) == [NETWORK]
    assert ENCODER in frozen
    side, b = TINY.image_size, 8
    images = np.stack([models.picture(side, side, seed=i) for i in range(b)])
    batch = {"image": images, "ids": jnp.zeros((b, TINY.text.max_length), jnp.int32)}
    empty = np.zeros(TINY.text.max_length, np.int32)
    keys = draws.keys_of(jax.random.key(2), jnp.int32(0), jnp.arange(b))
    loss = made.loss_of_trained(empty)
    step = jax.jit(jax.value_and_grad(lambda own: loss(own, frozen, None, batch, keys, jnp.int32(0))[0]))
    value, gradient = step(trained)
    for name in "image_proj", "attention_0":
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient[NETWORK][name]))
    for _ in range(10):
        trained = jax.tree.map(lambda leaf, change: leaf - 0.1 * change, trained, step(trained)[1])
    assert step(trained)[0] < value
