"""DoRA: a change of a kernel, and the length of each output's weights."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from sdjax.adapters.delta import AdapterError, LowRank


@struct.dataclass
class WeightDecomposed:
    """The kernel W + D of a change D, scaled so that the weights of output i have the length |magnitude[i]|.

    `magnitude` is [d]. With W' = m (W + D) / |W + D| the difference is W' - W.

    Source: Liu et al. 2024 (arXiv 2402.09353), equation 5.
    """

    change: LowRank
    magnitude: Array

    def difference(self, base: Array) -> Array:
        """Returns W' - W in float32."""
        if self.magnitude.shape != base.shape[-1:]:
            raise AdapterError(f"magnitudes {self.magnitude.shape} do not fit a kernel {base.shape}")
        moved = base + self.change.difference(base)
        return moved * (self.magnitude.astype(jnp.float32) / lengths(moved)) - base


def lengths(kernel: Array) -> Array:
    """Returns the length of each output's weights, [d]."""
    return jnp.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0)
