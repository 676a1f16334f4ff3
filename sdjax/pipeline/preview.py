"""Previews: latents as small pictures, without the decoder, or as whole pictures by TAESD's.

Without TAESD each pixel is a linear map of one entry of the latent, which covers 8 x 8 pixels of the picture. The map
is fitted once per model by least squares. The samples are small latents, each of one random value per channel, and the
mean colour of the picture that the model's decoder makes of each. Such a preview shows colours and shapes, no detail.
"""

import functools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from sdjax.config import ModelConfig, VAEConfig
from sdjax.convert.parts.taesd import LoadedTAESD
from sdjax.nn.jax_settings import pinned
from sdjax.nn.taesd import TinyAutoencoder
from sdjax.pictures.image import to_uint8
from sdjax.pipeline import bands
from sdjax.pipeline.model import Pipeline
from sdjax.pipeline.tiling import LARGE
from sdjax.typing import Latent, NewImage, Params

COUNT = 32  # number of latents to fit the map
SIDE = 8  # side of such a latent
EDGE = 2  # entries left out along each side: there the decoder sees the padding

_maps: weakref.WeakKeyDictionary[Pipeline, np.ndarray] = weakref.WeakKeyDictionary()


@pinned()
def preview(pipe: Pipeline, latent: Latent, taesd: LoadedTAESD | None = None) -> UInt8[np.ndarray, "b h2 w2 3"]:
    """Returns pictures of latents, uint8 [b, h, w, 3]: one pixel for each entry of a latent, or whole ones by TAESD."""
    if taesd is not None:
        params = _on_device(taesd)
        return to_uint8(np.concatenate([_decode(taesd.config, params, one[None]) for one in latent]))
    if pipe not in _maps:
        _maps[pipe] = colour_map(pipe)
    return to_uint8(_with_one(np.asarray(latent, np.float32)) @ _maps[pipe])


def fits(taesd: LoadedTAESD, config: ModelConfig) -> bool:
    """Returns whether TAESD's latents have the shape of a model's."""
    ours, theirs = config.vae, taesd.config
    return (ours.factor, ours.latent_channels) == (theirs.factor, theirs.latent_channels)


def check_taesd(taesd: LoadedTAESD, config: ModelConfig) -> None:
    """Raises ValueError for a model whose latents have another shape than TAESD's."""
    ours, theirs = config.vae, taesd.config
    if not fits(taesd, config):
        raise ValueError(
            f"taesd is for latents of {theirs.latent_channels} channels and 1/{theirs.factor} of a picture's side, "
            f"this model's have {ours.latent_channels} channels and 1/{ours.factor}: leave it out"
        )


@functools.partial(jax.jit, static_argnums=0)
def _decode(config: VAEConfig, params: Params, latent: Latent) -> NewImage:
    large = latent.shape[1] * latent.shape[2] * config.factor**2 > LARGE
    latent = latent.astype(jnp.float32)
    if large:
        return bands.run(config, "float32", params, latent, "decode")
    return TinyAutoencoder(config).apply({"params": params}, latent, method="decode")  # type: ignore[return-value]


@functools.lru_cache(maxsize=2)
def _on_device(taesd: LoadedTAESD) -> Params:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), {"decoder": taesd.params["decoder"]})


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
