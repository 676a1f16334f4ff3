"""LPIPS, how different two pictures look: a distance between their VGG16 features, version 0.1.

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
SMALLEST = 16  # pixels of a side, of which four poolings leave one
EPSILON = 1e-10


class VGG16(nn.Module):
    """The maps behind the last convolution before each pooling, of an image in [-1, 1]; its classifier is left out."""

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
    """A weight for every channel; the 1x1 convolution lies one module deeper, behind the dropout that is left out."""

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "b h w 1"]:
        return Conv(1, (1, 1), padding=POINT, use_bias=False, name="model_1")(x)


class LPIPS(nn.Module):
    """Returns the distance [b], float32, of two images in [-1, 1] of equal sides; 0 for equal ones.

    It is the mean over positions of weighted squared differences of features of unit length, summed over five depths.
    There is no dropout, as in the lpips package: in CompVis's training, which did not mean it, half of the differences
    are dropped at random.

    Raises ValueError for sides under 16 pixels.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Image, other: Image) -> Float[Array, "b"]:
        _, h, w, _ = image.shape
        if min(h, w) < SMALLEST:
            raise ValueError(f"LPIPS takes pictures of at least {SMALLEST} pixels a side; got {h} x {w}")
        vgg, distances = VGG16(self.dtype, name="vgg"), []
        # One after the other: as one batch, no gradient to the first could be left out where nobody asks for it
        for i, (a, b) in enumerate(zip(vgg(image), vgg(other))):
            y = Weights(name=f"lin{i}")(jnp.square(unit(a) - unit(b)))
            distances.append(y.mean((1, 2, 3)))
        return functools.reduce(operator.add, distances)


def unit(x: Map) -> Map:
    """Returns every position's vector divided by its length plus 1e-10, float32; zeros stay, without gradient."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    length = jnp.sqrt(jnp.where(square > 0, square, 1.0))  # the root's slope at 0 is no number
    return x * jnp.where(square > 0, 1.0 / (length + EPSILON), 0.0)
