"""The PatchGAN discriminator for training the autoencoder: it separates real from reconstructed patches.

Source: Isola et al. 2017 (arXiv 1611.07004), section 3.2; CompVis/taming-transformers,
taming/modules/discriminator/model.py:NLayerDiscriminator of three layers, whose names these are.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.nn.layers.conv import Conv
from sdjax.typing import Key, Map

WIDTHS, STRIDES = (64, 128, 256, 512), (2, 2, 2, 1)
KERNEL, PADDING = (4, 4), ((1, 1), (1, 1))
SLOPE = 0.2  # of the leaky ReLU
EPSILON = 1e-5
SMALLEST = 24  # pixels of a side that give one logit


def near_one(key: Key, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Returns draws from N(1, 0.02^2)."""
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


class BatchNorm(nn.Module):
    """Normalises every channel over all positions of the whole batch, then scales and shifts it; in float32.

    The statistics are those of the global batch over all devices. Under `jit` over a mesh, a mean over the first axis
    already includes all devices. Under `pmap` or `shard_map`, give the name of the device axis as `axis`. There are no
    running averages, because the discriminator is used only in training.
    """

    dtype: DTypeLike = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(self, x: Map) -> Map:
        c = x.shape[-1]
        scale = self.param("scale", near_one, (c,)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,)).astype(jnp.float32)
        y = x.astype(jnp.float32)
        y = y - self._mean(y)
        return (y * (jax.lax.rsqrt(self._mean(jnp.square(y)) + EPSILON) * scale) + bias).astype(self.dtype)

    def _mean(self, x: Map) -> Float[Array, "c"]:
        mean = x.mean((0, 1, 2))
        return mean if self.axis is None else jax.lax.pmean(mean, self.axis)


class Discriminator(nn.Module):
    """Returns logits [b, h/8 - 2, w/8 - 2, 1], float32, of images about in [-1, 1]. Above 0 means it looks real.

    Each sees 70 x 70 pixels. Kernels start as N(0, 0.02^2), norms' scales as N(1, 0.02^2), biases at 0.

    Raises ValueError for sides under 24 pixels.
    """

    dtype: DTypeLike = jnp.float32
    axis: str | None = None  # BatchNorm's

    @nn.compact
    def __call__(self, image: Map) -> Float[Array, "b h2 w2 1"]:
        _, h, w, _ = image.shape
        if min(h, w) < SMALLEST:
            raise ValueError(f"the discriminator takes pictures of at least {SMALLEST} pixels a side; got {h} x {w}")
        x, number = image, 0  # norms and activations count in the layer numbers too, as in the reference
        for i, (width, stride) in enumerate(zip(WIDTHS, STRIDES)):
            x = self._conv(width, stride, f"main_{number}", use_bias=i == 0)(x)
            if i:
                x = BatchNorm(self.dtype, self.axis, name=f"main_{number + 1}")(x)
            x = jax.nn.leaky_relu(x, SLOPE)
            number += 3 if i else 2
        return self._conv(1, 1, f"main_{number}")(x).astype(jnp.float32)

    def _conv(self, width: int, stride: int, name: str, use_bias: bool = True) -> Conv:
        kernel_init = nn.initializers.normal(0.02)
        return Conv(width, KERNEL, (stride, stride), PADDING, use_bias, kernel_init, self.dtype, name=name)
