"""The spatial transformer: self-attention, cross-attention to the context and a gated feed-forward layer.

Source: ldm/modules/attention.py (SpatialTransformer, BasicTransformerBlock, CrossAttention, GEGLU).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.multihead import Attention
from sdjax.nn.layers.norm import GroupNorm, LayerNorm
from sdjax.typing import Context, Length, NewTokens, Tokens


class GEGLU(nn.Module):
    """Linear to twice `width`: the first half times the exact (erf) GELU of the second."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> NewTokens:
        value, gate = jnp.split(Dense(2 * self.width, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return value * jax.nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU at four times the width, then linear back."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        c = x.shape[-1]
        return Dense(c, dtype=self.dtype, name="net_2")(GEGLU(4 * c, self.dtype, name="net_0")(x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward layer, each added to x.

    If `self_attention` is False, the first attention attends to the context too.
    """

    heads: int
    self_attention: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, context: Context, context_length: Length | None = None) -> Tokens:
        seen = (context, context_length)
        y = LayerNorm(1e-5, self.dtype, name="norm1")(x)
        attention = Attention(self.heads, biased=False, dtype=self.dtype, name="attn1")
        x = x + attention(y, *(() if self.self_attention else seen))
        y = LayerNorm(1e-5, self.dtype, name="norm2")(x)
        x = x + Attention(self.heads, biased=False, dtype=self.dtype, name="attn2")(y, *seen)
        return x + FeedForward(self.dtype, name="ff")(LayerNorm(1e-5, self.dtype, name="norm3")(x))


class SpatialTransformer(nn.Module):
    """`depth` transformer blocks over the pixels of a feature map, between two projections; residual."""

    heads: int
    depth: int
    self_attention: bool
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], context: Context, context_length: Length | None = None
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x).reshape(b, h * w, c)
        y = Dense(c, dtype=self.dtype, name="proj_in")(y)
        for i in range(self.depth):
            block = TransformerBlock(self.heads, self.self_attention, self.dtype, name=f"transformer_blocks_{i}")
            y = block(y, context, context_length)
        y = Dense(c, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="proj_out")(y)
        return x + y.reshape(b, h, w, c)
