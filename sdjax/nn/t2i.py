"""T2I-Adapter: a small network of the hint alone, whose features are added to the UNet's encoder.

Source: Mou et al. 2023, "T2I-Adapter" (arXiv 2302.08453), section 3.3; TencentARC/T2I-Adapter (branch SD),
ldm/modules/encoders/adapter.py:Adapter and Adapter_light. Names are those of diffusers' T2IAdapter.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.description import Description, check
from sdjax.nn.layers.conv import POINT, Conv
from sdjax.typing import Map, Maps, NewMap

FACTOR = 8  # side of a hint divided by the side of the first features


@dataclasses.dataclass(frozen=True)
class T2IConfig(Description):
    """A T2I-Adapter. `channels` are those of its features, level by level: the UNet's.

    `hint_channels`: 1 for grey hints (edges, sketches), 3 for coloured ones. `widths`: of a light adapter's blocks,
    between two 1x1 convolutions; empty for a full adapter. `keeps_rest`: an odd side is rounded up when it is halved,
    as the UNet does (diffusers' adapters); else down.
    """

    hint_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    widths: tuple[int, ...] = ()
    keeps_rest: bool = False

    @property
    def outputs(self) -> int:
        """The number of its features."""
        return len(self.channels)

    @property
    def light(self) -> bool:
        """Whether it is a light adapter."""
        return bool(self.widths)

    def _validate(self) -> None:
        check(len(self.channels) >= 1, "T2IConfig.channels needs at least one level")
        check(
            len(self.widths) in (0, len(self.channels)),
            f"T2IConfig.widths has {len(self.widths)} entries for {len(self.channels)} levels of channels",
        )
        check(
            min(self.hint_channels, self.num_res_blocks, *self.channels, *self.widths) >= 1,
            "T2IConfig.hint_channels, num_res_blocks, channels and widths are at least 1",
        )


class _Resnet(nn.Module):
    """x + conv(relu(conv(x))); the second convolution has the size `last`."""

    last: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Map) -> Map:
        c = x.shape[-1]
        padding = ((1, 1), (1, 1)) if self.last == 3 else POINT
        y = jax.nn.relu(Conv(c, dtype=self.dtype, name="block1")(x))
        return x + Conv(c, (self.last, self.last), padding=padding, dtype=self.dtype, name="block2")(y)


class _Level(nn.Module):
    """Halves the size unless it is the first level, and computes the level's features."""

    config: T2IConfig
    level: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Map) -> NewMap:
        c, out = self.config, self.config.channels[self.level]
        width = c.widths[self.level] if c.light else out
        if self.level:
            x = halved(x, c.keeps_rest)
        if c.light or x.shape[-1] != width:
            x = self._pointwise(width, "in_conv")(x)
        for j in range(c.num_res_blocks):
            x = _Resnet(3 if c.light else 1, self.dtype, name=f"resnets_{j}")(x)
        return self._pointwise(out, "out_conv")(x) if c.light else x

    def _pointwise(self, features: int, name: str) -> Conv:
        return Conv(features, (1, 1), padding=POINT, dtype=self.dtype, name=name)


class T2IAdapter(nn.Module):
    """Returns the features of a hint, one map for each level of the UNet's encoder.

    `hint` [b, 8 h, 8 w, hint_channels]: a picture in [0, 1].
    """

    config: T2IConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hint: Float[Array, "b h2 w2 c2"]) -> Maps:
        c = self.config
        if hint.shape[-1] != c.hint_channels:
            raise ValueError(f"this T2I-Adapter takes hints of {c.hint_channels} channels; got {hint.shape}")
        x = _unshuffled(hint)
        if not c.light:
            x = Conv(c.channels[0], dtype=self.dtype, name="conv_in")(x)
        features = []
        for i in range(len(c.channels)):
            x = _Level(c, i, self.dtype, name=f"body_{i}")(x)
            features.append(x)
        return features


def _unshuffled(hint: Map) -> NewMap:
    """Returns the hint's blocks of 8 x 8 pixels as channels, one hint channel after the other."""
    b, h, w, c = hint.shape
    blocks = hint.reshape(b, h // FACTOR, FACTOR, w // FACTOR, FACTOR, c)
    return blocks.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // FACTOR, w // FACTOR, c * FACTOR**2)


def halved(x: Map, keeps_rest: bool) -> NewMap:
    """Returns the means of 2 x 2 entries. An odd side's last entries are averaged alone, or left out."""
    _, h, w, _ = x.shape
    if keeps_rest and (h % 2 or w % 2):
        ends = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
        return nn.avg_pool(ends, (2, 2), (2, 2))
    return nn.avg_pool(x, (2, 2), (2, 2))
