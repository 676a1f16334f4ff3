"""IP-Adapter: the network that turns an encoded picture into keys and values for the UNet's cross-attentions.

Source: Ye et al. 2023 (arXiv 2308.06721); tencent-ailab/IP-Adapter, ip_adapter/ip_adapter.py and resampler.py, whose
names these are.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.config import UNetConfig
from sdjax.nn.clip import gelu
from sdjax.nn.layers.attention import attend
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.norm import LayerNorm

EPSILON = 1e-5  # of the norms
HEAD = 64  # size of a resampler's heads
OF_PICTURES = ("linear", "mlp", "resampler")  # kinds that take what an image encoder gives

Tokens = Float[Array, "b n d"]
Encoded = Float[Array, "b e"] | Float[Array, "b m e"]  # a picture's embedding, or its tokens


@dataclasses.dataclass(frozen=True)
class IPAdapterConfig:
    """An IP-Adapter. `attentions` are the widths of the cross-attentions that it changes, in the file's order.

    `kind`: "linear" (the plain and the light one) makes `tokens` tokens of a picture's embedding; "resampler" (plus,
    plus-face) makes them of the tokens in the image encoder's last block but one; "mlp" (full-face) turns each of these
    tokens into one; "face" (FaceID) makes them of a face's embedding. `embedding` is the width of the input, `context`
    that of the tokens. `width`, `depth` and `heads` are the resampler's.
    """

    kind: Literal["linear", "mlp", "resampler", "face"]
    embedding: int
    context: int
    attentions: tuple[int, ...]
    tokens: int = 0
    width: int = 0
    depth: int = 0
    heads: int = 0

    @property
    def takes_tokens(self) -> bool:
        """Whether the input is [b, m, e], the tokens of a picture, and not [b, e], one embedding."""
        return self.kind in ("mlp", "resampler")


class KeysAndValues(NamedTuple):
    """The keys and the values of one cross-attention, [b, n, width] each."""

    keys: Tokens
    values: Tokens


class Linear(nn.Module):
    """Returns the tokens of embeddings: a linear layer, or two with a GELU between them, then a norm of each token."""

    tokens: int
    context: int
    two: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b e"]) -> Tokens:
        if self.two:
            x = gelu(Dense(2 * x.shape[-1], dtype=self.dtype, name="proj_0")(x))
        x = Dense(self.tokens * self.context, dtype=self.dtype, name="proj_2" if self.two else "proj")(x)
        return LayerNorm(EPSILON, self.dtype, name="norm")(x.reshape(len(x), self.tokens, self.context))


class MLP(nn.Module):
    """Returns one token for each token: two linear layers with a GELU between them, then a norm."""

    context: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n e"]) -> Tokens:
        x = gelu(Dense(x.shape[-1], dtype=self.dtype, name="proj_0")(x))
        return LayerNorm(EPSILON, self.dtype, name="proj_3")(Dense(self.context, dtype=self.dtype, name="proj_2")(x))


class Perceiver(nn.Module):
    """Attention of learned tokens to a picture's tokens and to themselves."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, latents: Tokens, x: Float[Array, "b m d"]) -> Tokens:
        b, n, d = latents.shape
        x = LayerNorm(EPSILON, self.dtype, name="norm1")(x)
        latents = LayerNorm(EPSILON, self.dtype, name="norm2")(latents)
        width = self.heads * HEAD
        q = Dense(width, use_bias=False, dtype=self.dtype, name="to_q")(latents)
        both = jnp.concatenate([x, latents], axis=1)
        k, v = jnp.split(Dense(2 * width, use_bias=False, dtype=self.dtype, name="to_kv")(both), 2, axis=-1)
        out = attend(*(a.reshape(b, -1, self.heads, HEAD) for a in (q, k, v)))
        return Dense(d, use_bias=False, dtype=self.dtype, name="to_out")(out.reshape(b, n, width))


class FeedForward(nn.Module):
    """Norm, linear layer to four times the width, GELU, linear layer back."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        d = x.shape[-1]
        x = LayerNorm(EPSILON, self.dtype, name="norm")(x)
        x = gelu(Dense(4 * d, use_bias=False, dtype=self.dtype, name="up")(x))
        return Dense(d, use_bias=False, dtype=self.dtype, name="down")(x)


class Resampler(nn.Module):
    """Returns a fixed number of tokens, which attend to a picture's tokens."""

    config: IPAdapterConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b m e"]) -> Tokens:
        c = self.config
        init = nn.initializers.normal(c.width**-0.5)
        latents = self.param("latents", init, (1, c.tokens, c.width)).astype(self.dtype)
        latents = jnp.broadcast_to(latents, (len(x), c.tokens, c.width))
        x = Dense(c.width, dtype=self.dtype, name="proj_in")(x)
        for i in range(c.depth):
            latents = latents + Perceiver(c.heads, self.dtype, name=f"attention_{i}")(latents, x)
            latents = latents + FeedForward(self.dtype, name=f"feed_forward_{i}")(latents)
        latents = Dense(c.context, dtype=self.dtype, name="proj_out")(latents)
        return LayerNorm(EPSILON, self.dtype, name="norm_out")(latents)


class Projection(nn.Module):
    """Returns the keys and values of tokens, without biases."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> KeysAndValues:
        dense = (Dense(self.width, use_bias=False, dtype=self.dtype, name=f"to_{name}_ip")(x) for name in "kv")
        return KeysAndValues(*dense)


class IPAdapter(nn.Module):
    """Returns the keys and values of each cross-attention for a batch of encoded pictures [b, k, e] or [b, k, m, e].

    The k pictures of an entry stand one after the other: n is k times the tokens of one. Attentions are in the order of
    `attention_paths`.
    """

    config: IPAdapterConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b k ..."]) -> list[KeysAndValues]:
        c = self.config
        b, k, *rest = x.shape
        wanted = "[b, k, m, " if c.takes_tokens else "[b, k, "
        if len(rest) != 1 + c.takes_tokens or rest[-1] != c.embedding:
            raise ValueError(f"this IP-Adapter takes encoded pictures {wanted}{c.embedding}]; got {list(x.shape)}")
        x = x.reshape(b * k, *rest).astype(self.dtype)
        project = {
            "linear": lambda: Linear(c.tokens, c.context, False, self.dtype, name="image_proj"),
            "face": lambda: Linear(c.tokens, c.context, True, self.dtype, name="image_proj"),
            "mlp": lambda: MLP(c.context, self.dtype, name="image_proj"),
            "resampler": lambda: Resampler(c, self.dtype, name="image_proj"),
        }[c.kind]()
        tokens = project(x).reshape(b, -1, c.context)
        return [Projection(width, self.dtype, name=f"attention_{i}")(tokens) for i, width in enumerate(c.attentions)]


def attention_paths(config: UNetConfig) -> list[tuple[str, int]]:
    """Returns the paths and widths of a UNet's cross-attentions in the order of the files: down, up, middle."""
    last = len(config.channels) - 1
    down = [(f"down_blocks_{i}", i, config.num_res_blocks) for i in range(last + 1)]
    up = [(f"up_blocks_{i}", last - i, config.num_res_blocks + 1) for i in range(last + 1)]
    paths = []
    for block, level, count in (*down, *up):
        if config.heads[level]:
            paths += [
                (f"{block}/attentions_{j}/transformer_blocks_{k}/attn2", config.channels[level])
                for j in range(count)
                for k in range(config.transformer_depth[level])
            ]
    if not config.mid_block:
        return paths
    middle = "mid_block/attentions_0/transformer_blocks_{}/attn2"
    return [*paths, *((middle.format(k), config.channels[last]) for k in range(config.transformer_depth[last]))]


def by_path(made: list[KeysAndValues], config: UNetConfig) -> Mapping[str, KeysAndValues]:
    """Returns the keys and values by the paths of the UNet's cross-attentions."""
    return {path: one for (path, _), one in zip(attention_paths(config), made, strict=True)}
