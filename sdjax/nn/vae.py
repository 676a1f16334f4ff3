"""The KL autoencoder: pictures to latents and back, 8 (f8) or 4 (f4) times smaller along each side.

Source: ldm/modules/diffusionmodules/model.py (Encoder, Decoder) and ldm/models/autoencoder.py. Names are those of
diffusers' AutoencoderKL.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import VAEConfig
from sdjax.nn.layers.conv import POINT, Conv
from sdjax.nn.layers.multihead import multihead
from sdjax.nn.layers.norm import GroupNorm
from sdjax.nn.layers.resnet import Downsample, Resnet, Upsample
from sdjax.nn.taesd import TinyAutoencoder
from sdjax.typing import Image, Latent, Map, Moments, NewImage, NewMap

EPSILON = 1e-6  # of every GroupNorm
PADDING = ((0, 1), (0, 1))  # of the downsampling convolutions: right and bottom only


class MapAttention(nn.Module):
    """Self-attention with one head over all pixels of a feature map; residual."""

    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> Map:
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, EPSILON, self.dtype, name="group_norm")(x).reshape(b, h * w, c)
        return x + multihead(y, heads=1, dtype=self.dtype).reshape(b, h, w, c)


class ResnetStack(nn.Module):
    """Residual blocks at one size, then the change to the next size, if any."""

    channels: int
    num_res_blocks: int
    groups: int
    resample: str | None = None  # "down", "up" or None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> NewMap:
        for j in range(self.num_res_blocks):
            x = Resnet(self.channels, self.groups, EPSILON, dtype=self.dtype, name=f"resnets_{j}")(x)
        if self.resample == "down":
            x = Downsample(PADDING, self.dtype, name="downsamplers_0")(x)
        elif self.resample == "up":
            x = Upsample(self.dtype, name="upsamplers_0")(x)
        return x


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the smallest size."""

    channels: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> Map:
        x = Resnet(self.channels, self.groups, EPSILON, dtype=self.dtype, name="resnets_0")(x)
        x = MapAttention(self.groups, self.dtype, name="attentions_0")(x)
        return Resnet(self.channels, self.groups, EPSILON, dtype=self.dtype, name="resnets_1")(x)


class Encoder(nn.Module):
    """Picture to the 2 * latent_channels channels that `quant_conv` turns into moments."""

    config: VAEConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Image) -> NewMap:
        c, last = self.config, len(self.config.channels) - 1
        x = Conv(c.channels[0], dtype=self.dtype, name="conv_in")(image)
        for i, channels in enumerate(c.channels):
            resample = "down" if i < last else None
            stack = ResnetStack(
                channels, c.num_res_blocks, c.norm_groups, resample, self.dtype, name=f"down_blocks_{i}"
            )
            x = stack(x)
        x = MidBlock(c.channels[-1], c.norm_groups, self.dtype, name="mid_block")(x)
        x = GroupNorm(c.norm_groups, EPSILON, self.dtype, silu=True, name="conv_norm_out")(x)
        return Conv(2 * c.latent_channels, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Unscaled latent, after `post_quant_conv`, to picture."""

    config: VAEConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Map) -> NewImage:
        c, last = self.config, len(self.config.channels) - 1
        x = Conv(c.channels[-1], dtype=self.dtype, name="conv_in")(z)
        x = MidBlock(c.channels[-1], c.norm_groups, self.dtype, name="mid_block")(x)
        for j, channels in enumerate(reversed(c.channels)):
            resample = "up" if j < last else None
            stack = ResnetStack(channels, c.num_res_blocks + 1, c.norm_groups, resample, self.dtype,
                                name=f"up_blocks_{j}")  # fmt: skip
            x = stack(x)
        x = GroupNorm(c.norm_groups, EPSILON, self.dtype, silu=True, name="conv_norm_out")(x)
        return Conv(c.image_channels, dtype=self.dtype, name="conv_out")(x)


class AutoencoderKL(nn.Module):
    """The autoencoder. `encode` gives the moments of the unscaled latent, `decode` takes a latent (scaled)."""

    config: VAEConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.encoder = Encoder(c, self.dtype)
        self.decoder = Decoder(c, self.dtype)
        self.quant_conv = Conv(2 * c.latent_channels, (1, 1), padding=POINT, dtype=self.dtype)
        self.post_quant_conv = Conv(c.latent_channels, (1, 1), padding=POINT, dtype=self.dtype)

    def __call__(self, image: Image) -> Image:
        """Returns the picture encoded to the mean of its latent and decoded. So `init` builds every part."""
        mean, _ = jnp.split(self.encode(image), 2, axis=-1)
        return self.decode(mean * self.config.scale_factor)

    def encode(self, image: Image) -> Moments:
        """Returns mean and log variance of the unscaled latent of an image in [-1, 1], float32, joined on channels."""
        return self.quant_conv(self.encoder(image)).astype(jnp.float32)

    def decode(self, latent: Latent) -> NewImage:
        """Returns the image of a latent, float32, about [-1, 1] and not clipped."""
        return self.decoder(self.post_quant_conv(latent / self.config.scale_factor)).astype(jnp.float32)


def autoencoder(config: VAEConfig, dtype: DTypeLike = jnp.float32) -> AutoencoderKL | TinyAutoencoder:
    """Returns the network of a description, whose methods are those of `AutoencoderKL`."""
    return AutoencoderKL(config, dtype) if config.kind == "kl" else TinyAutoencoder(config, dtype)


def latent_from_moments(moments: Moments, noise: Latent | None, scale_factor: float) -> Latent:
    """Returns scale_factor * (mean + exp(logvar / 2) noise), or the scaled mean if `noise` is None.

    The log variance is clipped to [-30, 20].

    Source: ldm/modules/distributions/distributions.py:DiagonalGaussianDistribution.
    """
    mean, logvar = jnp.split(moments, 2, axis=-1)
    if noise is not None:
        mean = mean + jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0)) * noise
    return scale_factor * mean
