"""Limits for the denoiser's x0, for models of pixels: dynamic thresholding, and clipping."""

import dataclasses
from typing import Protocol

import jax.numpy as jnp

from sdjax.samplers.rows import Rows, per_image
from sdjax.samplers.rule import Changed, Denoised, Denoiser, Draw, Noisy, Rule, State


def dynamic_threshold(
    x0: Noisy, quantile: float = 0.995, max_value: float = 1.0, most: float | None = None
) -> Noisy:  # fmt: skip
    """Returns x0 clipped to [-s, s] and divided by s, each image by its own s.

    s is the quantile of the image's absolute values, and at least `max_value`. If `most` is given, s is at most that,
    as in diffusers. Use it for models of pixels in [-1, 1]; latents have no fixed bounds.

    Source: Saharia et al. 2022 (arXiv 2205.11487), 2.3; DPM-Solver's dynamic_thresholding_fn; diffusers'
    _threshold_sample.
    """
    s = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), quantile, axis=1)
    s = per_image(jnp.clip(s, max_value, most), x0)
    return jnp.clip(x0, -s, s) / s


class Limit(Protocol):
    """A limit for x0. It must be hashable: programs are compiled for it."""

    def __call__(self, x0: Noisy) -> Noisy:
        """Returns the limited x0."""
        ...


@dataclasses.dataclass(frozen=True)
class Clip:
    """Clips x0 to [-largest, largest]."""

    largest: float = 1.0

    def __call__(self, x0: Noisy) -> Noisy:
        """Returns the clipped x0."""
        return jnp.clip(x0, -self.largest, self.largest)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Dynamic thresholding with the arguments of `dynamic_threshold`. The result is within [-unit, unit]."""

    quantile: float = 0.995
    max_value: float = 1.0
    most: float | None = None
    unit: float = 1.0

    def __call__(self, x0: Noisy) -> Noisy:
        """Returns the thresholded x0."""
        return self.unit * dynamic_threshold(x0, self.quantile, self.max_value, self.most)


@dataclasses.dataclass(frozen=True)
class Limited:
    """A rule that wraps another rule and limits the denoiser's x0.

    With `beside` x0 stays as it is, and the limited one takes the place of the unconditional x0, so that a row can
    weigh both (`Coef.remember`).
    """

    rule: Rule
    limit: Limit
    beside: bool = False

    def init(self, x: Noisy) -> State:
        """Returns the state before the first row."""
        return self.rule.init(x)

    def advance(self, denoise: Denoiser, state: State, row: Rows, draw: Draw) -> State:
        """Returns the state after a row."""

        def limited(denoised: Denoised) -> Denoised:
            x0 = self.limit(denoised.x0)
            return denoised._replace(unconditional=x0) if self.beside else denoised._replace(x0=x0)

        return self.rule.advance(Changed(denoise, limited), state, row, draw)
