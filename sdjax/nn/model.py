"""The networks of a model together: their parameters' shapes, counts and random initial values."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.config import DepthConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig, VisionConfig
from sdjax.nn.clip import TextEncoder
from sdjax.nn.clip_vision import VisionEncoder
from sdjax.nn.depth.dpt import STEP, DepthEstimator
from sdjax.nn.jax_settings import pinned
from sdjax.nn.unet import UNet
from sdjax.nn.vae import AutoencoderKL
from sdjax.typing import Key


def init_params(config: ModelConfig, key: Key) -> dict[str, Any]:
    """Returns freshly initialised float32 parameters, {"unet": ..., "vae": ..., "text": ...} and other parts if any."""
    parts = _parts(config)
    return {name: init(part, k) for (name, (init, part)), k in zip(parts.items(), jax.random.split(key, len(parts)))}


def _parts(config: ModelConfig) -> dict[str, tuple[Callable[[Any, Key], dict[str, Any]], Any]]:
    """Returns each network's initialiser and description."""
    described = {name: getattr(config, name) for name in _INITS}
    return {name: (_INITS[name], part) for name, part in described.items() if part is not None}


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


def _init_depth(config: DepthConfig, key: Key) -> dict[str, Any]:
    return DepthEstimator(config).init(key, jnp.zeros([1, STEP, STEP, 3]))["params"]


def _init_vision(config: VisionConfig, key: Key) -> dict[str, Any]:
    return VisionEncoder(config).init(key, jnp.zeros([1, config.image_size, config.image_size, 3]))["params"]


def _init_noise_stats(size: int, key: Key) -> dict[str, Any]:
    return {"mean": jnp.zeros([1, size]), "std": jnp.ones([1, size])}  # measured, not learned


_INITS: dict[str, Callable[[Any, Key], dict[str, Any]]] = {
    "unet": _init_unet, "vae": _init_vae, "text": _init_text, "depth": _init_depth, "vision": _init_vision,
    "noise_stats": _init_noise_stats,
}  # fmt: skip


@functools.lru_cache(maxsize=32)  # tracing a UNet takes seconds, and models share networks
@pinned()
def _shapes(init: Any, config: Any) -> dict[str, Any]:
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def part_shapes(part: str, description: Any) -> dict[str, Any]:
    """Returns the parameters of one network of a model, "vae" for example, as jax.ShapeDtypeStruct leaves."""
    return jax.tree.map(lambda leaf: leaf, _shapes(_INITS[part], description))


def param_shapes(config: ModelConfig) -> dict[str, Any]:
    """Returns the parameters as jax.ShapeDtypeStruct leaves, allocating nothing."""
    return {name: jax.tree.map(lambda leaf: leaf, _shapes(*part)) for name, part in _parts(config).items()}


def param_counts(config: ModelConfig) -> dict[str, int]:
    """Returns the number of parameters of each network: {"unet": n, "vae": n, "text": n} and others."""
    shapes = param_shapes(config)
    return {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}
