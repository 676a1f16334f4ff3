"""Keeps a known part of the latent fixed: inpainting with a model that takes no mask."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool

from sdjax.samplers.noise import MASK, draw_noise
from sdjax.samplers.rows import Rows, per_image
from sdjax.samplers.rule import Changed, Constrain, Denoised, Denoiser
from sdjax.typing import Keys, Latent


@struct.dataclass
class Known:
    """A latent [b, h, w, c]. Entries where `keep` [b, h, w, 1] is true are known and stay; the others are sampled."""

    latent: Latent
    keep: Bool[Array, "b h w 1"]

    def put(self, x: Latent) -> Latent:
        """Returns x with the known part replaced by the known latent, exactly."""
        return jnp.where(self.keep, self.latent, x)

    def constrain(self, keys: Keys) -> Constrain:
        """Returns a function (x, row) -> x that replaces the known part, with fresh noise of the row's level.

        Source: the `mask` of ldm/models/diffusion/ddim.py, where 1 keeps.
        """

        def replace(x: Latent, row: Rows) -> Latent:
            noise = draw_noise(keys, MASK, jnp.asarray(row.index), x.shape[1:])
            return jnp.where(self.keep, self.latent + per_image(row.sigma, x) * noise, x)

        return replace

    def answer(self, denoise: Denoiser) -> Denoiser:
        """Returns the denoiser with the known part of its x0 replaced by the known latent.

        `constrain` works only at the start of a step. This keeps the known part right in between: in the second call of
        a step, and during the adaptive solver's whole run, which is a single row.
        """

        def right(denoised: Denoised) -> Denoised:
            return jax.tree.map(self.put, denoised)

        return Changed(denoise, right)
