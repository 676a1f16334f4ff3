"""Previews: latents as small pictures, without the decoder.

Each pixel is a linear map of one entry of the latent, which covers 8 x 8 pixels of the picture. The map is fitted once
per model by least squares. The samples are small latents, each of one random value per channel, and the mean colour
of the picture that the model's decoder makes of each. A preview shows colours and shapes, no detail.
"""

import weakref

import jax.numpy as jnp
import numpy as np

from sdjax.nn.jax_settings import pinned
from sdjax.pictures.image import to_uint8
from sdjax.pipeline.model import Pipeline
from sdjax.typing import Latent, Pixels

COUNT = 32  # number of latents to fit the map
SIDE = 8  # side of such a latent
EDGE = 2  # entries left out along each side: there the decoder sees the padding

_maps: weakref.WeakKeyDictionary[Pipeline, np.ndarray] = weakref.WeakKeyDictionary()


@pinned()
def preview(pipe: Pipeline, latent: Latent) -> Pixels:
    """Returns small pictures of latents, uint8 [b, h, w, 3], one pixel for each entry of a latent."""
    if pipe not in _maps:
        _maps[pipe] = colour_map(pipe)
    return to_uint8(_with_one(np.asarray(latent, np.float32)) @ _maps[pipe])


def colour_map(pipe: Pipeline) -> np.ndarray:
    """Returns the map to a colour in [-1, 1], float32 [c + 1, 3]. Its input is a latent's entry with a 1 appended."""
    channels = pipe.config.vae.latent_channels
    colours = np.random.default_rng(0).standard_normal((COUNT, channels)).astype(np.float32)
    flat = np.broadcast_to(colours[:, None, None], (COUNT, SIDE, SIDE, channels))
    images = np.asarray(pipe.decode(jnp.asarray(flat)))
    edge = EDGE * pipe.config.vae.factor
    seen = images[:, edge:-edge, edge:-edge].mean((1, 2))
    return np.linalg.lstsq(_with_one(colours), seen, rcond=None)[0].astype(np.float32)


def _with_one(entries: np.ndarray) -> np.ndarray:
    return np.concatenate([entries, np.ones_like(entries[..., :1])], axis=-1)
