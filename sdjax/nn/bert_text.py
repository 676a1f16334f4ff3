"""The text encoder of LAION-400M latent diffusion: a transformer over BERT's tokens, without a mask.

Source: CompVis/stable-diffusion, ldm/modules/x_transformer.py (TransformerWrapper, AttentionLayers) with the arguments
of ldm/modules/encoders/modules.py:BERTEmbedder. Names are those of diffusers' LDMBertModel.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import TextConfig
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.multihead import CLIP, Attention
from sdjax.nn.layers.norm import LayerNorm
from sdjax.typing import Context, TokenIds, Tokens


class Layer(nn.Module):
    """Pre-norm transformer block with the exact GELU."""

    heads: int
    head_dim: int | None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        d = x.shape[-1]
        y = LayerNorm(1e-5, self.dtype, name="self_attn_layer_norm")(x)
        attention = functools.partial(Attention, biased=False, head_size=self.head_dim, dtype=self.dtype)
        x = x + attention(self.heads, CLIP, name="self_attn")(y)  # no mask: padding is seen too
        y = LayerNorm(1e-5, self.dtype, name="final_layer_norm")(x)
        y = jax.nn.gelu(Dense(4 * d, dtype=self.dtype, name="fc1")(y), approximate=False)
        return x + Dense(d, dtype=self.dtype, name="fc2")(y)


class BertTransformer(nn.Module):
    """Token and position embeddings, blocks, final norm."""

    config: TextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: TokenIds) -> Context:
        c = self.config
        init = nn.initializers.normal(0.02)
        assert c.head_dim is not None  # TextConfig has checked it
        x = nn.Embed(c.vocab_size, c.width, embedding_init=init, dtype=self.dtype, name="embed_tokens")(ids)
        positions = nn.Embed(c.max_length, c.width, embedding_init=init, dtype=self.dtype, name="embed_positions")
        x = x + positions(jnp.arange(ids.shape[1]))
        for i in range(c.layers):
            x = Layer(c.heads, c.head_dim, self.dtype, name=f"layers_{i}")(x)
        return LayerNorm(1e-5, self.dtype, name="layer_norm")(x)
