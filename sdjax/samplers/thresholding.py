"""Dynamic thresholding: limits the denoiser's x0, for models of pixels."""

import dataclasses

import jax.numpy as jnp

from sdjax.samplers.rows import Rows, per_image
from sdjax.samplers.rule import Changed, Denoised, Denoiser, Draw, Noisy, Rule, State


def dynamic_threshold(x0: Noisy, quantile: float = 0.995, max_value: float = 1.0) -> Noisy:
    """Returns x0 clipped to [-s, s] and divided by s, each image by its own s.

    s is the quantile of the image's absolute values, and at least `max_value`. Use it for models of pixels in [-1, 1];
    latents have no fixed bounds.

    Source: Saharia et al. 2022 (arXiv 2205.11487), 2.3; DPM-Solver's dynamic_thresholding_fn.
    """
    s = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), quantile, axis=1)
    s = per_image(jnp.maximum(s, max_value), x0)
    return jnp.clip(x0, -s, s) / s


@dataclasses.dataclass(frozen=True)
class Thresholded:
    """A rule with thresholding: it wraps another rule and limits the denoiser's x0."""

    rule: Rule
    quantile: float
    max_value: float

    def init(self, x: Noisy) -> State:
        """Returns the state before the first row."""
        return self.rule.init(x)

    def advance(self, denoise: Denoiser, state: State, row: Rows, draw: Draw) -> State:
        """Returns the state after a row."""

        def bounded(denoised: Denoised) -> Denoised:
            return denoised._replace(x0=dynamic_threshold(denoised.x0, self.quantile, self.max_value))

        return self.rule.advance(Changed(denoise, bounded), state, row, draw)
