"""A sampler with the noise schedule of a scheduler's file, in the place of the model's."""

import dataclasses

import numpy as np

from sdjax.samplers.diffusers.grid import DiffusersGrid
from sdjax.samplers.diffusers.own import EDM, unscaled
from sdjax.samplers.diffusers.schedule import TableSchedule
from sdjax.samplers.rows import Rows, per_image
from sdjax.samplers.rule import Noisy, Rule, State
from sdjax.samplers.sampler import Sampler
from sdjax.samplers.spacing import Grid
from sdjax.samplers.thresholding import Limit, Limited
from sdjax.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class DiffusersSampler(Sampler):
    """A scheduler of diffusers: `method` makes its steps on the schedule `noise`, and `limit` limits x0.

    `beside` is that of `Limited`. `negated`: the network's output is the negative of what it should predict (EDM's
    "epsilon"); it is for the caller to change its sign. `class_name` is the scheduler's.
    """

    class_name: str = ""
    method: Sampler = dataclasses.field(default_factory=Sampler)
    noise: TableSchedule = TableSchedule()
    limit: Limit | None = None
    beside: bool = False
    negated: bool = False

    def __post_init__(self) -> None:
        if (self.spacing, self.end) != (Sampler.spacing, Sampler.end):
            raise ValueError(f"a sampler made from a file of {self.class_name} has its own spacing and end")

    @property
    def rule(self) -> Rule:
        """The compiled part of the sampler."""
        return self.method.rule if self.limit is None else Limited(self.method.rule, self.limit, self.beside)

    def grid(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Grid:
        """Returns where the steps start and end, without the first `skip` of them."""
        return self.method.grid(self.noise, num_steps, skip=skip)

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns the rows of one image. Raises ValueError unless the model predicts what the file says."""
        ours, theirs = schedule.config.prediction, self.noise.config.prediction
        if ours != theirs:
            raise ValueError(f"this {self.class_name} is for a model that predicts {theirs}; the model predicts {ours}")
        rows, spacing = self.method.steps(self.noise, num_steps, skip=skip), self.method.spacing
        keeps_scale = isinstance(spacing, DiffusersGrid) and not spacing.of_intervals
        return unscaled(rows) if keeps_scale and rows.sigma_next[-1] > 0 else rows

    def sigmas(self, num_steps: int) -> np.ndarray:
        """Returns what diffusers keeps in `scheduler.sigmas` after `set_timesteps`."""
        sigma, spacing = self.method.grid(self.noise, num_steps).sigma, self.method.spacing
        if isinstance(spacing, DiffusersGrid) and spacing.log_linear and spacing.sigmas == "table":
            sigma = np.append(sigma, 0.0 if spacing.last == "zero" else self.noise.sigmas[0])
        return sigma * self.method.own.sigma_data if isinstance(self.method, EDM) else sigma

    def initial(self, noise: Noisy, rows: Rows) -> Noisy:
        """Returns the first x, given unit noise: diffusers' init_noise_sigma, and its variance-preserving latents."""
        if isinstance(self.method, EDM):
            return self.method.initial(noise, rows)
        sigma = rows.sigma[0]
        preserves = getattr(self.method.spacing, "variance_preserving", True)
        return noise * per_image((1 + sigma**2) ** 0.5 if preserves else sigma, noise)

    def final(self, state: State, rows: Rows) -> Noisy:
        """Returns the latent after the last row."""
        return self.method.final(state, rows)

    @property
    def ends_alone(self) -> bool:
        """Whether the method has its own `final`, and so shares no batch with other samplers."""
        return self.method.ends_alone
