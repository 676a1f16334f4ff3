"""DINOv2: vision transformers of all sizes, with and without registers.

Names are transformers'. Source: Oquab et al. 2023 (arXiv 2304.07193), Darcet et al. 2023 (arXiv 2309.16588);
facebookresearch/dinov2, dinov2/models/vision_transformer.py.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax.nn.clip import gelu
from sdjax.nn.layers.conv import POINT, Conv
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.multihead import VIT, multihead
from sdjax.nn.layers.norm import LayerNorm
from sdjax.typing import Embedding, Image, Tokens

EPSILON = 1e-6
OFFSET = 0.1  # patches that networks without registers count too many when they resize their positions


@dataclasses.dataclass(frozen=True)
class DINOv2Config:
    """The defaults are ViT-L/14's. `grid` is the number of patches a side that it has positions for (518 pixels).

    `hidden` is the width inside an MLP. `gated` MLPs are ViT-g's (SwiGLU).
    """

    width: int = 1024
    layers: int = 24
    heads: int = 16
    patch_size: int = 14
    grid: int = 37
    hidden: int = 4096
    gated: bool = False
    registers: int = 0


class LayerScale(nn.Module):
    """Multiplies every channel by a number."""

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        return x * self.param("lambda1", nn.initializers.ones, (x.shape[-1],))


class SelfAttention(nn.Module):
    """Queries, keys and values, and the attention."""

    heads: int

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        return multihead(x, heads=self.heads, names=VIT)


class Output(nn.Module):
    """The attention's last linear layer, one module deeper as in transformers."""

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        return Dense(x.shape[-1], name="dense")(x)


class Attention(nn.Module):
    """Multi-head self-attention."""

    heads: int

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        return Output(name="output")(SelfAttention(self.heads, name="attention")(x))


class MLP(nn.Module):
    """Linear, exact GELU, linear; or SwiGLU, in which half of the first layer's output gates the other."""

    hidden: int
    gated: bool

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        d = x.shape[-1]
        if self.gated:
            gate, value = jnp.split(Dense(2 * self.hidden, name="weights_in")(x), 2, axis=-1)
            return Dense(d, name="weights_out")(jax.nn.silu(gate) * value)
        return Dense(d, name="fc2")(gelu(Dense(self.hidden, name="fc1")(x)))


class Block(nn.Module):
    """Pre-norm transformer block with layer scale."""

    config: DINOv2Config

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        c = self.config
        y = Attention(c.heads, name="attention")(LayerNorm(EPSILON, name="norm1")(x))
        x = x + LayerScale(name="layer_scale1")(y)
        y = MLP(c.hidden, c.gated, name="mlp")(LayerNorm(EPSILON, name="norm2")(x))
        return x + LayerScale(name="layer_scale2")(y)


class Patches(nn.Module):
    """One token for every patch, [b, h, w, width]."""

    width: int
    size: int

    @nn.compact
    def __call__(self, image: Image) -> Float[Array, "b h2 w2 d"]:
        size = (self.size, self.size)
        return Conv(self.width, size, size, POINT, name="projection")(image)


class Embeddings(nn.Module):
    """Class token, registers, and one token for every patch; positions are resized to the picture's patches."""

    config: DINOv2Config

    @nn.compact
    def __call__(self, image: Image) -> Tokens:
        c, init = self.config, nn.initializers.normal(0.02)
        patches = Patches(c.width, c.patch_size, name="patch_embeddings")(image)
        b, h, w, d = patches.shape
        first = self.param("cls_token", init, (1, 1, d))
        positions = self.param("position_embeddings", init, (1, 1 + c.grid**2, d))
        resized = jnp.einsum(
            "im,jn,mnd->ijd", _matrix(c, h), _matrix(c, w), positions[0, 1:].reshape(c.grid, c.grid, d),
            precision="highest",
        )  # fmt: skip
        tokens = [first + positions[:, :1], (patches + resized).reshape(b, h * w, d)]
        if c.registers:
            tokens.insert(1, self.param("register_tokens", init, (1, c.registers, d)))
        return jnp.concatenate([jnp.broadcast_to(one, (b, *one.shape[1:])) for one in tokens], axis=1)


def _matrix(config: DINOv2Config, patches: int) -> Float[np.ndarray, "patches grid"]:
    return position_matrix(config.grid, patches, smooth=config.registers > 0)


def position_matrix(grid: int, patches: int, *, smooth: bool) -> Float[np.ndarray, "patches grid"]:
    """Returns how positions along one side of a grid are resized to another number of patches, bicubic.

    `smooth` networks, those with registers, filter before they shrink (a = -0.5, as Pillow). The others do not (a =
    -0.75), and they count `OFFSET` of a patch too many, as in their training. Source: interpolate_pos_encoding, with
    torch's interpolate.
    """
    if grid == patches:
        return np.eye(grid, dtype=np.float32)
    scale = grid / (patches if smooth else patches + OFFSET)
    stretch, a = (max(scale, 1), -0.5) if smooth else (1, -0.75)
    places = (np.arange(patches)[:, None] + 0.5) * scale - 0.5
    if smooth:  # what is outside does not count
        weights = _cubic((np.arange(grid) - places) / stretch, a)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    matrix = np.zeros((patches, grid))
    for offset in range(-1, 3):  # what is outside is the border's
        near = np.floor(places[:, 0]) + offset
        taken = np.clip(near, 0, grid - 1).astype(int)
        matrix[np.arange(patches), taken] += _cubic(near - places[:, 0], a)
    return matrix.astype(np.float32)


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
    """Returns Keys's cubic convolution kernel."""
    t = np.abs(t)
    inner = ((a + 2) * t - (a + 3)) * t * t + 1
    return np.where(t <= 1, inner, np.where(t < 2, ((t - 5) * t + 8) * t * a - 4 * a, 0))


class Encoder(nn.Module):
    """The stack of blocks."""

    config: DINOv2Config

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        for i in range(self.config.layers):
            x = Block(self.config, name=f"layer_{i}")(x)
        return x


class DINOv2(nn.Module):
    """Returns the normed class token [b, width], float32, of images normalised by ImageNet's mean and deviation.

    Sides are multiples of the patches' (224 for FD-DINOv2). Raises ValueError for others.
    """

    config: DINOv2Config

    @nn.compact
    def __call__(self, image: Image) -> Embedding:
        size = self.config.patch_size
        if image.shape[1] % size or image.shape[2] % size or 0 in image.shape:
            raise ValueError(f"DINOv2 takes sides that are multiples of {size} pixels; got {image.shape[1:3]}")
        x = Encoder(self.config, name="encoder")(Embeddings(self.config, name="embeddings")(image))
        return LayerNorm(EPSILON, name="layernorm")(x[:, 0])
