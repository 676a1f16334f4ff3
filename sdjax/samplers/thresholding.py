"""Dynamic thresholding: keeps what the denoiser answers within bounds, for models of pixels."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from sdjax.samplers.base import Denoiser, Rule, State, Steps
from sdjax.typing import Latent


def dynamic_threshold(denoise: Denoiser, quantile: float = 0.995, max_value: float = 1.0) -> Denoiser:
    """Returns the denoiser with each picture's x0 clipped to [-s, s] and divided by s.

    s is the quantile of the picture's absolute values, but at least `max_value`. It is meant for models of
    pixels in [-1, 1]; latents have no bounds to keep.

    Source: Saharia et al. 2022 (arXiv 2205.11487), 2.3; DPM-Solver's dynamic_thresholding_fn.
    """

    def thresholded(x: Latent, row: Steps) -> Latent:
        x0 = denoise(x, row)
        s = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), quantile, axis=1)
        s = jnp.maximum(s, max_value)[:, None, None, None]
        return jnp.clip(x0, -s, s) / s

    return thresholded


@dataclasses.dataclass(frozen=True)
class Thresholded:
    """Another rule, with thresholding of what the denoiser answers."""

    rule: Rule
    quantile: float
    max_value: float

    def init(self, x: Latent) -> State:
        """Returns the state before the first row."""
        return self.rule.init(x)

    def advance(self, denoise: Denoiser, state: State, row: Steps, noise: Callable[[], Latent]) -> State:
        """Returns the state after a row."""
        return self.rule.advance(dynamic_threshold(denoise, self.quantile, self.max_value), state, row, noise)
