"""Residual block, downsampling and upsampling, shared by UNet and autoencoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.nn.layers.conv import POINT, Conv
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.norm import GroupNorm
from sdjax.typing import Map, NewMap


class Resnet(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))), with a 1x1 convolution on x if the channels change.

    `epsilon` is 1e-5 in the UNet and 1e-6 in the autoencoder. `zero_init` starts the block as the identity.

    Source: ldm/modules/diffusionmodules/openaimodel.py:ResBlock and model.py:ResnetBlock.
    """

    channels: int
    groups: int
    epsilon: float
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map, time: Float[Array, "b e"] | None = None) -> Float[Array, "b h w c2"]:
        y = GroupNorm(self.groups, self.epsilon, self.dtype, silu=True, name="norm1")(x)
        y = Conv(self.channels, dtype=self.dtype, name="conv1")(y)
        if time is not None:
            y = y + Dense(self.channels, dtype=self.dtype, name="time_emb_proj")(jax.nn.silu(time))[:, None, None, :]
        y = GroupNorm(self.groups, self.epsilon, self.dtype, silu=True, name="norm2")(y)
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        y = Conv(self.channels, kernel_init=init, dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, (1, 1), padding=POINT, dtype=self.dtype, name="conv_shortcut")(x)
        return x + y


class Downsample(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2.

    The UNet pads one pixel on every side, the autoencoder only at the right and at the bottom.
    """

    padding: tuple[tuple[int, int], tuple[int, int]]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> NewMap:
        return Conv(x.shape[-1], strides=(2, 2), padding=self.padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Repeats every pixel twice along both axes, cuts the result to `size` if given, and convolves it."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map, size: tuple[int, int] | None = None) -> NewMap:
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        if size is not None:  # an odd level's skip is one pixel smaller
            x = x[:, : size[0], : size[1]]
        return Conv(c, dtype=self.dtype, name="conv")(x)
