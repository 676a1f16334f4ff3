"""Keeps a known part of the latent fixed: inpainting with a model that takes no mask."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from sdjax.samplers.noise import MASK, draw_noise
from sdjax.samplers.rows import Rows, per_image
from sdjax.samplers.rule import Changed, Constrain, Denoised, Denoiser, Memory, Noisy
from sdjax.typing import Keys, Latent


class Constraint(Protocol):
    """What is known of the latent while it is sampled: a pytree whose arrays have the batch as their first axis."""

    def constrain(self, keys: Keys) -> Constrain:
        """Returns a function (x, row) -> x for the start of every step."""
        ...

    def answer(self, denoise: Denoiser) -> Denoiser:
        """Returns the denoiser with the known part in its answers."""
        ...


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


@struct.dataclass
class Held:
    """A latent [b, h, w, c] that is held where `mask` [b, h, w, 1] is 0 and sampled where it is 1; in between, partly.

    The network always sees the held part with one and the same `noise`, and the sampler's x is left alone.

    Source: ComfyUI's comfy/samplers.py, KSamplerX0Inpaint.
    """

    latent: Latent
    mask: Float[Array, "b h w 1"]
    noise: Latent

    def constrain(self, keys: Keys) -> Constrain:
        """Returns a function that changes nothing."""
        return lambda x, row: x

    def answer(self, denoise: Denoiser) -> Denoiser:
        """Returns the denoiser that sees the held part, and answers with it."""
        return _Holding(denoise, self)


@dataclasses.dataclass(frozen=True, eq=False)
class _Holding:
    denoiser: Denoiser
    held: Held

    def init(self, x: Noisy) -> Memory:
        return self.denoiser.init(x)

    def __call__(self, x: Noisy, row: Rows, memory: Memory) -> tuple[Denoised, Memory]:
        held = self.held
        latent, mask = held.latent, held.mask
        seen = x * mask + (latent + per_image(row.sigma, x) * held.noise) * (1 - mask)
        denoised, memory = self.denoiser(seen, row, memory)
        return jax.tree.map(lambda x0: x0 * mask + latent * (1 - mask), denoised), memory
