"""LAION's improved aesthetic predictor: how much people like a picture, 1 to 10, from CLIP ViT-L/14's embedding.

Source: christophschuhmann/improved-aesthetic-predictor, simple_inference.py, whose names these are.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.nn.layers.dense import Dense
from sdjax.typing import Embedding

WIDTHS = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}  # by place in the file: dropouts are between the first ones


@dataclasses.dataclass(frozen=True)
class AestheticConfig:
    """`width` is that of the embeddings: 768 of CLIP ViT-L/14."""

    width: int = 768


class AestheticPredictor(nn.Module):
    """Returns the score [b, 1] of image embeddings, which it divides by their length. All layers are linear."""

    config: AestheticConfig

    @nn.compact
    def __call__(self, embedding: Embedding) -> Float[Array, "b 1"]:
        if embedding.shape[-1] != self.config.width:
            raise ValueError(f"the predictor takes embeddings of {self.config.width}; got {embedding.shape[-1]}")
        length = jnp.linalg.norm(embedding, axis=-1, keepdims=True)
        x = embedding / jnp.where(length == 0, 1, length)
        for place, width in WIDTHS.items():
            x = Dense(width, name=f"layers_{place}")(x)
        return x
