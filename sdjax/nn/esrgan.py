"""ESRGAN's network, which enlarges pictures: RRDBNet of ESRGAN and Real-ESRGAN, and Real-ESRGAN's compact network.

Pictures are [b, h, w, 3] in [0, 1], about so in the result too. Names are those of Real-ESRGAN.

RRDBNet has three stages: `head`, the blocks (`RRDB`), and `tail`, which enlarges. So large pictures can be made stage
by stage (`sdjax.pipeline.enlarging`).

Source: Wang et al. 2018 (arXiv 1809.00219), Wang et al. 2021 (arXiv 2107.10833); xinntao/BasicSR, archs/rrdbnet_arch.py
and srvgg_arch.py.
"""

import dataclasses
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from sdjax.description import Description, check
from sdjax.nn.layers.conv import Conv
from sdjax.typing import Image, Map, NewImage, NewMap

SLOPE = 0.2  # of LeakyReLU
RESIDUAL = 0.2  # factor of every residual
DENSE_BLOCKS = 3  # dense blocks of an RRDB
DENSE_CONVS = 5  # convolutions of a dense block


@dataclasses.dataclass(frozen=True)
class RRDBConfig(Description):
    """RRDBNet. The defaults are those of ESRGAN and RealESRGAN_x4plus.

    `growth`: channels that a convolution of a dense block adds. `doublings`: how often the tail enlarges the sides,
    each time by `factor`, which is 2 but for old upscalers of three times.
    `unshuffle`: the head first turns squares of this side into channels. `shortcuts`: the dense blocks have ESRGAN+'s
    1x1 convolution.
    """

    channels: int = 64
    growth: int = 32
    num_blocks: int = 23
    doublings: int = 2
    factor: int = 2
    unshuffle: int = 1
    shortcuts: bool = False

    @property
    def times(self) -> int:
        """Side of the result divided by the side of the picture."""
        return self.factor**self.doublings // self.unshuffle

    @property
    def margin(self) -> int:
        """How many pixels around a part of the picture its result depends on."""
        return self.unshuffle * (self.num_blocks * BLOCK_MARGIN + TAIL_MARGIN + 1)

    def _validate(self) -> None:
        for name in "channels", "growth", "num_blocks", "unshuffle":
            check(getattr(self, name) >= 1, f"RRDBConfig.{name} is at least 1, got {getattr(self, name)}")
        check(0 <= self.doublings <= 4, f"RRDBConfig.doublings is from 0 to 4, got {self.doublings}")
        check(self.factor in (2, 3), f"RRDBConfig.factor is 2 or 3, got {self.factor}")
        check(self.factor**self.doublings % self.unshuffle == 0, "RRDBConfig.unshuffle divides factor ** doublings")


@dataclasses.dataclass(frozen=True)
class CompactConfig(Description):
    """Real-ESRGAN's compact network (SRVGGNetCompact). The defaults are realesr-general-x4v3's."""

    channels: int = 64
    num_convs: int = 32
    times: int = 4

    @property
    def margin(self) -> int:
        """How many pixels around a part of the picture its result depends on."""
        return self.num_convs + 2

    def _validate(self) -> None:
        check(min(self.channels, self.times) >= 1, "CompactConfig.channels and times are at least 1")
        check(self.num_convs >= 0, f"CompactConfig.num_convs is at least 0, got {self.num_convs}")


BLOCK_MARGIN = DENSE_BLOCKS * DENSE_CONVS  # pixels around a part of a map on which a block's result depends
TAIL_MARGIN = 3  # of the tail, for any number of doublings: 1 + 1/2 + 1/4 + ... + 2 / 2**doublings is at most 3


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the outputs of all before it; residual."""

    growth: int
    shortcuts: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> Map:
        outputs = [x]
        for j in range(1, DENSE_CONVS):
            y = Conv(self.growth, dtype=self.dtype, name=f"conv{j}")(jnp.concatenate(outputs, axis=-1))
            y = jax.nn.leaky_relu(y, SLOPE)
            if self.shortcuts and j == 2:
                point = Conv(self.growth, (1, 1), padding=((0, 0), (0, 0)), use_bias=False, dtype=self.dtype,
                             name="conv1x1")  # fmt: skip
                y += point(x)
            elif self.shortcuts and j == 4:
                y += outputs[2]
            outputs.append(y)
        last = Conv(x.shape[-1], dtype=self.dtype, name=f"conv{DENSE_CONVS}")
        return x + RESIDUAL * last(jnp.concatenate(outputs, axis=-1))


class RRDB(nn.Module):
    """Residual in residual dense block."""

    config: RRDBConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> Map:
        y = x
        for k in range(1, DENSE_BLOCKS + 1):
            y = DenseBlock(self.config.growth, self.config.shortcuts, self.dtype, name=f"rdb{k}")(y)
        return x + RESIDUAL * y


class RRDBNet(nn.Module):
    """ESRGAN's network. The sides of a picture are multiples of `unshuffle`."""

    config: RRDBConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.conv_first = Conv(c.channels, dtype=self.dtype)
        self.body = [RRDB(c, self.dtype) for _ in range(c.num_blocks)]
        self.conv_body = Conv(c.channels, dtype=self.dtype)
        self.conv_up = [Conv(c.channels, dtype=self.dtype, name=f"conv_up{i + 1}") for i in range(c.doublings)]
        self.conv_hr = Conv(c.channels, dtype=self.dtype)
        self.conv_last = Conv(3, dtype=self.dtype)

    def __call__(self, image: Image) -> NewImage:
        """Returns the picture `times` as high and wide, float32, not clipped."""
        first = x = self.head(pixel_unshuffle(image, self.config.unshuffle))
        for block in self.body:
            x = block(x)
        return self.tail(x, first)

    def head(self, image: Map) -> NewMap:
        """Returns the map that the first block gets. `image` has squares of `unshuffle` pixels as channels."""
        return self.conv_first(image)

    def tail(self, x: Map, first: Map) -> NewImage:
        """Returns the picture of the last block's output x and the first block's input, float32."""
        x = first + self.conv_body(x)
        times = self.config.factor
        for conv in self.conv_up:
            x = jax.nn.leaky_relu(conv(jnp.repeat(jnp.repeat(x, times, axis=1), times, axis=2)), SLOPE)
        return self.conv_last(jax.nn.leaky_relu(self.conv_hr(x), SLOPE)).astype(jnp.float32)


class PReLU(nn.Module):
    """ReLU with a slope for negative numbers, one for each channel."""

    @nn.compact
    def __call__(self, x: Map) -> Map:
        slope = self.param("weight", nn.initializers.constant(0.25), (x.shape[-1],)).astype(x.dtype)
        return jnp.where(x >= 0, x, slope * x)


class CompactNet(nn.Module):
    """Convolutions with PReLU at the picture's size; the last one makes the colours of all pixels of the result."""

    config: CompactConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Image) -> NewImage:
        """Returns the picture `times` as high and wide, float32, not clipped."""
        c, x = self.config, image
        for i in range(c.num_convs + 1):
            x = Conv(c.channels, dtype=self.dtype, name=f"body_{2 * i}")(x)
            x = PReLU(name=f"body_{2 * i + 1}")(x)
        x = Conv(3 * c.times**2, dtype=self.dtype, name=f"body_{2 * c.num_convs + 2}")(x)
        near = jnp.repeat(jnp.repeat(image, c.times, axis=1), c.times, axis=2)
        return pixel_shuffle(x, c.times).astype(jnp.float32) + near.astype(jnp.float32)


Mapped = TypeVar("Mapped", np.ndarray, Array)  # [b, h, w, c]


def pixel_shuffle(x: Map, side: int) -> NewMap:
    """Returns the map with channels spread over squares of pixels, in PyTorch's order: colour, row, column."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // side**2, side, side)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, h * side, w * side, c // side**2)


def pixel_unshuffle(x: Mapped, side: int) -> Mapped:
    """Returns the map with squares of pixels as channels: `pixel_shuffle` undone."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // side, w // side, c * side**2)
