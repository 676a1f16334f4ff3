"""The ResNet of DPT-Hybrid, "Big Transfer" style: weight-standardised convolutions, GroupNorm, TensorFlow's padding.

Source: timm, models/resnetv2.py and models/layers/std_conv.py; names are those of transformers' BitBackbone.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import DepthConfig
from sdjax.nn.layers.conv import Padding, conv2d
from sdjax.nn.layers.norm import GroupNorm
from sdjax.typing import Image, Map, Maps, NewMap

EPSILON = 1e-5  # of every GroupNorm
STANDARDISING_EPSILON = 1e-8


def same_padding(size: Sequence[int], kernel: int, stride: int) -> Padding:
    """Returns TensorFlow's 'SAME' padding: the output has ceil(size / stride) places; an odd pixel is right or bottom.

    On even sizes a 7x7 convolution of stride 2 gets (2, 3), and a 3x3 one (0, 1). PyTorch pads both sides equally.
    """
    height, width = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in size)
    return (height // 2, height - height // 2), (width // 2, width - width // 2)


class StandardConv(nn.Module):
    """Convolution with a kernel of mean 0 and variance 1 for each output channel, without bias, padding 'SAME'."""

    features: int
    kernel_size: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> NewMap:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(jnp.float32)
        kernel = kernel - kernel.mean((0, 1, 2))
        kernel = kernel * jax.lax.rsqrt(jnp.square(kernel).mean((0, 1, 2)) + STANDARDISING_EPSILON)
        padding = same_padding(x.shape[1:3], self.kernel_size, self.stride)
        strides = (self.stride, self.stride)
        return conv2d(x.astype(self.dtype), kernel.astype(self.dtype), strides=strides, padding=padding)


class Shortcut(nn.Module):
    """1x1 convolution and norm that fit a stage's input to its output."""

    width: int
    stride: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> NewMap:
        x = StandardConv(self.width, 1, self.stride, self.dtype, name="conv")(x)
        return GroupNorm(self.groups, EPSILON, self.dtype, name="norm")(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution, each with a norm; ReLU after the sum. `fit` adds a Shortcut."""

    width: int
    stride: int
    fit: bool
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> NewMap:
        y, shortcut = x, x
        for i, (width, size, stride) in enumerate(
            ((self.width // 4, 1, 1), (self.width // 4, 3, self.stride), (self.width, 1, 1)), start=1
        ):
            y = StandardConv(width, size, stride, self.dtype, name=f"conv{i}")(y)
            y = GroupNorm(self.groups, EPSILON, self.dtype, name=f"norm{i}")(y)
            y = jax.nn.relu(y) if i < 3 else y
        if self.fit:
            shortcut = Shortcut(self.width, self.stride, self.groups, self.dtype, name="downsample")(x)
        return jax.nn.relu(y + shortcut)


class Stage(nn.Module):
    """Bottlenecks at one size. The first one changes width and size."""

    width: int
    depth: int
    stride: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> NewMap:
        for j in range(self.depth):
            stride = self.stride if j == 0 else 1
            x = Bottleneck(self.width, stride, j == 0, self.groups, self.dtype, name=f"layers_{j}")(x)
        return x


class Stem(nn.Module):
    """7x7 convolution, norm, ReLU and 3x3 maximum. The convolution and the maximum each halve the size."""

    width: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> NewMap:
        x = StandardConv(self.width, 7, 2, self.dtype, name="convolution")(x)
        x = jax.nn.relu(GroupNorm(self.groups, EPSILON, self.dtype, name="norm")(x))
        return nn.max_pool(x, (3, 3), (2, 2), padding=same_padding(x.shape[1:3], 3, 2))


class Stages(nn.Module):
    """The stages; returns the map after each."""

    config: DepthConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> Maps:
        c, maps = self.config, []
        for i, (width, depth) in enumerate(zip(c.stage_widths, c.stage_depths)):
            x = Stage(width, depth, 2 if i else 1, c.norm_groups, self.dtype, name=f"stages_{i}")(x)
            maps.append(x)
        return maps


class Bit(nn.Module):
    """Returns the maps after the three stages, 4, 8 and 16 times smaller than the image."""

    config: DepthConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Image) -> Maps:
        x = Stem(self.config.stem_width, self.config.norm_groups, self.dtype, name="embedder")(image)
        return Stages(self.config, self.dtype, name="encoder")(x)
