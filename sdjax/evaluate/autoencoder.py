"""Judging without any further file: Fréchet distance on the features of an autoencoder."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sdjax.evaluate.extractors import Picture
from sdjax.evaluate.measures import frechet_measure
from sdjax.pictures import resize
from sdjax.pictures.image import to_float
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline

NAME = "autoencoder"
CELLS = 4  # rows and columns of a picture's features: few, so that some hundred pictures have a covariance
FD_AUTOENCODER = frechet_measure("fd-autoencoder", "Fréchet distance of latents", NAME, "latent")


@dataclasses.dataclass(frozen=True, eq=False)
class AutoencoderFeatures:
    """The features of a model's autoencoder: the mean of the latent, averaged over CELLS x CELLS squares.

    Pictures are first brought to the model's own size. `batch` pictures are encoded at a time.
    """

    pipe: Pipeline
    batch: int = 16
    name: str = NAME

    @functools.cached_property
    def identity(self) -> str:
        """A hash of the autoencoder's parameters: distances by another autoencoder are not comparable."""
        digest = hashlib.sha256(str(self.pipe.config.image_size).encode())
        for leaf in jax.tree.leaves(self.pipe.params["vae"]):
            digest.update(np.ascontiguousarray(np.asarray(leaf)).tobytes())
        return f"{self.name} {digest.hexdigest()[:16]}"

    def __call__(self, pictures: Sequence[Picture], captions: Sequence[str]) -> Mapping[str, Float[np.ndarray, "n d"]]:
        """Returns {"latent": [n, CELLS * CELLS * channels]}. Captions are not used."""
        side, rows = self.pipe.config.image_size, []
        if len(captions) != len(pictures):
            raise ValueError(f"every picture has a caption; got {len(pictures)} and {len(captions)}")
        for start in range(0, len(pictures), self.batch):
            part = [self._sized(picture, side) for picture in pictures[start : start + self.batch]]
            filled = np.stack(placement.fill(part, self.batch))
            latent = np.asarray(self.pipe.encode_image(jnp.asarray(to_float(filled))), np.float32)[: len(part)]
            n, h, w, c = latent.shape
            if h % CELLS or w % CELLS:
                raise ValueError(
                    f"an autoencoder with latents of {h} x {w} has no features of {CELLS} x {CELLS} squares"
                )
            cells = latent.reshape(n, CELLS, h // CELLS, CELLS, w // CELLS, c).mean((2, 4))
            rows.append(cells.reshape(n, -1))
        return {"latent": np.concatenate(rows)}

    @staticmethod
    def _sized(picture: Picture, side: int) -> Picture:
        return picture if picture.shape[:2] == (side, side) else resize(picture, side, side, "lanczos")
