"""A sampler as another tool runs it (`tools.py`), with the interface of every sampler."""

import dataclasses

import numpy as np

from sdjax.samplers.rows import Rows, first_sigma, per_image
from sdjax.samplers.rule import Noisy, Rule
from sdjax.samplers.sampler import Sampler
from sdjax.samplers.spacing import Grid
from sdjax.samplers.start import Start
from sdjax.samplers.tools import Recipe, recipe
from sdjax.schedule import NoiseSchedule


def _euler() -> Recipe:
    return recipe("k_diffusion", "euler")


@dataclasses.dataclass(frozen=True)
class ToolSampler(Sampler):
    """The sampler of a recipe. The recipe has the schedule and the end: `spacing` and `end` have no effect."""

    recipe: Recipe = dataclasses.field(default_factory=_euler)

    @property
    def rule(self) -> Rule:
        """The compiled part of the sampler."""
        return self.recipe.sampler.rule

    @property
    def variance_preserving(self) -> bool:  # type: ignore[override]
        """Whether the first x has the variance of a noisy latent."""
        return self.recipe.begins == "variance_preserving"

    @property
    def uses_unconditional(self) -> bool:
        """Whether the steps use the unconditional x0 (CFG++)."""
        return self.recipe.sampler.uses_unconditional

    def grid(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Grid:
        """Returns where the steps start and end, without the first `skip` of them."""
        t, sigma = self.recipe.sigmas(self.recipe.noise_schedule(schedule), num_steps)
        if not 0 <= skip < len(sigma) - 1:
            raise ValueError(f"cannot leave out the first {skip} of {len(sigma) - 1} steps: at least one must remain")
        return Grid(t[skip:], sigma[skip:])

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns the rows of one image, without the first `skip` steps."""
        return self.recipe.rows(self.recipe.noise_schedule(schedule), self.grid(schedule, num_steps, skip=skip))

    def initial(self, noise: Noisy, rows: Rows) -> Noisy:
        """Returns the first x, given unit noise."""
        sigma = first_sigma(rows)[0]
        return noise * per_image((1 + sigma**2) ** 0.5 if self.variance_preserving else sigma, noise)

    def begin(self, schedule: NoiseSchedule, num_steps: int, strength: float | None, *, exact: bool = False) -> Start:
        """Returns the start of a run as the tool makes it (`Recipe.begin`). `strength` None: without a latent."""
        if strength == 0:
            return Start(None, np.float32(1), np.float32(0))
        return self.recipe.begin(schedule, num_steps, strength=strength, exact_steps=exact)
