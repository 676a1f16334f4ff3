"""Where image to image starts: how many steps a strength leaves, and what the first x is made of.

Strength s of n steps leaves floor(s n) of them: those at the end. 0 leaves none, and the picture is its autoencoder's
round trip; 1 leaves all, and they start from pure noise as text to image does. In between the first step that is left
starts at its own noise level, x = x0 + sigma noise.

Both releases' scripts are one step off: they add the noise of the last step that is left out, and then take the
first step that is left. `compat` "compvis" does so too, and counts the steps as they do.

Source: Meng et al. 2022 (arXiv 2108.01073), algorithm 1; scripts/img2img.py, ldm/models/diffusion/ddim.py.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from sdjax.checks.arguments import number
from sdjax.samplers.rows import Rows
from sdjax.samplers.sampler import Sampler
from sdjax.schedule import NoiseSchedule

COMPAT = ("compvis",)


class Start(NamedTuple):
    """The rows to run, None where there are none, and the weights of the latent and of unit noise in the first x."""

    rows: Rows | None
    of_x0: np.float32
    of_noise: np.float32

    @property
    def needs_x0(self) -> bool:
        """Whether anything of the latent goes in."""
        return bool(self.of_x0 != 0)


def make_start(
    sampler: Sampler, schedule: NoiseSchedule, num_steps: int, strength: float = 1.0, *, compat: str | None = None
) -> Start:
    """Returns what a run of `num_steps` steps starts from at a strength from 0 to 1.

    Raises ValueError for a strength outside, an unknown `compat`, and what the sampler raises for its steps.
    """
    strength = number("strength", strength, 0, 1, " (0 keeps the picture, 1 starts from pure noise)")
    if compat not in (None, *COMPAT):
        raise ValueError(f"unknown compat {compat!r}; the known ones are {', '.join(COMPAT)}")
    sigma = sampler.grid(schedule, num_steps).sigma
    count = len(sigma) - 1
    # Not exactly s n in floating point: 0.29 * 100 is 28.999...; the references cut it all the same
    left = int(strength * num_steps) if compat else math.floor(strength * count + 1e-9)
    left = min(left, count)
    if left == 0:
        return Start(None, np.float32(1), np.float32(0))
    skip = count - left
    rows = sampler.steps(schedule, num_steps, skip=skip)
    if skip == 0:
        return Start(rows, np.float32(0), np.float32(sampler.initial(jnp.ones(1), rows)[0]))
    if compat is None:
        return Start(rows, np.float32(1), np.float32(sigma[skip]))
    # Their latent is variance-preserving: made with the noise before `skip`, it is taken for one with that at `skip`
    of_x0 = ((1 + sigma[skip] ** 2) / (1 + sigma[skip - 1] ** 2)) ** 0.5
    return Start(rows, np.float32(of_x0), np.float32(of_x0 * sigma[skip - 1]))
