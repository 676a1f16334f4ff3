"""The table of a model's networks: description class, module, inputs for initialisation, names.

`PARTS` are the networks of a model, by the field of ModelConfig that describes each. `sdjax.nn.networks` has the table
of all networks, with those that are loaded or trained separately; a picture does not need it. All code that lists
networks uses these two tables.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sdjax.config import DepthConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig, VisionConfig
from sdjax.nn.clip import TextEncoder
from sdjax.nn.clip_vision import VisionEncoder
from sdjax.nn.depth.dpt import STEP, DepthEstimator
from sdjax.nn.jax_settings import pinned
from sdjax.nn.kept_shapes import kept
from sdjax.nn.unet import UNet
from sdjax.nn.vae import autoencoder
from sdjax.typing import Key, Params


@dataclasses.dataclass(frozen=True)
class NetworkEntry:
    """A network. `build` makes its module from a description of the class `described_by` (None: it needs none).

    `inputs` returns arguments for the module's `init`, as small as the description allows.
    """

    title: str
    described_by: type | None
    build: Callable[[Any], nn.Module]
    inputs: Callable[[Any], tuple[Array | None, ...]]

    def init(self, config: object, key: Key) -> Params:
        """Returns freshly initialised float32 parameters of the network with this description."""
        return self.build(config).init(key, *self.inputs(config))["params"]

    def shapes(self, config: object = None) -> Params:
        """Returns the parameters as jax.ShapeDtypeStruct leaves, without allocating memory."""
        return jax.tree.map(lambda leaf: leaf, _shapes(self, config))  # a copy, because the cached tree is shared


@functools.lru_cache(maxsize=32)  # tracing a UNet takes seconds, and models share networks
@pinned()
def _shapes(entry: NetworkEntry, config: object) -> Params:
    return kept(entry.title, config, lambda: jax.eval_shape(lambda: entry.init(config, jax.random.key(0))))


@dataclasses.dataclass(frozen=True)
class ModelPart(NetworkEntry):
    """A network of a model, and its place in files.

    `folder` is its folder in diffusers' layout. `prefix` is the beginning of its names in a single file. `without` is
    the consequence if a model does not have it; None if every model has it. A `separable` part may be read from another
    file than the rest of the model.
    """

    folder: str
    prefix: str
    without: str | None = None
    separable: bool = False


class ImageStatistics(nn.Module):
    """Mean and standard deviation [1, size] of image embeddings: measured, not learned."""

    size: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        shape = (1, self.size)
        return self.param("mean", nn.initializers.zeros, shape), self.param("std", nn.initializers.ones, shape)


def _unet_inputs(config: UNetConfig) -> tuple[Array | None, ...]:
    side = 2 ** (len(config.channels) - 1)
    label = None
    if config.num_classes is not None:
        label = jnp.zeros([1], jnp.int32)
    elif config.label_dim is not None:
        label = jnp.zeros([1, config.label_dim])
    scale = None if config.guidance_dim is None else jnp.ones([1])
    x, context = jnp.zeros([1, side, side, config.in_channels]), jnp.zeros([1, 1, config.context_dim])
    return x, jnp.zeros([1]), context, label, scale


def _vae_inputs(config: VAEConfig) -> tuple[Array, ...]:
    return (jnp.zeros([1, config.factor, config.factor, config.image_channels]),)


def _text_inputs(config: TextConfig) -> tuple[Array, ...]:
    return (jnp.zeros([1, config.max_length], jnp.int32),)


def _vision_inputs(config: VisionConfig) -> tuple[Array, ...]:
    return (image(config.image_size),)


def image(side: int) -> Array:
    """Returns a picture of zeros, [1, side, side, 3]."""
    return jnp.zeros([1, side, side, 3])


PARTS: Mapping[str, ModelPart] = {
    "unet": ModelPart("UNet", UNetConfig, UNet, _unet_inputs, folder="unet", prefix="model.diffusion_model."),
    "vae": ModelPart(
        "autoencoder", VAEConfig, autoencoder, _vae_inputs, folder="vae", prefix="first_stage_model.",
        separable=True,
    ),
    "text": ModelPart(
        "text encoder", TextConfig, TextEncoder, _text_inputs, folder="text_encoder", prefix="cond_stage_model.",
    ),
    "depth": ModelPart(
        "depth network", DepthConfig, DepthEstimator, lambda config: (image(STEP),),
        folder="depth_estimator", prefix="depth_model.model.", separable=True,
        without="depth maps have to be given",
    ),
    "vision": ModelPart(
        "image tower", VisionConfig, VisionEncoder, _vision_inputs,
        folder="image_encoder", prefix="embedder.model.", separable=True,
        without="embeddings of pictures have to be given",
    ),
    "noise_stats": ModelPart(
        "mean and standard deviation of image embeddings", int, ImageStatistics, lambda size: (),
        folder="image_normalizer", prefix="noise_augmentor.", separable=True,
        without="noise is put on embeddings as if they were 0 and 1",
    ),
}  # fmt: skip
NEEDED_FOLDERS = tuple(part.folder for part in PARTS.values() if part.without is None)
SEPARABLE = tuple(name for name, part in PARTS.items() if part.separable)


def parts_of(config: ModelConfig) -> tuple[str, ...]:
    """Returns the names of the parts that a model of this description has."""
    return tuple(name for name in PARTS if getattr(config, name) is not None)


def init_params(config: ModelConfig, key: Key) -> dict[str, Params]:
    """Returns freshly initialised float32 parameters, {"unet": ..., "vae": ..., "text": ...} and other parts if any."""
    names = parts_of(config)
    keys = jax.random.split(key, len(names))
    return {name: PARTS[name].init(getattr(config, name), key) for name, key in zip(names, keys)}


def param_shapes(config: ModelConfig) -> dict[str, Params]:
    """Returns the parameters as jax.ShapeDtypeStruct leaves, without allocating memory."""
    return {name: PARTS[name].shapes(getattr(config, name)) for name in parts_of(config)}


def param_counts(config: ModelConfig) -> dict[str, int]:
    """Returns the number of parameters of each network: {"unet": n, "vae": n, "text": n} and others."""
    shapes = param_shapes(config)
    return {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}
