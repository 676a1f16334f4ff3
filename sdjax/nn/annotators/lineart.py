"""The generator of line drawings. Names are those of sk_model.pth and sk_model2.pth.

Source: Chan, Durand and Isola 2022 (arXiv 2203.12691), and Generator in controlnet_aux/lineart.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.nn.layers.conv import Conv, Padding
from sdjax.typing import Map

NONE: Padding = ((0, 0), (0, 0))
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class LineartConfig:
    """Channels at full size (twice and four times as many at halves), and blocks in the middle."""

    width: int = 64
    blocks: int = 3


class DoublingConv(nn.Module):
    """Returns the map at twice its size: torch's ConvTranspose2d with kernel 3, stride 2, padding 1, output padding 1.

    The kernel is [3, 3, out, in], because torch stores it as [in, out, 3, 3].
    """

    features: int

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "b h2 w2 d"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, self.features, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        flipped = kernel[::-1, ::-1].swapaxes(2, 3)
        numbers = ("NHWC", "HWIO", "NHWC")
        padding = ((1, 2), (1, 2))
        return bias + jax.lax.conv_general_dilated(
            x, flipped, (1, 1), padding, lhs_dilation=(2, 2), dimension_numbers=numbers
        )


class ResidualBlock(nn.Module):
    """Two convolutions with normalised channels, added to the map."""

    @nn.compact
    def __call__(self, x: Map) -> Map:
        width = x.shape[-1]
        y = jax.nn.relu(normalise(Conv(width, padding=NONE, name="conv_block_1")(reflect(x, 1))))
        return x + normalise(Conv(width, padding=NONE, name="conv_block_5")(reflect(y, 1)))


class LineartGenerator(nn.Module):
    """Returns drawings [b, h, w, 1], from 0 (line) to 1 (paper), of pictures [b, h, w, 3] from 0 to 1.

    Sides are multiples of 4, at least 8.
    """

    config: LineartConfig

    @nn.compact
    def __call__(self, picture: Float[Array, "b h w 3"]) -> Float[Array, "b h w 1"]:
        width, halves = self.config.width, (2, 2)
        x = jax.nn.relu(normalise(Conv(width, (7, 7), padding=NONE, name="model0_1")(reflect(picture, 3))))
        x = jax.nn.relu(normalise(Conv(2 * width, strides=halves, name="model1_0")(x)))
        x = jax.nn.relu(normalise(Conv(4 * width, strides=halves, name="model1_3")(x)))
        for i in range(self.config.blocks):
            x = ResidualBlock(name=f"model2_{i}")(x)
        x = jax.nn.relu(normalise(DoublingConv(2 * width, name="model3_0")(x)))
        x = jax.nn.relu(normalise(DoublingConv(width, name="model3_3")(x)))
        return jax.nn.sigmoid(Conv(1, (7, 7), padding=NONE, name="model4_1")(reflect(x, 3)))


def normalise(x: Map) -> Map:
    """Returns each picture's channels with mean 0 and variance 1: torch's InstanceNorm2d without weights."""
    mean = x.mean((1, 2), keepdims=True)
    return (x - mean) * jax.lax.rsqrt(jnp.square(x - mean).mean((1, 2), keepdims=True) + EPSILON)


def reflect(x: Map, pixels: int) -> Float[Array, "b h2 w2 c"]:
    """Returns the map with its borders mirrored outside, without repeating the outermost pixels."""
    return jnp.pad(x, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode="reflect")
