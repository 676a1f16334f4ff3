"""TAESD, the tiny autoencoder: latents to pictures and back in a small part of the time, with less detail.

It is described by a `VAEConfig` of the kind "tiny". Its latents are those that the UNet sees, so nothing is scaled.

Source: madebyollin/taesd, taesd.py. Names are those of diffusers' AutoencoderTiny.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import VAEConfig
from sdjax.nn.layers.conv import Conv
from sdjax.typing import Image, Latent, Map, Moments, NewImage, NewMap

LARGEST = 3.0  # the decoder's input is limited softly to this size
LOG_VARIANCE = -30.0  # of moments: the smallest that counts, because the encoder gives a latent and no distribution


def blocks_at(config: VAEConfig, level: int) -> int:
    """Returns the number of residual blocks at a level: one at the finest."""
    return config.num_res_blocks if level else 1


class Block(nn.Module):
    """Residual block of three convolutions with ReLU."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> Map:
        y = x
        for j in (0, 2, 4):
            y = Conv(x.shape[-1], dtype=self.dtype, name=f"conv_{j}")(y if j == 0 else jax.nn.relu(y))
        return jax.nn.relu(x + y)


class Encoder(nn.Module):
    """Picture in [0, 1] to latent."""

    config: VAEConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Image) -> NewMap:
        c, number = self.config, 0
        x = Conv(c.channels[0], dtype=self.dtype, name="layers_0")(image)
        for level, width in enumerate(c.channels):
            if level:
                number += 1
                x = Conv(width, strides=(2, 2), use_bias=False, dtype=self.dtype, name=f"layers_{number}")(x)
            for _ in range(blocks_at(c, level)):
                number += 1
                x = Block(self.dtype, name=f"layers_{number}")(x)
        return Conv(c.latent_channels, dtype=self.dtype, name=f"layers_{number + 1}")(x)


class Decoder(nn.Module):
    """Latent to picture in [0, 1], not clipped. Layers without parameters (ReLU, enlarging) have numbers too."""

    config: VAEConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Map) -> NewImage:
        c, number = self.config, 1
        z = jnp.tanh(z / LARGEST) * LARGEST
        x = jax.nn.relu(Conv(c.channels[-1], dtype=self.dtype, name="layers_0")(z))
        for level in reversed(range(len(c.channels))):
            for _ in range(blocks_at(c, level)):
                number += 1
                x = Block(self.dtype, name=f"layers_{number}")(x)
            if level:
                number += 2
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = Conv(c.channels[level - 1], use_bias=False, dtype=self.dtype, name=f"layers_{number}")(x)
        return Conv(c.image_channels, dtype=self.dtype, name=f"layers_{number + 1}")(x)


class TinyAutoencoder(nn.Module):
    """The tiny autoencoder, with the methods of `AutoencoderKL`. Either half works without the other's parameters."""

    config: VAEConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)

    def __call__(self, image: Image) -> Image:
        """Returns the picture encoded and decoded. So `init` builds every part."""
        mean, _ = jnp.split(self.encode(image), 2, axis=-1)
        return self.decode(mean)

    def encode(self, image: Image) -> Moments:
        """Returns moments of an image in [-1, 1], float32: the latent, and a log variance without effect."""
        latent = self.encoder(image / 2 + 0.5).astype(jnp.float32)
        return jnp.concatenate([latent, jnp.full_like(latent, LOG_VARIANCE)], axis=-1)

    def decode(self, latent: Latent) -> NewImage:
        """Returns the image of a latent, float32, about [-1, 1] and not clipped."""
        return self.decoder(latent).astype(jnp.float32) * 2 - 1
