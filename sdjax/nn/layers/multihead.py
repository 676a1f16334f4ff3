"""Multi-head attention as layers: projections with the names of a checkpoint, and the attention between them.

The attention itself is a layer without parameters, `attend`, so that patches can change its queries, keys and values.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.nn.layers.attention import attend
from sdjax.nn.layers.dense import Dense
from sdjax.typing import Context, Length, NewTokens, Tokens


class Names(NamedTuple):
    """The names of the four linear layers in a checkpoint. `out` is None if the last one is in another module."""

    query: str
    key: str
    value: str
    out: str | None


DIFFUSERS = Names("to_q", "to_k", "to_v", "to_out_0")
CLIP = Names("q_proj", "k_proj", "v_proj", "out_proj")
VIT = Names("query", "key", "value", None)  # transformers' vision transformers


class Attend(nn.Module):
    """Returns softmax(q k / sqrt(d)) v of every head. `key_length` [b] is the number of keys that are not hidden."""

    causal: bool = False

    def __call__(
        self, q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"],
        key_length: Length | None = None,
    ) -> Float[Array, "b n h d"]:  # fmt: skip
        return attend(q, k, v, causal=self.causal, key_length=key_length)


def multihead(
    x: Tokens, context: Context | None = None, key_length: Length | None = None, *, heads: int,
    names: Names = DIFFUSERS, biased: bool = True, head_size: int | None = None, causal: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> NewTokens:  # fmt: skip
    """Returns the attention of x to the context, or to x itself if there is none. The caller's module gets its layers.

    `biased` adds a bias to queries, keys and values; the output projection always has one. The default `head_size` is
    x's width divided by `heads`. `causal` hides later keys. `key_length` [b] is the number of valid keys.
    """
    b, n, c = x.shape
    size = c // heads if head_size is None else head_size
    context = x if context is None else context

    def project(name: str, y: Array) -> Array:
        return Dense(heads * size, use_bias=biased, dtype=dtype, name=name)(y).reshape(b, y.shape[1], heads, size)

    q, k, v = project(names.query, x), project(names.key, context), project(names.value, context)
    out = Attend(causal, name="attend")(q, k, v, key_length).reshape(b, n, heads * size)
    return out if names.out is None else Dense(c, dtype=dtype, name=names.out)(out)


class Attention(nn.Module):
    """Multi-head attention as a module. Its fields are the arguments of `multihead`."""

    heads: int
    names: Names = DIFFUSERS
    biased: bool = True
    head_size: int | None = None
    causal: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, context: Context | None = None, key_length: Length | None = None) -> NewTokens:
        return multihead(
            x, context, key_length, heads=self.heads, names=self.names, biased=self.biased,
            head_size=self.head_size, causal=self.causal, dtype=self.dtype,
        )  # fmt: skip
