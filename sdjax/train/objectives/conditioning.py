"""The conditioning of each kind of model in training, computed from the picture itself.

Each function takes the model's configuration, its parameters, a batch with `image` [b, h, w, 3] in [-1, 1], one key
an example, and the objective. It returns the channels beside the noisy latent and the label, in the order and with the
statistics that sampling uses.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import ModelConfig
from sdjax.diffusion.unclip import embedding_mean_and_std, noise_embedding
from sdjax.nn import DepthEstimator, VisionEncoder, latent_from_moments
from sdjax.nn.depth.dpt import network_size
from sdjax.nn.layers.interpolation import interpolate
from sdjax.nn.vae import autoencoder
from sdjax.pictures.preprocess import MEAN, STD, ldm_matrix
from sdjax.purpose import UNCLIP_LEVELS, UPSCALER_LEVELS
from sdjax.schedule import NoiseSchedule
from sdjax.train.objectives import draws
from sdjax.train.objectives.holes import random_holes
from sdjax.train.objectives.objective import Batch
from sdjax.typing import Image, Keys, Latent, NewMap, Params

if TYPE_CHECKING:
    from sdjax.train.objectives.diffusion import DiffusionObjective

FLAT = 0.001  # added to a depth map's spread in training


class PictureConditioning(NamedTuple):
    """Channels beside the latent, and a label; None if the model does not use them."""

    concat: jax.Array | None = None
    label: jax.Array | None = None


def encode(config: ModelConfig, vae: Params, image: Image, keys: Keys, stream: int, dtype: DTypeLike) -> NewMap:
    """Returns draws from the posterior of pictures in [-1, 1], times the scale factor, float32."""
    moments = autoencoder(config.vae, dtype).bind({"params": vae}).encode(image)
    return from_moments(config, moments, keys, stream)


def from_moments(config: ModelConfig, moments: jax.Array, keys: Keys, stream: int) -> Latent:
    """Returns draws from posteriors [b, h, w, 2 c], times the scale factor, float32."""
    moments = moments.astype(jnp.float32)
    shape = (*moments.shape[1:3], config.vae.latent_channels)
    return latent_from_moments(moments, draws.normal(keys, stream, shape), config.vae.scale_factor)


def text(
    config: ModelConfig, parts: Params, batch: Batch, keys: Keys, objective: "DiffusionObjective", dtype: DTypeLike
) -> PictureConditioning:
    """Returns empty conditioning: such a model depends on the text only."""
    return PictureConditioning()


def inpainting(
    config: ModelConfig, parts: Params, batch: Batch, keys: Keys, objective: "DiffusionObjective", dtype: DTypeLike
) -> PictureConditioning:
    """Returns mask and latent of the picture with its hole in mid-grey, [b, h / 8, w / 8, 1 + c].

    The hole is the batch's `mask` if the objective's `holes` is "given", otherwise random.
    """
    image, factor = batch["image"], config.vae.factor
    if objective.holes == "given":
        hole = batch["mask"] >= 128
    else:
        hole = random_holes(keys, image.shape[1], image.shape[2], objective.whole_holes)
    hole = hole[..., None].astype(jnp.float32)
    masked = encode(config, parts["vae"], image * (1 - hole), keys, draws.HOLES_POSTERIOR, dtype)
    return PictureConditioning(concat=jnp.concatenate([hole[:, ::factor, ::factor], masked], axis=-1))


def depth(
    config: ModelConfig, parts: Params, batch: Batch, keys: Keys, objective: "DiffusionObjective", dtype: DTypeLike
) -> PictureConditioning:
    """Returns the depth network's estimate, [b, h / 8, w / 8, 1], scaled to -1 to 1 for each picture."""
    assert config.depth is not None  # of a model of this kind
    image, factor = batch["image"], config.vae.factor
    h, w = image.shape[1:3]
    seen = interpolate(image, network_size(config.depth, (h, w)), method="bicubic")
    out = DepthEstimator(config.depth, dtype).bind({"params": parts["depth"]})(seen)
    out = interpolate(out, (h // factor, w // factor), method="bicubic")
    low, high = out.min((1, 2, 3), keepdims=True), out.max((1, 2, 3), keepdims=True)
    return PictureConditioning(concat=2 * (out - low) / (high - low + FLAT) - 1)


def upscaling(
    config: ModelConfig, parts: Params, batch: Batch, keys: Keys, objective: "DiffusionObjective", dtype: DTypeLike
) -> PictureConditioning:
    """Returns the noisy picture at a quarter of its size, not encoded, and the noise level as label."""
    image, factor = batch["image"], config.vae.factor
    b, h, w, _ = image.shape
    low = jnp.clip(jax.image.resize(image, (b, h // factor, w // factor, 3), "cubic"), -1, 1)
    level = draws.integers(keys, draws.LEVEL, 0, UPSCALER_LEVELS)
    noise = draws.normal(keys, draws.LEVEL_NOISE, low.shape[1:])
    return PictureConditioning(concat=NoiseSchedule(config.schedule).add_noise(low, noise, level), label=level)


def unclip(
    config: ModelConfig, parts: Params, batch: Batch, keys: Keys, objective: "DiffusionObjective", dtype: DTypeLike
) -> PictureConditioning:
    """Returns the label, [b, 2 d]: the picture's CLIP embedding with noise of a random level, and that level."""
    assert config.vision is not None  # of a model of this kind
    image, size = batch["image"], config.vision.image_size
    rows, columns = (jnp.asarray(m) for m in ldm_matrix(image.shape[1], image.shape[2], size))
    seen = (jnp.einsum("ih,bhwc,jw->bijc", rows, image, columns) + 1) / 2
    seen = (seen - MEAN) / STD
    embedding = VisionEncoder(config.vision, dtype).bind({"params": parts["vision"]})(seen)
    level = draws.integers(keys, draws.LEVEL, 0, UNCLIP_LEVELS)
    noise = draws.normal(keys, draws.LEVEL_NOISE, embedding.shape[1:])
    stats = embedding_mean_and_std(parts, embedding.shape[-1])
    label = noise_embedding(embedding, level, noise, stats["mean"], stats["std"])
    return PictureConditioning(label=draws.replaced(keys, draws.LABEL, objective.label_dropout, label, 0.0))


Condition: TypeAlias = Callable[
    [ModelConfig, Params, Batch, Keys, "DiffusionObjective", DTypeLike], PictureConditioning
]

# By the kind of model (sdjax.purpose.KINDS); and which parameters each needs besides text encoder and autoencoder
CONDITIONS: dict[str, Condition] = {
    "text": text, "inpainting": inpainting, "depth": depth, "upscaling": upscaling, "unclip": unclip,
}  # fmt: skip
NEEDS = {"depth": "depth", "unclip": "vision"}
