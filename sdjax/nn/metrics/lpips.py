"""LPIPS 0.1, a measure of how different two pictures look: a distance between their VGG16 features.

Names are those of torchvision's VGG16 and of the lpips package. Source: Zhang et al. 2018 (arXiv 1801.03924);
CompVis/taming-transformers, taming/modules/losses/lpips.py, after richzhang/PerceptualSimilarity.
"""

import functools
import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.nn.layers.conv import POINT, Conv
from sdjax.typing import Image, Map, Maps

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation for pictures in [-1, 1]
WIDTHS = (64, 128, 256, 512, 512)
LAYERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # the convolutions in torchvision's `features`
SMALLEST = 16  # smallest side in pixels: four poolings leave one pixel
EPSILON = 1e-10


class VGG16(nn.Module):
    """Returns the maps after the last convolution before each pooling, of an image in [-1, 1]. Has no classifier."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Image) -> Maps:
        x, maps = (image - jnp.array(SHIFT)) / jnp.array(SCALE), []
        for i, (width, layers) in enumerate(zip(WIDTHS, LAYERS)):
            if i:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for number in layers:
                x = jax.nn.relu(Conv(width, dtype=self.dtype, name=f"features_{number}")(x))
            maps.append(x)
        return maps


class Weights(nn.Module):
    """A weight for every channel. The 1x1 convolution is one module deeper, after the dropout, which is left out."""

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "b h w 1"]:
        return Conv(1, (1, 1), padding=POINT, use_bias=False, name="model_1")(x)


class LPIPS(nn.Module):
    """Returns the distance [b], float32, of two images in [-1, 1] of the same size. It is 0 for equal images.

    It is the mean over positions of weighted squared differences of unit-length features, summed over five depths.
    There is no dropout, as in the lpips package. CompVis's training drops half of the differences at random, by
    mistake.

    Raises ValueError for sides under 16 pixels.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Image, other: Image) -> Float[Array, "b"]:
        _, h, w, _ = image.shape
        if min(h, w) < SMALLEST:
            raise ValueError(f"LPIPS takes pictures of at least {SMALLEST} pixels a side; got {h} x {w}")
        vgg, distances = VGG16(self.dtype, name="vgg"), []
        # One after the other, so that the gradient of one image can be skipped if it is not needed
        for i, (a, b) in enumerate(zip(vgg(image), vgg(other))):
            y = Weights(name=f"lin{i}")(jnp.square(unit(a) - unit(b)))
            distances.append(y.mean((1, 2, 3)))
        return functools.reduce(operator.add, distances)


def unit(x: Map) -> Map:
    """Returns every position's vector divided by its length plus 1e-10, float32; zeros stay, without gradient."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    length = jnp.sqrt(jnp.where(square > 0, square, 1.0))  # the root's slope at 0 is infinite
    return x * jnp.where(square > 0, 1.0 / (length + EPSILON), 0.0)
