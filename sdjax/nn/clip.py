"""CLIP's text tower: OpenAI's ViT-L/14 (v1) and OpenCLIP's ViT-H/14 without its last block (v2).

`TextEncoder` is here too. It uses CLIP's text tower or LAION-400M's (`sdjax.nn.bert_text`).

Source: transformers' CLIPTextModel, whose names these are; open_clip's CLIP.encode_text;
ldm/modules/encoders/modules.py (FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder with layer="penultimate").
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from sdjax.config import TextConfig
from sdjax.nn.bert_text import BertTransformer
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.multihead import CLIP, Attention
from sdjax.nn.layers.norm import LayerNorm
from sdjax.typing import Context, TokenIds, Tokens


def quick_gelu(x: Array) -> Array:
    """Returns x sigmoid(1.702 x), the GELU of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """Returns the exact GELU, x Phi(x)."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


class MLP(nn.Module):
    """Linear to `width`, by default four times the input's, activation, linear back."""

    activation: str
    width: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        d = x.shape[-1]
        x = ACTIVATIONS[self.activation](Dense(self.width or 4 * d, dtype=self.dtype, name="fc1")(x))
        return Dense(d, dtype=self.dtype, name="fc2")(x)


class EncoderLayer(nn.Module):
    """Pre-norm transformer block."""

    heads: int
    activation: str
    causal: bool
    mlp_width: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        y = LayerNorm(1e-5, self.dtype, name="layer_norm1")(x)
        x = x + Attention(self.heads, CLIP, causal=self.causal, dtype=self.dtype, name="self_attn")(y)
        y = LayerNorm(1e-5, self.dtype, name="layer_norm2")(x)
        return x + MLP(self.activation, self.mlp_width, self.dtype, name="mlp")(y)


class TransformerStack(nn.Module):
    """The stack of blocks."""

    layers: int
    heads: int
    activation: str
    causal: bool
    mlp_width: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        layer = (self.heads, self.activation, self.causal, self.mlp_width, self.dtype)
        for i in range(self.layers):
            x = EncoderLayer(*layer, name=f"layers_{i}")(x)
        return x


class TextEmbeddings(nn.Module):
    """Token embedding plus learned position embedding."""

    config: TextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: TokenIds) -> Tokens:
        c = self.config
        init = nn.initializers.normal(0.02)
        tokens = nn.Embed(c.vocab_size, c.width, embedding_init=init, dtype=self.dtype, name="token_embedding")(ids)
        positions = nn.Embed(c.max_length, c.width, embedding_init=init, dtype=self.dtype, name="position_embedding")
        return tokens + positions(jnp.arange(ids.shape[1]))


class TextTransformer(nn.Module):
    """Embeddings, causal blocks, final norm."""

    config: TextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: TokenIds) -> Context:
        c = self.config
        x = TextEmbeddings(c, self.dtype, name="embeddings")(ids)
        x = TransformerStack(
            c.layers, c.heads, c.activation, causal=True, mlp_width=c.mlp_width, dtype=self.dtype, name="encoder"
        )(x)
        return LayerNorm(1e-5, self.dtype, name="final_layer_norm")(x)


class TextEncoder(nn.Module):
    """Returns the encoded text [b, n, width], float32, of token ids [b, n] with start, end and padding in place.

    Padding is not masked, as in the models' training.
    """

    config: TextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: TokenIds) -> Context:
        name, transformer = TRANSFORMERS[self.config.kind]
        return transformer(self.config, self.dtype, name=name)(ids).astype(jnp.float32)


TRANSFORMERS = {"clip": ("text_model", TextTransformer), "bert": ("model", BertTransformer)}
