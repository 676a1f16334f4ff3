"""MiDaS DPT-Hybrid: depth from a single picture, by a ResNet, a vision transformer over it, and a decoder.

Source: Stability-AI/stablediffusion, ldm/modules/midas/midas/{dpt_depth,vit,blocks}.py; Ranftl et al. 2021
(arXiv 2103.13413). Names are those of transformers' DPTForDepthEstimation.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.config import DepthConfig
from sdjax.nn.clip import gelu
from sdjax.nn.depth.bit import Bit
from sdjax.nn.layers.conv import POINT, Conv
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.interpolation import interpolate
from sdjax.nn.layers.multihead import VIT, Attention
from sdjax.nn.layers.norm import LayerNorm
from sdjax.typing import Image, Map, Maps, NewMap, NewTokens, Tokens

PATCH = 16  # one token covers 16 x 16 pixels
STEP = 2 * PATCH  # the coarsest map has half as many places as there are tokens along a side
HEAD_WIDTH = 32


class Wrapped(nn.Module):
    """A linear layer inside one more module, `dense`, as in transformers."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> NewTokens:
        return Dense(self.width, dtype=self.dtype, name="dense")(x)


class AttentionBlock(nn.Module):
    """Self-attention, then its output projection as a separate module, as in transformers."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        y = Attention(self.heads, VIT, dtype=self.dtype, name="attention")(x)
        return Wrapped(x.shape[-1], self.dtype, name="output")(y)


class Layer(nn.Module):
    """Pre-norm transformer block of the vision transformer."""

    heads: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        d = x.shape[-1]
        y = LayerNorm(self.epsilon, self.dtype, name="layernorm_before")(x)
        x = x + AttentionBlock(self.heads, self.dtype, name="attention")(y)
        y = LayerNorm(self.epsilon, self.dtype, name="layernorm_after")(x)
        y = gelu(Wrapped(4 * d, self.dtype, name="intermediate")(y))
        return x + Wrapped(d, self.dtype, name="output")(y)


class Transformer(nn.Module):
    """The blocks. Returns the tokens after each block in `taps`, without the norm after the last block."""

    config: DepthConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> list[Tokens]:
        c, tapped = self.config, []
        for i in range(max(c.taps) + 1):
            x = Layer(c.heads, c.norm_epsilon, self.dtype, name=f"layer_{i}")(x)
            if i in c.taps:
                tapped.append(x)
        return tapped


class Backbone(nn.Module):
    """The ResNet, one module deeper as in transformers."""

    config: DepthConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Image) -> Maps:
        return Bit(self.config, self.dtype, name="bit")(image)


class Embeddings(nn.Module):
    """Returns the ResNet's first two maps, and tokens: a class token and the last map's pixels, plus positions."""

    config: DepthConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Image) -> tuple[Maps, Tokens]:
        c = self.config
        *maps, x = Backbone(c, self.dtype, name="backbone")(image)
        x = Conv(c.width, (1, 1), padding=POINT, dtype=self.dtype, name="projection")(x)
        b, h, w, d = x.shape
        side = c.grid
        first = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, d))
        positions = self.param("position_embeddings", nn.initializers.normal(0.02), (1, 1 + side * side, d))
        grid = interpolate(positions[:, 1:].reshape(1, side, side, d), (h, w), method="bilinear")
        positions = jnp.concatenate([positions[:, :1], grid.reshape(1, h * w, d)], axis=1)
        first = jnp.broadcast_to(first, (b, 1, d)).astype(self.dtype)
        tokens = jnp.concatenate([first, x.reshape(b, h * w, d)], axis=1)
        return maps, tokens + positions.astype(self.dtype)


class HybridTransformer(nn.Module):
    """Picture to two maps of the ResNet and two sets of tokens of the vision transformer."""

    config: DepthConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Image) -> tuple[Maps, list[Tokens]]:
        maps, tokens = Embeddings(self.config, self.dtype, name="embeddings")(image)
        return maps, Transformer(self.config, self.dtype, name="encoder")(tokens)


class ReassembleLayer(nn.Module):
    """1x1 convolution, then one that halves the size if `halve`."""

    width: int
    halve: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> NewMap:
        x = Conv(self.width, (1, 1), padding=POINT, dtype=self.dtype, name="projection")(x)
        if self.halve:  # padded on both sides, unlike the ResNet's
            x = Conv(self.width, strides=(2, 2), dtype=self.dtype, name="resize")(x)
        return x


class Reassemble(nn.Module):
    """Tokens to maps: the class token is projected into every other token, then tokens become pixels of a map."""

    config: DepthConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tapped: list[Tokens], size: tuple[int, int]) -> Maps:
        c, maps = self.config, []
        for i, tokens in enumerate(tapped, start=2):  # transformers counts the ResNet's two maps too
            b, n, d = tokens.shape
            readout = jnp.broadcast_to(tokens[:, :1], (b, n - 1, d))
            x = jnp.concatenate([tokens[:, 1:], readout], axis=-1)
            x = gelu(Dense(d, dtype=self.dtype, name=f"readout_projects_{i}_0")(x)).reshape(b, *size, d)
            maps.append(ReassembleLayer(c.neck_widths[i - 2], i == 3, self.dtype, name=f"layers_{i}")(x))
        return maps


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions, each after a ReLU. The input is added to the result."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> Map:
        y = Conv(x.shape[-1], dtype=self.dtype, name="convolution1")(jax.nn.relu(x))
        return x + Conv(x.shape[-1], dtype=self.dtype, name="convolution2")(jax.nn.relu(y))


class Fusion(nn.Module):
    """Adds a map to the path from the coarser ones, refines the sum, doubles its size."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, path: Map, x: Map | None) -> NewMap:
        if x is not None:
            path = path + ResidualUnit(self.dtype, name="residual_layer1")(x)
        path = double(ResidualUnit(self.dtype, name="residual_layer2")(path))
        return Conv(path.shape[-1], (1, 1), padding=POINT, dtype=self.dtype, name="projection")(path)


class FusionStage(nn.Module):
    """The four fusions, coarsest first; the first has no path to add to."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Maps) -> NewMap:
        *finer, path = maps
        path = Fusion(self.dtype, name="layers_0")(path, None)
        for i, x in enumerate(reversed(finer), start=1):
            path = Fusion(self.dtype, name=f"layers_{i}")(path, x)
        return path


class Neck(nn.Module):
    """Brings four maps to one width, and fuses them to one map at half the picture's size."""

    config: DepthConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Maps, tapped: list[Tokens], size: tuple[int, int]) -> NewMap:
        maps = [*maps, *Reassemble(self.config, self.dtype, name="reassemble_stage")(tapped, size)]
        maps = [
            Conv(self.config.features, use_bias=False, dtype=self.dtype, name=f"convs_{i}")(x)
            for i, x in enumerate(maps)
        ]
        return FusionStage(self.dtype, name="fusion_stage")(maps)


class Head(nn.Module):
    """Map at half the picture's size to its depth."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "b h2 w2 1"]:
        x = double(Conv(x.shape[-1] // 2, dtype=self.dtype, name="head_0")(x))
        x = jax.nn.relu(Conv(HEAD_WIDTH, dtype=self.dtype, name="head_2")(x))
        return jax.nn.relu(Conv(1, (1, 1), padding=POINT, dtype=self.dtype, name="head_4")(x))


class DepthEstimator(nn.Module):
    """Returns the depth [b, h, w, 1], float32, of an image in [-1, 1] whose sides are multiples of 32.

    Nearer things have larger numbers. The numbers are >= 0, have no unit, and can be compared only within one picture.
    Raises ValueError for sides of another length.
    """

    config: DepthConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Image) -> Float[Array, "b h w 1"]:
        _, h, w, _ = image.shape
        if h % STEP or w % STEP or 0 in (h, w):
            raise ValueError(f"the depth network takes sides that are multiples of {STEP}; got {h} x {w}")
        maps, tapped = HybridTransformer(self.config, self.dtype, name="dpt")(image)
        x = Neck(self.config, self.dtype, name="neck")(maps, tapped, (h // PATCH, w // PATCH))
        return Head(self.dtype, name="head")(x).astype(jnp.float32)


def double(x: Map) -> NewMap:
    """Returns the map at twice its size (bilinear, corners aligned)."""
    _, h, w, _ = x.shape
    return interpolate(x, (2 * h, 2 * w), method="bilinear", align_corners=True)


def network_size(config: DepthConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Returns the (height, width) at which the depth network works on a picture of this size.

    The side nearer to the trained side is set to it; the other side keeps the aspect ratio. Both are rounded to
    multiples of 32, at least 32.
    """
    scales = [config.image_size / side for side in size]
    scale = scales[1] if abs(1 - scales[1]) < abs(1 - scales[0]) else scales[0]
    height, width = (max(round(scale * side / STEP), 1) * STEP for side in size)
    return height, width
