"""A group of pictures: those of a batch that share a compiled program."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdjax.pipeline.model import Pipeline
from sdjax.samplers import Linear, Start
from sdjax.tasks.computing import Computing
from sdjax.tasks.resolve import Resolved


class Group(NamedTuple):
    """Pictures of one program, as many as the devices compute at once, and how.

    `after[i]`: steps of an earlier pass, from which prompts that change count on; () without one.
    """

    requests: Sequence[Resolved]
    starts: Sequence[Start]
    pipe: Pipeline
    how: Computing
    after: Sequence[int] = ()

    @property
    def first(self) -> Resolved:
        """The first picture, which has in common with the others what decides the program."""
        return self.requests[0]

    @property
    def timesteps(self) -> list[np.ndarray]:
        """The timesteps of all calls of each picture, as if it started from noise.

        Of adaptive samplers, which choose them later, they are all that there are. So a share of the steps is a share
        of the timesteps there, as for `sdjax.tasks.control_arrays`.
        """
        return [
            np.ravel(one.sampler.steps(one.noise_schedule, one.num_steps).timestep)
            if isinstance(one.sampler.rule, Linear)
            else np.arange(one.noise_schedule.num_timesteps)[::-1]
            for one in self.requests
        ]

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        factor = self.pipe.config.vae.factor
        return self.first.height // factor, self.first.width // factor
