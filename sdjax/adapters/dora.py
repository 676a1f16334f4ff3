"""DoRA: a change of a kernel, and the length of each output's weights, or of each input's."""

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from sdjax.adapters.delta import AdapterError, Delta

LEAST = 1e-12  # of a length that is divided by


@struct.dataclass
class WeightDecomposed:
    """The kernel W + D of a change D, scaled so that the weights of output i have the length |magnitude[i]|.

    `magnitude` is [d]. With W' = m (W + D) / |W + D| the difference is W' - W. With `per_input`, `magnitude` is [c] and
    the lengths are those of each input's weights, as OneTrainer has them.

    Source: Liu et al. 2024 (arXiv 2402.09353), equation 5.
    """

    change: Delta
    magnitude: Array | np.ndarray
    per_input: bool = struct.field(pytree_node=False, default=False)

    def difference(self, base: Array) -> Array:
        """Returns W' - W in float32."""
        kept = base.shape[-2:-1] if self.per_input else base.shape[-1:]
        if self.magnitude.shape != kept:
            raise AdapterError(f"magnitudes {self.magnitude.shape} do not fit a kernel {base.shape}")
        moved = base + self.change.difference(base)
        factor = jnp.asarray(self.magnitude, jnp.float32) / jnp.maximum(lengths(moved, self.per_input), LEAST)
        return moved * (factor[:, None] if self.per_input else factor) - base


def lengths(kernel: Array, per_input: bool = False) -> Array:
    """Returns the length of each output's weights, [d], or of each input's, [c]."""
    kept = kernel.ndim - (2 if per_input else 1)
    return jnp.sqrt(jnp.square(kernel).sum(tuple(axis for axis in range(kernel.ndim) if axis != kept)))
