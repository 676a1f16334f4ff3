"""What an IP-Adapter sees in training: the picture that is to be denoised, encoded by a CLIP image encoder."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.adapters.ip_adapter import ImagePromptArrays
from sdjax.config import ModelConfig
from sdjax.loading.trainable.image_prompt import ENCODER, NETWORK, ImagePromptTraining
from sdjax.nn import VisionEncoder
from sdjax.nn.ip_adapter import IPAdapter, by_path
from sdjax.pictures.preprocess import MEAN, STD
from sdjax.train.objectives import draws
from sdjax.typing import Image, Keys, Params


def image_prompt(
    what: ImagePromptTraining, config: ModelConfig, whole: Params, image: Image, keys: Keys, dtype: DTypeLike
) -> ImagePromptArrays:
    """Returns the keys and values of pictures in [-1, 1] at weight 1. Dropped pictures are embeddings of zeros."""
    vision, _ = what.vision()
    b, h, w, _ = image.shape
    side, size = min(h, w), vision.image_size
    top, left = (h - side) // 2, (w - side) // 2
    square = image[:, top : top + side, left : left + side]
    seen = jnp.clip(jax.image.resize(square, (b, size, size, 3), "cubic") / 2 + 0.5, 0, 1)
    embedding = VisionEncoder(vision, dtype).bind({"params": whole[ENCODER]})((seen - MEAN) / STD)
    embedding = draws.replaced(keys, draws.IMAGE_PROMPT, what.dropout, embedding.astype(jnp.float32), 0.0)
    made = IPAdapter(what.network(config), dtype).bind({"params": whole[NETWORK]})(embedding[:, None])
    found = by_path(made, config.unet)
    return ImagePromptArrays(
        keys={path: one.keys for path, one in found.items()},
        values={path: one.values for path, one in found.items()},
        weights={path: jnp.ones(b) for path in found},
        during=jnp.broadcast_to(jnp.array([jnp.inf, -jnp.inf]), (b, 2)),
    )
