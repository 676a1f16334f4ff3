"""The spatial transformer: self-attention, cross-attention to the context and a gated feed-forward layer.

Source: ldm/modules/attention.py (SpatialTransformer, BasicTransformerBlock, CrossAttention, GEGLU).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.nn.layers.attention import attend
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.norm import GroupNorm, LayerNorm
from sdjax.typing import Context

Tokens = Float[Array, "b n c"]


class Attention(nn.Module):
    """Multi-head attention of x to the context, or to x itself where there is none; no bias on q, k and v."""

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, context: Context | None = None) -> Tokens:
        b, n, c = x.shape
        context = x if context is None else context
        q = Dense(c, use_bias=False, dtype=self.dtype, name="to_q")(x)
        k = Dense(c, use_bias=False, dtype=self.dtype, name="to_k")(context)
        v = Dense(c, use_bias=False, dtype=self.dtype, name="to_v")(context)
        q, k, v = (a.reshape(b, a.shape[1], self.heads, c // self.heads) for a in (q, k, v))
        out = attend(q, k, v).reshape(b, n, c)
        return Dense(c, dtype=self.dtype, name="to_out_0")(out)


class GEGLU(nn.Module):
    """Linear to twice `width`: the first half times the exact (erf) GELU of the second."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        value, gate = jnp.split(Dense(2 * self.width, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return value * jax.nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU at four times the width, then linear back."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        c = x.shape[-1]
        return Dense(c, dtype=self.dtype, name="net_2")(GEGLU(4 * c, self.dtype, name="net_0")(x))


class TransformerBlock(nn.Module):
    """Self-attention (of the context where `self_attention` is False), cross-attention, feed-forward; all residual."""

    heads: int
    self_attention: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, context: Context) -> Tokens:
        first = None if self.self_attention else context
        y = LayerNorm(1e-5, self.dtype, name="norm1")(x)
        x = x + Attention(self.heads, self.dtype, name="attn1")(y, first)
        y = LayerNorm(1e-5, self.dtype, name="norm2")(x)
        x = x + Attention(self.heads, self.dtype, name="attn2")(y, context)
        return x + FeedForward(self.dtype, name="ff")(LayerNorm(1e-5, self.dtype, name="norm3")(x))


class SpatialTransformer(nn.Module):
    """`depth` transformer blocks over the pixels of a feature map, between two projections; residual."""

    heads: int
    depth: int
    self_attention: bool
    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], context: Context) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x).reshape(b, h * w, c)
        y = Dense(c, dtype=self.dtype, name="proj_in")(y)
        for i in range(self.depth):
            block = TransformerBlock(self.heads, self.self_attention, self.dtype, name=f"transformer_blocks_{i}")
            y = block(y, context)
        y = Dense(c, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="proj_out")(y)
        return x + y.reshape(b, h, w, c)
