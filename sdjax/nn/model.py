"""The three networks of a model together: their parameters' shapes, counts and random initial values."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.config import ModelConfig, TextConfig, UNetConfig, VAEConfig
from sdjax.nn.clip import TextEncoder
from sdjax.nn.unet import UNet
from sdjax.nn.vae import AutoencoderKL
from sdjax.typing import Key


def init_params(config: ModelConfig, key: Key) -> dict[str, Any]:
    """Returns freshly initialised float32 parameters {"unet": ..., "vae": ..., "text": ...}."""
    keys = jax.random.split(key, 3)
    return {
        "unet": _init_unet(config.unet, keys[0]),
        "vae": _init_vae(config.vae, keys[1]),
        "text": _init_text(config.text, keys[2]),
    }


def _init_unet(config: UNetConfig, key: Key) -> dict[str, Any]:
    side = 2 ** (len(config.channels) - 1)
    label = None
    if config.num_classes is not None:
        label = jnp.zeros([1], jnp.int32)
    elif config.label_dim is not None:
        label = jnp.zeros([1, config.label_dim])
    x, context = jnp.zeros([1, side, side, config.in_channels]), jnp.zeros([1, 1, config.context_dim])
    return UNet(config).init(key, x, jnp.zeros([1]), context, label)["params"]


def _init_vae(config: VAEConfig, key: Key) -> dict[str, Any]:
    image = jnp.zeros([1, config.factor, config.factor, config.image_channels])
    return AutoencoderKL(config).init(key, image)["params"]


def _init_text(config: TextConfig, key: Key) -> dict[str, Any]:
    return TextEncoder(config).init(key, jnp.zeros([1, config.max_length], jnp.int32))["params"]


@functools.lru_cache(maxsize=32)  # tracing a UNet takes seconds, and models share networks
def _shapes(init: Any, config: Any) -> dict[str, Any]:
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def param_shapes(config: ModelConfig) -> dict[str, Any]:
    """Returns the parameters as jax.ShapeDtypeStruct leaves, allocating nothing."""
    parts = {"unet": (_init_unet, config.unet), "vae": (_init_vae, config.vae), "text": (_init_text, config.text)}
    return {name: jax.tree.map(lambda leaf: leaf, _shapes(*part)) for name, part in parts.items()}


def param_counts(config: ModelConfig) -> dict[str, int]:
    """Returns the number of parameters of each network: {"unet": n, "vae": n, "text": n}."""
    shapes = param_shapes(config)
    return {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}
