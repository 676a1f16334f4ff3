"""The safety checker: compares a picture's CLIP embedding with embeddings of unwanted concepts.

Source: huggingface/diffusers, pipelines/stable_diffusion/safety_checker.py, whose names these are.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from sdjax.config import VisionConfig
from sdjax.nn.clip_vision import Embedding, VisionTransformer
from sdjax.nn.layers.dense import Dense
from sdjax.typing import Image

CONCEPTS, SPECIAL = 17, 3  # concepts that flag a picture, and concepts of special care, which make the check stricter
STRICTER = 0.01


class Scores(NamedTuple):
    """The cosine of a picture and each concept, minus the concept's threshold, to three decimals.

    Additions from concepts of special care are included.
    """

    concepts: Float[Array, "b 17"]
    special: Float[Array, "b 3"]

    @property
    def flags(self) -> Bool[Array, "b"]:
        """Whether any of the concepts is above its threshold."""
        return (self.concepts > 0).any(-1)


class Wrapped(nn.Module):
    """The tower, one module deeper as in the released file."""

    config: VisionConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pixels: Image) -> Embedding:
        return VisionTransformer(self.config, self.dtype, name="vision_model")(pixels)


class SafetyScorer(nn.Module):
    """Returns the scores, float32, of pixels [b, size, size, 3] from `sdjax.pictures.preprocess` ("huggingface")."""

    config: VisionConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pixels: Image) -> Scores:
        c = self.config
        x = Wrapped(c, self.dtype, name="vision_model")(pixels)
        dense = Dense(c.projection, use_bias=False, dtype=self.dtype, name="visual_projection")
        embedding = dense(x).astype(jnp.float32)
        ones = nn.initializers.ones
        above = []
        for name, count in ("concept_embeds", CONCEPTS), ("special_care_embeds", SPECIAL):
            wanted = self.param(name, ones, (count, c.projection)).astype(jnp.float32)
            threshold = self.param(f"{name}_weights", ones, (count,)).astype(jnp.float32)
            above.append(cosines(embedding, wanted) - threshold)
        return adjusted(*above)


def cosines(a: Float[Array, "b d"], b: Float[Array, "n d"]) -> Float[Array, "b n"]:
    """Returns the cosine of every row of a with every row of b; 0 for a row of zeros."""
    a, b = (x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (a, b))
    return jnp.einsum("bd,nd->bn", a, b, precision=jax.lax.Precision.HIGHEST)


def adjusted(concepts: Float[Array, "b n"], special: Float[Array, "b m"]) -> Scores:
    """Returns the scores. The arguments are cosines minus thresholds.

    A concept of special care with a rounded value above 0 adds 0.01 to all later ones of special care and to all
    concepts.
    """
    more, out = jnp.zeros(special.shape[:1]), []
    for i in range(special.shape[1]):
        score = jnp.round(special[:, i] + more, 3)
        more = jnp.where(score > 0, STRICTER, more)
        out.append(score)
    return Scores(jnp.round(concepts + more[:, None], 3), jnp.stack(out, -1))
