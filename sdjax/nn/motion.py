"""AnimateDiff's motion modules: attention between the frames of a clip, behind the blocks of a UNet.

Source: guoyww/AnimateDiff animatediff/models/motion_module.py (VanillaTemporalModule); names are those of diffusers'
MotionAdapter. Guo et al. 2023 (arXiv 2307.04725).
"""

import dataclasses
from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.config import UNetConfig
from sdjax.description import Description, check
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.multihead import Attention
from sdjax.nn.layers.norm import LayerNorm, group_norm
from sdjax.nn.layers.transformer import FeedForward
from sdjax.typing import Tokens

GROUPS, HEADS = 32, 8  # of every released module
EPSILON = 1e-6  # of the GroupNorm before the frames are compared


@dataclasses.dataclass(frozen=True)
class MotionConfig(Description):
    """A set of motion modules. `channels` are those of the UNet's levels, `positions` the most frames at once.

    Each level has `layers` modules on the way down and one more on the way up. `middle`: whether the middle block has
    one (version 2). `depth` is the number of transformer blocks in each.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    middle: bool = False
    positions: int = 32
    depth: int = 1
    groups: int = GROUPS
    heads: int = HEADS

    def _validate(self) -> None:
        check(
            len(self.channels) in range(1, 6)
            and all(c % self.groups == c % self.heads == 0 and 0 < c <= 4096 for c in self.channels),
            f"MotionConfig.channels are one to five multiples of {self.groups} and {self.heads}; got {self.channels}",
        )
        check(1 <= self.positions <= 1024, f"MotionConfig.positions is from 1 to 1024; got {self.positions}")
        for name in "layers", "depth":
            check(1 <= getattr(self, name) <= 4, f"MotionConfig.{name} is from 1 to 4; got {getattr(self, name)}")

    @property
    def version(self) -> str:
        """The version of AnimateDiff: "v1", "v2" or "v3"."""
        return "v2" if self.middle else "v1" if self.positions < 32 else "v3"

    def places(self) -> Iterator[tuple[str, int, int]]:
        """Yields each block of the UNet with its channels and its number of modules."""
        for i, c in enumerate(self.channels):
            yield f"down_blocks_{i}", c, self.layers
        if self.middle:
            yield "mid_block", self.channels[-1], 1
        for i, c in enumerate(reversed(self.channels)):
            yield f"up_blocks_{i}", c, self.layers + 1

    def misfit(self, unet: UNetConfig) -> str | None:
        """Returns why the modules do not fit a UNet; None if they do."""
        if self.channels != unet.channels or self.layers != unet.num_res_blocks:
            ours, theirs = (" ".join(map(str, one.channels)) for one in (self, unet))
            return (
                f"they are for a UNet with {ours} channels and {self.layers} residual blocks a level; this model's has "
                f"{theirs} and {unet.num_res_blocks}"
            )
        return None


def sinusoid(positions: int, width: int) -> Float[np.ndarray, "1 n c"]:
    """Returns sines (even channels) and cosines (odd ones) of the positions: Vaswani et al. 2017, section 3.5."""
    angles = np.arange(positions)[:, None] * np.exp(np.arange(0, width, 2) * (-np.log(10_000.0) / width))
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(1, positions, width).astype(np.float32)


class MotionBlock(nn.Module):
    """Two self-attentions over frames and a feed-forward layer, each added to x [b h w, frames, c].

    The position of a frame is added to the normed input, so it is in queries, keys and values.
    """

    heads: int
    positions: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        _, f, c = x.shape
        for i in (1, 2):
            places = self.param(f"pos_encoder{i}", lambda key: jnp.asarray(sinusoid(self.positions, c)))
            y = LayerNorm(1e-5, self.dtype, name=f"norm{i}")(x)
            y = y + places[:, :f].astype(y.dtype)
            x = x + Attention(self.heads, biased=False, dtype=self.dtype, name=f"attn{i}")(y)
        return x + FeedForward(self.dtype, name="ff")(LayerNorm(1e-5, self.dtype, name="norm3")(x))


class MotionModule(nn.Module):
    """Motion blocks over the frames of clips, between two projections; residual.

    The GroupNorm counts every frame by itself, as the weights were trained, or all frames of a clip together
    (`over_frames`), as diffusers does.
    """

    config: MotionConfig
    over_frames: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        b, f, h, w, c = x.shape
        if f > self.config.positions:
            raise ValueError(f"these motion modules take at most {self.config.positions} frames at once, got {f}")
        y = _Norm(self.config.groups, self.over_frames, self.dtype, name="norm")(x)
        y = y.transpose(0, 2, 3, 1, 4).reshape(b * h * w, f, c)
        y = Dense(c, dtype=self.dtype, name="proj_in")(y)
        for i in range(self.config.depth):
            name = f"transformer_blocks_{i}"
            y = MotionBlock(self.config.heads, self.config.positions, self.dtype, name=name)(y)
        y = Dense(c, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="proj_out")(y)
        return x + y.reshape(b, h, w, f, c).transpose(0, 3, 1, 2, 4)


class _Norm(nn.Module):
    """GroupNorm of each frame, or of all frames of a clip."""

    groups: int
    over_frames: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        y = x if self.over_frames else x.reshape(-1, *x.shape[2:])
        return group_norm(y, scale, bias, groups=self.groups, epsilon=EPSILON).astype(self.dtype).reshape(x.shape)


class _Place(nn.Module):
    """The motion modules of one block of the UNet, for their parameters."""

    config: MotionConfig
    count: int

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        for i in range(self.count):
            x = MotionModule(self.config, name=f"motion_modules_{i}")(x)
        return x


class MotionModules(nn.Module):
    """All motion modules of a UNet: a place for their parameters. `sdjax.adapters.motion` runs each in its block.

    Takes and returns one map for each of `MotionConfig.places`.
    """

    config: MotionConfig

    @nn.compact
    def __call__(self, *maps: Float[Array, "b f h w _"]) -> Sequence[Float[Array, "b f h w _"]]:
        places = zip(self.config.places(), maps, strict=True)
        return [_Place(self.config, count, name=name)(x) for (name, _, count), x in places]
