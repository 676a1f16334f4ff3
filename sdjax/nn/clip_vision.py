"""CLIP's image tower: OpenAI's ViT-L/14 (unCLIP-L, safety checker) and OpenCLIP's ViT-H/14 (unCLIP-H).

Source: openai/CLIP, clip/model.py (VisionTransformer); open_clip, src/open_clip/transformer.py. Names are those of
transformers' CLIPVisionModelWithProjection, its misspelt `pre_layrnorm` too.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import VisionConfig
from sdjax.nn.clip import Tokens, TransformerStack
from sdjax.nn.layers.conv import POINT, Conv
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.norm import LayerNorm
from sdjax.typing import Embedding, Image


class VisionEmbeddings(nn.Module):
    """A class token and one token for every patch, with learned positions added."""

    config: VisionConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pixels: Image) -> Tokens:
        c = self.config
        if pixels.shape[1:] != (c.image_size, c.image_size, 3):
            raise ValueError(f"the image tower takes pixels [b, {c.image_size}, {c.image_size}, 3]; got {pixels.shape}")
        init = nn.initializers.normal(0.02)
        size = (c.patch_size, c.patch_size)
        patches = Conv(c.width, size, size, POINT, use_bias=False, dtype=self.dtype, name="patch_embedding")(pixels)
        b, h, w, d = patches.shape
        first = self.param("class_embedding", init, (d,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (b, 1, d)), patches.reshape(b, h * w, d)], axis=1)
        positions = nn.Embed(1 + h * w, d, embedding_init=init, dtype=self.dtype, name="position_embedding")
        return x + positions(jnp.arange(1 + h * w))


class VisionTransformer(nn.Module):
    """Embeddings, norm, blocks. Returns the normed class token, which represents the picture: [b, width].

    `penultimate` returns all tokens after the last block but one, not normed: [b, n, width].
    """

    config: VisionConfig
    dtype: DTypeLike = jnp.float32
    penultimate: bool = False

    @nn.compact
    def __call__(self, pixels: Image) -> Embedding | Tokens:
        c = self.config
        layers = c.layers - 1 if self.penultimate else c.layers
        x = VisionEmbeddings(c, self.dtype, name="embeddings")(pixels)
        x = LayerNorm(1e-5, self.dtype, name="pre_layrnorm")(x)
        x = TransformerStack(
            layers, c.heads, c.activation, causal=False, mlp_width=c.mlp_width, dtype=self.dtype, name="encoder"
        )(x)
        if self.penultimate:
            return x
        return LayerNorm(1e-5, self.dtype, name="post_layernorm")(x[:, 0])


class VisionEncoder(nn.Module):
    """Returns the image embedding [b, projection], float32 and not normalised, of prepared pixels.

    Pixels [b, size, size, 3] come from `sdjax.pictures.preprocess`, normalised by CLIP's mean and standard deviation.
    `penultimate` returns the tokens after the last block but one, [b, n, width], as some IP-Adapters take them. Raises
    ValueError for another size.
    """

    config: VisionConfig
    dtype: DTypeLike = jnp.float32
    penultimate: bool = False

    @nn.compact
    def __call__(self, pixels: Image) -> Embedding | Tokens:
        x = VisionTransformer(self.config, self.dtype, self.penultimate, name="vision_model")(pixels)
        if self.penultimate:
            return x.astype(jnp.float32)
        dense = Dense(self.config.projection, use_bias=False, dtype=self.dtype, name="visual_projection")
        return dense(x).astype(jnp.float32)
