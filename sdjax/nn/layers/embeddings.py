"""Timestep and label embeddings of the UNet."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.nn.layers.dense import Dense
from sdjax.typing import Timestep


def timestep_embedding(t: Timestep, width: int, max_period: float = 10_000.0) -> Float[Array, "b d"]:
    """Returns [cos(t f), sin(t f)] with f falling geometrically from 1 to 1 / max_period, float32 [b, width].

    t may be fractional: DPM-Solver, LMS and Euler call the network between timesteps.

    Source: ldm/modules/diffusionmodules/util.py:timestep_embedding (cosines first, no "- 1" in the denominator).
    """
    half = width // 2
    frequencies = np.exp(-np.log(max_period) * np.arange(half, dtype=np.float64) / half).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def guidance_embedding(scale: Float[Array, "b"], width: int) -> Float[Array, "b d"]:
    """Returns [sin(w f), cos(w f)] of w = 1000 (scale - 1), float32 [b, width]; an odd width ends with a zero.

    f falls geometrically from 1 to 1 / 10,000. Unlike in `timestep_embedding` sines come first, and the last f is
    reached. The exponents are rounded to float32, as in training: angles are so large that it shows. Source: diffusers,
    LatentConsistencyModelPipeline.get_guidance_scale_embedding.
    """
    half = width // 2
    fall = np.log(np.float32(10_000)) / np.float32(half - 1)
    exponents = np.arange(half, dtype=np.float32) * -fall
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = 1000 * (scale.astype(jnp.float32) - 1)[:, None] * frequencies
    return jnp.pad(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1), [(0, 0), (0, width % 2)])


class EmbeddingMLP(nn.Module):
    """Linear, SiLU, linear: makes the time embedding from a sinusoid, and unCLIP's label embedding from its vector.

    A `condition`, which latent consistency models have, is projected and added to x first.
    """

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b c"], condition: Float[Array, "b e"] | None = None) -> Float[Array, "b d"]:
        if condition is not None:
            x = x + Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name="cond_proj")(condition)
        x = Dense(self.width, dtype=self.dtype, name="linear_1")(x)
        return Dense(self.width, dtype=self.dtype, name="linear_2")(jax.nn.silu(x))
