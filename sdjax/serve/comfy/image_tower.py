"""CLIP's image tower as a value of a graph, and the embeddings that it makes."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import VisionConfig
from sdjax.nn.clip_vision import VisionEncoder
from sdjax.nn.jax_settings import pinned
from sdjax.pictures.preprocess import MEAN, STD
from sdjax.serve.comfy.resizing import upscale
from sdjax.serve.comfy.values import Images
from sdjax.typing import Params


class ImageEmbedding(NamedTuple):
    """A CLIP_VISION_OUTPUT: the embeddings of pictures, [b, d]."""

    embeddings: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTower:
    """A CLIP_VISION: an image tower."""

    config: VisionConfig
    params: Params
    dtype: str

    @pinned()
    def embed(self, images: Images, crop: str) -> ImageEmbedding:
        """Returns the embeddings of pictures, cut to a square ("center") or squeezed ("none")."""
        size = self.config.image_size
        if crop == "center":
            h, w = images.shape[1:3]
            share = size / min(h, w)
            images = upscale(images, round(h * share), round(w * share), "bicubic")
            h, w = images.shape[1:3]
            top, left = (h - size) // 2, (w - size) // 2
            images = images[:, top : top + size, left : left + size]
        else:
            images = upscale(images, size, size, "bicubic")
        pixels = (np.clip(np.rint(255 * images), 0, 255) / np.float32(255) - MEAN) / STD
        params = jax.tree.map(jnp.asarray, self.params)
        return ImageEmbedding(np.asarray(_embed(self.config, self.dtype, params, pixels.astype(np.float32))))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed(config: VisionConfig, dtype: str, params: Params, pixels: Any) -> Any:
    return VisionEncoder(config, jnp.dtype(dtype)).apply({"params": params}, pixels)
