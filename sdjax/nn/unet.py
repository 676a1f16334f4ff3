"""The denoising network of Stable Diffusion v1 and v2, in every released variant.

Source: ldm/modules/diffusionmodules/openaimodel.py:UNetModel. Names are those of diffusers' UNet2DConditionModel.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from sdjax.config import UNetConfig
from sdjax.nn.layers.conv import Conv
from sdjax.nn.layers.embeddings import EmbeddingMLP, guidance_embedding, timestep_embedding
from sdjax.nn.layers.norm import GroupNorm
from sdjax.nn.layers.resnet import Downsample, Resnet, Upsample
from sdjax.nn.layers.transformer import SpatialTransformer
from sdjax.typing import Context, Latent, Length, Map, Maps, NewMap, Timestep

EPSILON = 1e-5  # of the residual blocks' and the output's GroupNorm; the transformers' is 1e-6
PADDING = ((1, 1), (1, 1))  # of the downsampling convolutions


def _is_product(primitive: Any, *args: Any, **params: Any) -> bool:
    """Returns whether a result is kept: those of convolutions and linear layers. Attention's are much larger."""
    small = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return primitive.name == "conv_general_dilated" or small(primitive, *args, **params)


# What the backward pass computes again instead of keeping it: nothing; everything in residual blocks and transformers;
# or everything there except products (norms, activations, attention). Chen et al. 2016 (arXiv 1604.06174)
REMATS: dict[str, Callable[[type[nn.Module]], type[nn.Module]]] = {
    "none": lambda module: module,
    "blocks": nn.remat,
    "products": functools.partial(nn.remat, policy=_is_product),
}


class Residuals(NamedTuple):
    """A ControlNet's additions to the UNet: one map per skip, in the order of the skips, and one for the middle block.

    The first of `skips` is for the output of `conv_in`. A Stable Diffusion UNet has twelve skips. A map may have height
    and width 1. Source: Zhang et al. 2023 (arXiv 2302.05543), figure 3.
    """

    skips: Sequence[Latent]
    middle: Latent


@dataclasses.dataclass(frozen=True)
class _Level:
    """The settings of the blocks of one level."""

    channels: int
    heads: int
    depth: int
    self_attention: bool
    groups: int
    dtype: DTypeLike
    remat: str

    def resnet(self, name: str) -> nn.Module:
        module = REMATS[self.remat](Resnet)
        return module(self.channels, self.groups, EPSILON, zero_init=True, dtype=self.dtype, name=name)

    def attention(self, name: str) -> nn.Module:
        module = REMATS[self.remat](SpatialTransformer)
        return module(self.heads, self.depth, self.self_attention, self.groups, self.dtype, name=name)


class DownBlock(nn.Module):
    """Residual blocks, each followed by a transformer if the level has heads. Then halves the size, unless last."""

    level: _Level
    num_res_blocks: int
    downsample: bool

    @nn.compact
    def __call__(
        self, x: Map, time: Float[Array, "b e"], context: Context, context_length: Length | None = None
    ) -> tuple[NewMap, Maps]:
        skips = []
        for j in range(self.num_res_blocks):
            x = self.level.resnet(f"resnets_{j}")(x, time)
            if self.level.heads:
                x = self.level.attention(f"attentions_{j}")(x, context, context_length)
            skips.append(x)
        if self.downsample:
            x = Downsample(PADDING, self.level.dtype, name="downsamplers_0")(x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """Residual block, transformer, residual block."""

    level: _Level

    @nn.compact
    def __call__(
        self, x: Map, time: Float[Array, "b e"], context: Context, context_length: Length | None = None
    ) -> Map:
        x = self.level.resnet("resnets_0")(x, time)
        x = self.level.attention("attentions_0")(x, context, context_length)
        return self.level.resnet("resnets_1")(x, time)


class Join(nn.Module):
    """Concatenates features and a skip. It is a layer without parameters, so that patches can change both."""

    def __call__(self, x: Map, skip: Float[Array, "b h w d"]) -> Float[Array, "b h w e"]:
        return jnp.concatenate([x, skip], axis=-1)


class UpBlock(nn.Module):
    """Takes one skip off the stack before each residual block. Then doubles the size, unless last.

    If a level's side is odd, the doubled map is cut to the size of the next skip.
    """

    level: _Level
    num_res_blocks: int
    upsample: bool

    @nn.compact
    def __call__(
        self, x: Map, skips: Maps, time: Float[Array, "b e"], context: Context,
        context_length: Length | None = None,
    ) -> NewMap:  # fmt: skip
        for j in range(self.num_res_blocks):
            x = Join(name=f"joins_{j}")(x, skips.pop())
            x = self.level.resnet(f"resnets_{j}")(x, time)
            if self.level.heads:
                x = self.level.attention(f"attentions_{j}")(x, context, context_length)
        if self.upsample:
            _, h, w, _ = skips[-1].shape
            x = Upsample(self.level.dtype, name="upsamplers_0")(x, (h, w))
        return x


def _level(config: UNetConfig, i: int, dtype: DTypeLike, remat: str) -> _Level:
    c = config
    return _Level(
        c.channels[i], c.heads[i], c.transformer_depth[i], c.self_attention[i], c.norm_groups, dtype, remat
    )  # fmt: skip


def time_embedding(
    config: UNetConfig, t: Timestep, dtype: DTypeLike, guidance_scale: Float[Array, "b"] | None = None
) -> Float[Array, "b d"]:
    """Returns the embedding of timesteps, and of guidance scales if the network takes them.

    Only for modules: it adds the layer `time_embedding` to the caller. Raises ValueError if a guidance scale is missing
    or not expected.
    """
    width, wanted = config.channels[0], config.guidance_dim
    if (wanted is not None) != (guidance_scale is not None):
        raise ValueError(f"this UNet {'takes no' if wanted is None else 'needs a'} guidance_scale")
    scale = None if wanted is None or guidance_scale is None else guidance_embedding(guidance_scale, wanted)
    return EmbeddingMLP(4 * width, dtype, name="time_embedding")(timestep_embedding(t, width), scale)


def encoder(
    config: UNetConfig, x: Map, time: Float[Array, "b e"], context: Context, context_length: Length | None, *,
    dtype: DTypeLike, remat: str = "none",
) -> tuple[Float[Array, "b h2 w2 c2"], Maps]:  # fmt: skip
    """Returns the output of a UNet's middle block, or of its last level without one, and the skips (x is the first).

    Only for modules: it adds the layers `down_blocks_N` and `mid_block` to the caller.
    """
    levels, skips = range(len(config.channels)), [x]
    for i in levels:
        level = _level(config, i, dtype, remat)
        down = DownBlock(level, config.num_res_blocks, i < levels[-1], name=f"down_blocks_{i}")
        x, outputs = down(x, time, context, context_length)
        skips += outputs
    if not config.mid_block:
        return x, skips
    middle = dataclasses.replace(
        _level(config, -1, dtype, remat), heads=config.mid_heads, self_attention=config.mid_self_attention
    )
    return MidBlock(middle, name="mid_block")(x, time, context, context_length), skips


class UNet(nn.Module):
    """Returns the network's raw prediction, float32. It is epsilon, v or x0, depending on the model's training.

    `x` [b, h, w, in_channels]: the noisy latent scaled to unit variance, then the variant's extra channels (mask and
    masked latent; depth; low-resolution picture). `t` [b]: timesteps, may be fractional. `context` [b, n, context_dim]:
    the encoded text. `label`: int [b] with `num_classes`, float [b, label_dim] with `label_dim`. `guidance_scale` [b]:
    the scale of guidance that the prediction shall have, with `guidance_dim`. `context_length` [b]: the number of valid
    tokens of each context; later ones are hidden, so contexts of different length can share a batch. None means all.
    `residuals` are a ControlNet's. `dtype` is the type that layers compute in. `remat` is a name of REMATS.

    Raises ValueError if a label or guidance scale is missing or not expected, if x has the wrong number of channels, or
    if there is not one residual for each skip.
    """

    config: UNetConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        x: Latent,
        t: Timestep,
        context: Context,
        label: Int[Array, "b"] | Float[Array, "b e"] | None = None,
        guidance_scale: Float[Array, "b"] | None = None,
        *,
        context_length: Length | None = None,
        residuals: Residuals | None = None,
    ) -> Float[Array, "b h w c2"]:
        c = self.config
        if x.shape[-1] != c.in_channels:
            raise ValueError(f"this UNet takes {c.in_channels} channels, got an input of shape {x.shape}")
        time = self._embed(t, label, guidance_scale)
        context = context.astype(self.dtype)

        x = Conv(c.channels[0], dtype=self.dtype, name="conv_in")(x)
        x, skips = encoder(c, x, time, context, context_length, dtype=self.dtype, remat=self.remat)
        if residuals is not None:
            skips, x = _with_residuals(skips, x, residuals)
        for j, i in enumerate(reversed(range(len(c.channels)))):
            level = _level(c, i, self.dtype, self.remat)
            up = UpBlock(level, c.num_res_blocks + 1, i > 0, name=f"up_blocks_{j}")
            x = up(x, skips, time, context, context_length)

        x = GroupNorm(c.norm_groups, EPSILON, self.dtype, silu=True, name="conv_norm_out")(x)
        x = Conv(c.out_channels, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="conv_out")(x)
        return x.astype(jnp.float32)

    def _embed(self, t: Timestep, label: Array | None, guidance_scale: Float[Array, "b"] | None) -> Float[Array, "b d"]:
        """Returns the time embedding plus the label's. It is without SiLU, which every residual block applies."""
        c = self.config
        width, time = 4 * c.channels[0], time_embedding(c, t, self.dtype, guidance_scale)
        wants_label = c.num_classes is not None or c.label_dim is not None
        if wants_label != (label is not None):
            raise ValueError("this UNet needs a label" if wants_label else "this UNet takes no label, got one")
        if label is None:
            return time
        if c.num_classes is not None:
            return time + nn.Embed(c.num_classes, width, dtype=self.dtype, name="class_embedding")(label)
        return time + EmbeddingMLP(width, self.dtype, name="class_embedding")(label)


def _with_residuals(skips: Maps, x: Map, residuals: Residuals) -> tuple[Maps, Map]:
    """Returns the skips and the middle block's output with the residuals added, in their own dtypes."""
    if len(residuals.skips) != len(skips):
        raise ValueError(f"this UNet has {len(skips)} skips, got residuals for {len(residuals.skips)}")
    return [add_residual(*pair) for pair in zip(skips, residuals.skips)], add_residual(x, residuals.middle)


def add_residual(x: Map, residual: Float[Array, "b _ _ c"]) -> Map:
    """Returns x plus a residual map of height and width 1, or of another size, which is resized (nearest)."""
    (h, w), sides = x.shape[1:3], residual.shape[1:3]
    if sides not in ((1, 1), (h, w)):
        b, _, _, c = residual.shape
        residual = jax.image.resize(residual, (b, h, w, c), "nearest")
    return x + residual.astype(x.dtype)
