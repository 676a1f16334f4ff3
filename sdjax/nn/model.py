"""The three networks of a model together: their parameters' shapes, counts and random initial values."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.config import ModelConfig
from sdjax.nn.clip import TextEncoder
from sdjax.nn.unet import UNet
from sdjax.nn.vae import AutoencoderKL
from sdjax.typing import Key


def init_params(config: ModelConfig, key: Key) -> dict[str, Any]:
    """Returns freshly initialised float32 parameters {"unet": ..., "vae": ..., "text": ...}."""
    keys = jax.random.split(key, 3)
    side = 2 ** (len(config.unet.channels) - 1)
    label = None
    if config.unet.num_classes is not None:
        label = jnp.zeros([1], jnp.int32)
    elif config.unet.label_dim is not None:
        label = jnp.zeros([1, config.unet.label_dim])
    x = jnp.zeros([1, side, side, config.unet.in_channels])
    context = jnp.zeros([1, config.text.max_length, config.unet.context_dim])
    image = jnp.zeros([1, config.vae.factor, config.vae.factor, config.vae.image_channels])
    ids = jnp.zeros([1, config.text.max_length], jnp.int32)
    return {
        "unet": UNet(config.unet).init(keys[0], x, jnp.zeros([1]), context, label)["params"],
        "vae": AutoencoderKL(config.vae).init(keys[1], image)["params"],
        "text": TextEncoder(config.text).init(keys[2], ids)["params"],
    }


def param_shapes(config: ModelConfig) -> dict[str, Any]:
    """Returns the parameters as jax.ShapeDtypeStruct leaves, allocating nothing."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def param_counts(config: ModelConfig) -> dict[str, int]:
    """Returns the number of parameters of each network: {"unet": n, "vae": n, "text": n}."""
    shapes = param_shapes(config)
    return {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}
