"""Keeping a part of the latent while the rest is made: inpainting with a model that knows no mask."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool

from sdjax.samplers import base
from sdjax.typing import Key, Latent


@struct.dataclass
class Known:
    """A latent [b, h, w, c] of which the entries in `keep` [b, h, w, 1] are known and stay; the others are made."""

    latent: Latent
    keep: Bool[Array, "b h w 1"]

    def put(self, x: Latent) -> Latent:
        """Returns x with what is known in its place, exactly."""
        return jnp.where(self.keep, self.latent, x)

    def constrain(self, keys: Key) -> base.Constrain:
        """Returns (x, row) -> x in which the known part is replaced by itself with fresh noise of the row's level.

        Source: the `mask` of ldm/models/diffusion/ddim.py, where 1 keeps.
        """

        def replace(x: Latent, row: base.Steps) -> Latent:
            noise = base.draw_noise(keys, base.MASK, row.index, x.shape[1:])
            return jnp.where(self.keep, self.latent + row.sigma * noise, x)

        return replace

    def answer(self, denoise: base.Denoiser) -> base.Denoiser:
        """Returns the denoiser with the known part of its x0 set right.

        Between the starts of steps the known part then follows its own noise down: in the second call of a step, and
        all along the adaptive solver's run, which is a single row.
        """

        def known(x: Latent, row: base.Steps) -> Latent:
            return self.put(denoise(x, row))

        return known
