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


class EmbeddingMLP(nn.Module):
    """Linear, SiLU, linear: makes the time embedding from a sinusoid, and unCLIP's label embedding from its vector."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b d"]:
        x = Dense(self.width, dtype=self.dtype, name="linear_1")(x)
        return Dense(self.width, dtype=self.dtype, name="linear_2")(jax.nn.silu(x))
