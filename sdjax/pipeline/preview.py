"""Previews: latents as small pictures, without the decoder.

A pixel is a linear map of an entry of the latent, which covers 8 x 8 pixels of the picture. The map is found once a
model, by least squares: random colours of the latent, each the same all over a small latent, and the mean colour that
the model's own decoder makes of each. It shows colours and shapes, no detail.
"""

import weakref

import jax.numpy as jnp
import numpy as np

from sdjax.nn.jax_settings import pinned
from sdjax.pictures.image import to_uint8
from sdjax.pipeline.model import Pipeline
from sdjax.typing import Latent, Pixels

COUNT = 32  # latents that the map is found from
SIDE = 8  # of them
EDGE = 2  # entries along each side that are left out, where the decoder sees what is beyond the edge

_maps: weakref.WeakKeyDictionary[Pipeline, np.ndarray] = weakref.WeakKeyDictionary()


@pinned()
def preview(pipe: Pipeline, latent: Latent) -> Pixels:
    """Returns small pictures of latents, uint8 [b, h, w, 3], a pixel for an entry of the latent."""
    if pipe not in _maps:
        _maps[pipe] = colour_map(pipe)
    return to_uint8(_with_one(np.asarray(latent, np.float32)) @ _maps[pipe])


def colour_map(pipe: Pipeline) -> np.ndarray:
    """Returns the map from a latent's entry, with a 1 behind it, to a colour in [-1, 1], float32 [c + 1, 3]."""
    channels = pipe.config.vae.latent_channels
    colours = np.random.default_rng(0).standard_normal((COUNT, channels)).astype(np.float32)
    flat = np.broadcast_to(colours[:, None, None], (COUNT, SIDE, SIDE, channels))
    images = np.asarray(pipe.decode(jnp.asarray(flat)))
    edge = EDGE * pipe.config.vae.factor
    seen = images[:, edge:-edge, edge:-edge].mean((1, 2))
    return np.linalg.lstsq(_with_one(colours), seen, rcond=None)[0].astype(np.float32)


def _with_one(entries: np.ndarray) -> np.ndarray:
    return np.concatenate([entries, np.ones_like(entries[..., :1])], axis=-1)
