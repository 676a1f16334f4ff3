"""DoRA: a change of a kernel, and the length of each output's weights, or of each input's."""

from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from sdjax.adapters.delta import AdapterError, Delta

LEAST = 1e-12  # of a length that is divided by

# What DoRA does at weights s other than 1: W + s (W' - W); or as PEFT or LyCORIS compute it, where it was trained
Convention: TypeAlias = Literal["linear", "peft", "lycoris"]


@struct.dataclass
class WeightDecomposed:
    """The kernel W + D of a change D, scaled so that the weights of output i have the length |magnitude[i]|.

    `magnitude` is [d]. With W' = m (W + D) / |W + D| the difference is W' - W. With `per_input`, `magnitude` is [c] and
    the lengths are those of each input's weights, as OneTrainer has them.

    At other weights s it adds s (W' - W). With `convention` "peft" W becomes m (W + s D) / |W + s D|, and with
    "lycoris" (W + D) (1 + s (m / |W + D| - 1)).

    Source: Liu et al. 2024 (arXiv 2402.09353), equation 5.
    """

    change: Delta
    magnitude: Array | np.ndarray
    per_input: bool = struct.field(pytree_node=False, default=False)
    convention: Convention = struct.field(pytree_node=False, default="linear")

    def difference(self, base: Array) -> Array:
        """Returns W' - W in float32."""
        return self._scaled(base, base + self.change.difference(base), 1.0) - base

    def at(self, base: Array, weight: Array | float) -> Array:
        """Returns what is added to W at this weight, in float32."""
        if self.convention == "linear":
            return weight * self.difference(base)
        change = self.change.difference(base)
        if self.convention == "peft":
            return self._scaled(base, base + weight * change, 1.0) - base
        return self._scaled(base, base + change, weight) - base

    def _scaled(self, base: Array, moved: Array, weight: Array | float) -> Array:
        """Returns the moved kernel with its lengths brought to the magnitudes, or at a weight part of the way."""
        kept = base.shape[-2:-1] if self.per_input else base.shape[-1:]
        if self.magnitude.shape != kept:
            raise AdapterError(f"magnitudes {self.magnitude.shape} do not fit a kernel {base.shape}")
        factor = jnp.asarray(self.magnitude, jnp.float32) / jnp.maximum(lengths(moved, self.per_input), LEAST)
        factor = 1.0 + weight * (factor - 1.0)
        return moved * (factor[:, None] if self.per_input else factor)


def lengths(kernel: Array, per_input: bool = False) -> Array:
    """Returns the length of each output's weights, [d], or of each input's, [c]."""
    kept = kernel.ndim - (2 if per_input else 1)
    return jnp.sqrt(jnp.square(kernel).sum(tuple(axis for axis in range(kernel.ndim) if axis != kept)))
