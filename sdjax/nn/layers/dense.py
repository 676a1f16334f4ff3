"""Linear layers."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.nn.layers.products import linear
from sdjax.nn.quantised.leaf import kernel_for


class Dense(nn.Module):
    """x @ kernel [c, features] + bias, in `dtype`, with flax.linen.Dense's names and initialisers."""

    features: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n d"]:
        kernel = kernel_for(self, x, self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        return linear(
            x.astype(self.dtype), kernel.astype(self.dtype), None if bias is None else bias.astype(self.dtype)
        )
