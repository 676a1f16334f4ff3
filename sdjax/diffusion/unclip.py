"""The label of unCLIP's network: an image embedding with noise, and the level of that noise.

Source: Stability-AI/stablediffusion, ldm/modules/encoders/modules.py (CLIPEmbeddingNoiseAugmentation) and
ldm/modules/diffusionmodules/upscaling.py (ImageConcatWithNoiseAugmentation).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdjax.config import ScheduleConfig
from sdjax.nn.layers.embeddings import timestep_embedding
from sdjax.purpose import UNCLIP_LEVELS
from sdjax.schedule import alphas_cumprod
from sdjax.typing import Params

Embedding = Float[Array, "b d"]
Level = Int[Array, "b"]


def noise_embedding(
    embedding: Embedding,
    level: Level,
    noise: Embedding,
    mean: Float[Array, "... d"],
    std: Float[Array, "... d"],
    *,
    levels: int = UNCLIP_LEVELS,
) -> Float[Array, "b _"]:
    """Returns the label of an image embedding: the embedding with noise of `level`, then the sinusoid of the level.

    Noise is added to s = (embedding - mean) / std: sqrt(a) s + sqrt(1 - a) noise, times std plus mean. a is that of the
    "squaredcos" schedule of `levels` timesteps. Level 0 adds a little noise too. All is float32.
    """
    a = alphas_cumprod(ScheduleConfig(kind="squaredcos", num_timesteps=levels))
    of_embedding, of_noise = (jnp.asarray(w**0.5, jnp.float32)[level][:, None] for w in (a, 1 - a))
    embedding, noise, mean, std = (x.astype(jnp.float32) for x in map(jnp.asarray, (embedding, noise, mean, std)))
    noisy = (of_embedding * (embedding - mean) / std + of_noise * noise) * std + mean
    return jnp.concatenate([noisy, timestep_embedding(level, embedding.shape[-1])], axis=-1)


def embedding_mean_and_std(params: Params, size: int) -> Params:
    """Returns {"mean", "std"} of a model's embeddings of `size` numbers, or 0 and 1 if `params` has none."""
    return params.get("noise_stats") or {"mean": np.zeros((1, size)), "std": np.ones((1, size))}


def mix_labels(labels: Float[Array, "n b d"], weights: Float[Array, "n"] | Sequence[float]) -> Float[Array, "b d"]:
    """Returns the weighted mean of the labels of several pictures, with their levels: sum w_i label_i / sum w_i."""
    weights = jnp.asarray(weights, jnp.float32)
    return jnp.einsum("n,nbd->bd", weights / weights.sum(), labels, precision=jax.lax.Precision.HIGHEST)
