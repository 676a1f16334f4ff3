"""Karlo's prior: a transformer that predicts a picture's CLIP embedding from a text.

Source: huggingface/diffusers, models/transformers/prior_transformer.py, whose names these are; Ramesh et al. 2022
(arXiv 2204.06125), section 2.2.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from sdjax.config import PriorConfig, TextConfig
from sdjax.nn.clip import TextTransformer, Tokens, gelu
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.embeddings import EmbeddingMLP, timestep_embedding
from sdjax.nn.layers.norm import LayerNorm
from sdjax.typing import Context, Embedding, NewTokens, Timestep, TokenIds

HIDDEN = (
    -10_000.0
)  # added to the logit of a hidden key, once for each reason. Finite, as all keys of a row may be hidden
EXTRA = 4  # tokens after the text's: text embedding, timestep, noisy embedding, and the token whose output is x0

Mask = Bool[Array, "b n"]


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases, logits and softmax in float32; `bias` is added to the logits."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, bias: Float[Array, "b n n"]) -> Tokens:
        b, n, d = x.shape
        q, k, v = (Dense(d, dtype=self.dtype, name=name)(x) for name in ("to_q", "to_k", "to_v"))
        q, k, v = (a.reshape(b, n, self.heads, d // self.heads) for a in (q, k, v))
        logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * (d // self.heads) ** -0.5
        weights = jax.nn.softmax(logits + bias[:, None], axis=-1).astype(v.dtype)
        out = jnp.einsum("bhnm,bmhd->bnhd", weights, v).reshape(b, n, d)
        return Dense(d, dtype=self.dtype, name="to_out_0")(out)


class Projection(nn.Module):
    """A linear layer inside one more module, `proj`, as in diffusers; then the exact GELU."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> NewTokens:
        return gelu(Dense(self.width, dtype=self.dtype, name="proj")(x))


class FeedForward(nn.Module):
    """Linear to four times the width, GELU, linear back."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        d = x.shape[-1]
        x = Projection(4 * d, self.dtype, name="net_0")(x)
        return Dense(d, dtype=self.dtype, name="net_2")(x)


class Block(nn.Module):
    """Pre-norm transformer block."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, bias: Float[Array, "b n n"]) -> Tokens:
        y = LayerNorm(1e-5, self.dtype, name="norm1")(x)
        x = x + SelfAttention(self.heads, self.dtype, name="attn1")(y, bias)
        return x + FeedForward(self.dtype, name="ff")(LayerNorm(1e-5, self.dtype, name="norm3")(x))


class PriorTransformer(nn.Module):
    """Returns the predicted image embedding x0 [b, d], float32, given a noisy embedding x, timestep t and a text.

    `text_embedding` [b, d] and `text_hidden` [b, n, d] are the outputs of `ProjectedTextEncoder`. `text_mask` [b, n] is
    false for padding. Embeddings are in the prior's scale; `clip_mean` and `clip_std` convert them to CLIP's
    (`sdjax.tasks.prior`).
    """

    config: PriorConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Embedding, t: Timestep, text_embedding: Embedding, text_hidden: Context, text_mask: Mask
    ) -> Embedding:
        c, init = self.config, nn.initializers.normal(0.02)
        dense = lambda name, x: Dense(c.width, dtype=self.dtype, name=name)(x)  # noqa: E731
        time = EmbeddingMLP(c.width, self.dtype, name="time_embedding")(timestep_embedding(t, c.width))
        answer = self.param("prd_embedding", init, (1, 1, c.width))
        tokens = [
            dense("encoder_hidden_states_proj", text_hidden),
            dense("embedding_proj", text_embedding)[:, None],
            time[:, None],
            dense("proj_in", x)[:, None],
            jnp.broadcast_to(answer, (x.shape[0], 1, c.width)).astype(self.dtype),
        ]
        positions = self.param("positional_embedding", init, (1, c.text.max_length + EXTRA, c.width))
        h = jnp.concatenate(tokens, axis=1) + positions.astype(self.dtype)
        bias = attention_bias(text_mask)
        for i in range(c.layers):
            h = Block(c.heads, self.dtype, name=f"transformer_blocks_{i}")(h, bias)
        h = LayerNorm(1e-5, self.dtype, name="norm_out")(h[:, -1])
        for name in ("clip_mean", "clip_std"):  # used when sampling is done
            self.param(name, nn.initializers.zeros, (1, c.embedding))
        return Dense(c.embedding, dtype=self.dtype, name="proj_to_clip_embeddings")(h).astype(jnp.float32)


def attention_bias(text_mask: Mask) -> Float[Array, "b n2 n2"]:
    """Returns the bias on logits for the text's tokens and the EXTRA ones. It hides padding and later tokens."""
    keys = jnp.pad(jnp.where(text_mask, 0.0, HIDDEN), ((0, 0), (0, EXTRA)))  # [b, n]
    n = keys.shape[1]
    return keys[:, None] + jnp.triu(jnp.full((n, n), HIDDEN), 1)


class ProjectedTextEncoder(nn.Module):
    """Returns the text embedding [b, d] and the token embeddings [b, n, d], both float32, of token ids [b, n].

    The text embedding is the projected one of the first end token. Source: transformers' CLIPTextModelWithProjection.
    """

    config: TextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: TokenIds) -> tuple[Embedding, Context]:
        c = self.config
        hidden = TextTransformer(c, self.dtype, name="text_model")(ids)
        end = jnp.argmax(ids == c.eos_token_id, axis=-1)
        last = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
        embedding = Dense(c.width, use_bias=False, dtype=self.dtype, name="text_projection")(last)
        return embedding.astype(jnp.float32), hidden.astype(jnp.float32)
