"""The start of image to image: the number of steps for a strength, and the first x.

With strength s, the last floor(s n) of n steps are made. Strength 0 makes none: the picture only goes through the
autoencoder. Strength 1 makes all, starting from pure noise like text to image. In between, the first step starts at
its own noise level, x = x0 + sigma noise.

The scripts of both releases are one step off: they add the noise of the last step that is left out, and then make the
next step. `compat` "compvis" does the same, and counts the steps as they do.

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
    """The rows to run (None if there are none), and the weights of the latent and of unit noise in the first x.

    `as_it_is`: a result that ends with noise is x itself, as k-diffusion has it, not x / sqrt(1 + sigma^2).
    """

    rows: Rows | None
    of_x0: np.float32
    of_noise: np.float32
    as_it_is: bool = False

    @property
    def needs_x0(self) -> bool:
        """Whether the first x contains the latent."""
        return bool(self.of_x0 != 0)


def make_start(
    sampler: Sampler, schedule: NoiseSchedule, num_steps: int, strength: float = 1.0, *, compat: str | None = None
) -> Start:
    """Returns the start of a run of `num_steps` steps. `strength` is from 0 to 1.

    Raises ValueError for a strength out of range, an unknown `compat`, and whenever the sampler's `steps` does.
    """
    strength = number("strength", strength, 0, 1, " (0 keeps the picture, 1 starts from pure noise)")
    if compat not in (None, *COMPAT):
        raise ValueError(f"unknown compat {compat!r}; the known ones are {', '.join(COMPAT)}")
    sigma = sampler.grid(schedule, num_steps).sigma
    count = len(sigma) - 1
    # In floating point 0.29 * 100 is 28.999..., which gives 28 steps; the references truncate it too
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
    # Their latent is variance-preserving. It has the noise of the step before `skip`, but is used as if it had that
    # of `skip`
    of_x0 = ((1 + sigma[skip] ** 2) / (1 + sigma[skip - 1] ** 2)) ** 0.5
    return Start(rows, np.float32(of_x0), np.float32(of_x0 * sigma[skip - 1]))
