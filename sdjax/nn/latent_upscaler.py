"""The UNet of Stability's x2 latent upscaler, and its text tower.

It is a network of k-diffusion's kind: norms that depend on time, residual blocks and attention without MLPs, and fixed
filters to halve and double maps. It sees the noisy latent and the small latent, and is told sigma, not a timestep.

Source: diffusers' StableDiffusionLatentUpscalePipeline and the K blocks of unet_2d_blocks.py, whose names these are;
crowsonkb/k-diffusion, models/image_v1.py and layers.py.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.config import TextConfig
from sdjax.description import Description, check
from sdjax.nn.clip import TextEmbeddings, TransformerStack, gelu
from sdjax.nn.layers.conv import POINT, Conv
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.multihead import multihead
from sdjax.nn.layers.norm import LayerNorm, group_norm
from sdjax.typing import Context, Map, NewMap, TokenIds

Embedded = Float[Array, "b e"]  # the embedding of time

EPSILON = 1e-5
GROUP = 32  # channels of a group
LEVEL_TOLD = 64  # numbers that say the noise level of the small latent, as cosines and as sines


@dataclasses.dataclass(frozen=True)
class LatentUpscalerConfig(Description):
    """The UNet. The defaults are those of stabilityai/sd-x2-latent-upscaler.

    Every level but the first has attention to the text; the last one also to itself. The embedding of time has twice
    the first level's width. `pooled` is the width of the text's pooled vector.
    """

    latent_channels: int = 4
    channels: tuple[int, ...] = (384, 384, 768, 768)
    num_res_blocks: int = 4
    head_size: int = 64
    context_dim: int = 768
    pooled: int = 768

    def _validate(self) -> None:
        check(len(self.channels) >= 3, "LatentUpscalerConfig.channels has at least three levels")
        for width in self.channels:
            fits = width >= 1 and width % GROUP == 0 and width % self.head_size == 0
            check(fits, f"LatentUpscalerConfig.channels are multiples of {GROUP} and head_size, got {width}")
        c = self.channels
        check(
            c[-1] == c[-2] == 2 * c[0] and c[-3] != c[-2],
            f"LatentUpscalerConfig.channels: the last two levels alone are twice as wide as the first, got {c}",
        )
        check(min(self.num_res_blocks, self.latent_channels, self.context_dim, self.pooled) >= 1, "sizes are positive")


class TimedNorm(nn.Module):
    """GroupNorm whose scale and shift depend on the embedding of time."""

    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map, time: Embedded) -> Map:
        c = x.shape[-1]
        scale, shift = jnp.split(Dense(2 * c, dtype=self.dtype, name="linear")(time), 2, axis=-1)
        y = group_norm(x, jnp.ones(c), jnp.zeros(c), groups=self.groups, epsilon=EPSILON).astype(self.dtype)
        return y * (1 + scale[:, None, None]) + shift[:, None, None]


class TimedResnet(nn.Module):
    """Residual block from the input's channels over `channels` to `out` channels."""

    channels: int
    out: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map, time: Embedded) -> NewMap:
        y = gelu(TimedNorm(x.shape[-1] // GROUP, self.dtype, name="norm1")(x, time))
        y = Conv(self.channels, dtype=self.dtype, name="conv1")(y)
        y = gelu(TimedNorm(self.channels // GROUP, self.dtype, name="norm2")(y, time))
        y = Conv(self.out, dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] != self.out:
            x = Conv(self.out, (1, 1), padding=POINT, use_bias=False, dtype=self.dtype, name="conv_shortcut")(x)
        return x + y


class Attention(nn.Module):
    """Attention of a map to itself, or to the text, which is normalised first."""

    head_size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map, context: Context | None = None) -> Map:
        b, h, w, c = x.shape
        if context is not None:
            context = LayerNorm(EPSILON, self.dtype, name="norm_cross")(context)
        y = multihead(x.reshape(b, h * w, c), context, heads=c // self.head_size, dtype=self.dtype)
        return y.reshape(b, h, w, c)


class AttentionBlock(nn.Module):
    """Attention to itself (if `to_itself`) and to the text; residual."""

    head_size: int
    to_itself: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map, time: Embedded, context: Context) -> Map:
        groups = max(x.shape[-1] // GROUP, 1)
        if self.to_itself:
            x = x + Attention(self.head_size, self.dtype, name="attn1")(
                TimedNorm(groups, self.dtype, name="norm1")(x, time)
            )
        y = TimedNorm(groups, self.dtype, name="norm2")(x, time)
        return x + Attention(self.head_size, self.dtype, name="attn2")(y, context)


class Blocks(nn.Module):
    """The blocks of one level on one side: residual blocks, each followed by attention if `attends`.

    `leaves` is the width behind the last block.
    """

    config: LatentUpscalerConfig
    channels: int
    leaves: int
    attends: bool
    to_itself: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map, time: Embedded, context: Context) -> NewMap:
        c = self.config
        for j in range(c.num_res_blocks):
            out = self.leaves if j == c.num_res_blocks - 1 else self.channels
            x = TimedResnet(self.channels, out, self.dtype, name=f"resnets_{j}")(x, time)
            if self.attends:
                x = AttentionBlock(c.head_size, self.to_itself, self.dtype, name=f"attentions_{j}")(x, time, context)
        return x


class LatentUpscaler(nn.Module):
    """Returns F for a latent x twice as large: x0 = x / (sigma^2 + 1) + sigma / sqrt(sigma^2 + 1) F.

    `x` is scaled by 1 / sqrt(sigma^2 + 1), `small` the small latent, `told` the condition of `condition`.
    """

    config: LatentUpscalerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Map, small: Map, log_sigma: Float[Array, "b"], context: Context, told: Float[Array, "b e"]
    ) -> Map:
        c, top = self.config, len(self.config.channels) - 1
        width = 2 * c.channels[0]
        time = Frequencies(width, name="time_proj")(log_sigma / 4)
        time = TimeEmbedding(width, self.dtype, name="time_embedding")(time, told)
        x = jnp.concatenate([x, small], axis=-1)
        x = Conv(c.channels[0], (1, 1), padding=POINT, dtype=self.dtype, name="conv_in")(x)
        skips: list[Map] = []
        for i, width in enumerate(c.channels):
            blocks = Blocks(c, width, width, i > 0, i == top, dtype=self.dtype, name=f"down_blocks_{i}")
            x = blocks(x, time, context)
            if i < top:
                skips.append(x)
                x = halve(x)
        for i, width in enumerate(reversed(c.channels)):
            if i:
                x = jnp.concatenate([x, skips[top - i]], axis=-1)
            leaves = c.channels[max(top - i - 1, 0)]
            blocks = Blocks(c, width, leaves, i < top, i == 0, dtype=self.dtype, name=f"up_blocks_{i}")
            x = blocks(x, time, context)
            if i < top:
                x = double(x)
        x = Conv(c.latent_channels + 1, (1, 1), padding=POINT, dtype=self.dtype, name="conv_out")(x)
        return x[..., :-1].astype(jnp.float32)  # the last channel is a variance that nobody uses


class Frequencies(nn.Module):
    """Cosines and sines of a number times random frequencies, which are not learned."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "b"]) -> Float[Array, "b d"]:
        weight = self.param("weight", nn.initializers.normal(1.0), (self.width // 2,))
        angles = 2 * np.pi * x[:, None] * weight.astype(jnp.float32)
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Adds the condition, then linear, GELU, linear, GELU."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], told: Float[Array, "b e"]) -> Float[Array, "b f"]:
        x = x + Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name="cond_proj")(told)
        x = gelu(Dense(self.width, dtype=self.dtype, name="linear_1")(x))
        return gelu(Dense(self.width, dtype=self.dtype, name="linear_2")(x))


def condition(pooled: Float[Array, "b d"]) -> Float[Array, "b e"]:
    """Returns what the UNet is told besides sigma and text: that the small latent has no noise, and the text's pool."""
    b = pooled.shape[0]
    level = jnp.concatenate([jnp.ones([b, LEVEL_TOLD]), jnp.zeros([b, LEVEL_TOLD])], axis=-1)
    return jnp.concatenate([level, pooled], axis=-1)


def halve(x: Map) -> NewMap:
    """Returns the map at half the size, by the filter [1, 3, 3, 1] / 8 along both axes; edges are mirrored."""
    for axis in (1, 2):
        y = _mirrored(x, axis)
        parts = (jax.lax.slice_in_dim(y, k, y.shape[axis] - 3 + k, 2, axis) for k in range(4))
        x = sum(weight * part for weight, part in zip((1 / 8, 3 / 8, 3 / 8, 1 / 8), parts))  # type: ignore[assignment]
    return x


def double(x: Map) -> NewMap:
    """Returns the map at twice the size, by the same filter; edges are mirrored."""
    for axis in (1, 2):
        n, y = x.shape[axis], _mirrored(x, axis)
        before, after = (jax.lax.slice_in_dim(y, k, n + k, axis=axis) for k in (0, 2))
        pairs = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return x


def _mirrored(x: Map, axis: int) -> NewMap:
    return jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(4)], mode="reflect")


class PooledText(nn.Module):
    """CLIP's text tower: returns the last block's output without the final norm, and the normed vector of the end."""

    config: TextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: TokenIds) -> tuple[Context, Float[Array, "b d"]]:
        c = self.config
        x = TextEmbeddings(c, self.dtype, name="embeddings")(ids)
        x = TransformerStack(c.layers, c.heads, c.activation, True, c.mlp_width, self.dtype, name="encoder")(x)
        normed = LayerNorm(EPSILON, self.dtype, name="final_layer_norm")(x)
        end = jnp.argmax(jnp.asarray(ids) == c.eos_token_id, axis=1)
        pooled = jnp.take_along_axis(normed, end[:, None, None], axis=1)[:, 0]
        return x.astype(jnp.float32), pooled.astype(jnp.float32)
