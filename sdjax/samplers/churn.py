"""Churn: noise that is added before a step, which then starts higher and removes it again."""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import numpy as np

from sdjax.checks.effects import needs, note_effects
from sdjax.samplers.rows import Coef, Rows
from sdjax.samplers.sampler import End, Sampler, check_numbers
from sdjax.samplers.schedules import Schedule
from sdjax.schedule import NoiseSchedule

CHURNS = (lambda s: s.s_churn > 0, "with s_churn 0")
NOISY = (lambda s: s.s_churn > 0 or getattr(s, "eta", 0) > 0, "without noise: with eta and s_churn 0")


class Raised(NamedTuple):
    """Where a step starts after churn; the weight of the noise that leads there, and the sigmas before and after."""

    timestep: float
    sigma: float
    weight: float
    interval: tuple[float, float]

    def begin(self, first: Rows) -> Rows:
        """Returns a step's first row with the churn before it."""
        assert isinstance(first.coef, Coef)
        if self.interval == (0, 0):
            return first
        return first._replace(coef=first.coef._replace(churn=np.asarray(self.weight)), interval=np.array(self.interval))


@dataclasses.dataclass(frozen=True)
class Churned(Sampler):
    """The base of samplers with churn, sigma_hat = (1 + gamma) sigma:

    x_hat = x + s_noise sqrt(sigma_hat^2 - sigma^2) z, with gamma = min(s_churn / N, sqrt(2) - 1) for N steps.

    Only steps that start between `s_tmin` and `s_tmax` churn; with `s_tmax` 0 or infinity there is no upper limit.
    `s_noise` scales all noise of the sampler: a little more than 1 makes up for detail that the network's blur costs.

    Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 2.
    """

    spacing: str | Schedule = "karras"
    end: End = "zero"
    s_churn: float = 0.0
    s_tmin: float = needs(0.0, *CHURNS)
    s_tmax: float = needs(0.0, *CHURNS)
    s_noise: float = needs(1.0, *NOISY)
    variance_preserving: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.s_tmax == math.inf:
            object.__setattr__(self, "s_tmax", 0.0)  # one value for one meaning; JSON has no infinity
        check_numbers(self, "s_churn", "s_tmin", "s_tmax", "s_noise")
        if 0 < self.s_tmax < self.s_tmin:
            raise ValueError(
                f"s_tmin is at most s_tmax, or no step churns; got s_tmin {self.s_tmin:g} and s_tmax {self.s_tmax:g}"
            )
        if self.s_churn > 0 and getattr(self, "eta", 0) > 0:
            raise ValueError(
                f"a step adds noise at its start (s_churn {self.s_churn:g}) or at its end (eta): set one to 0"
            )
        note_effects(self)

    def churn(self, schedule: NoiseSchedule, timestep: float, sigma: float, steps: int) -> Raised:
        """Returns the start of a step after churn, for a run of so many steps."""
        gamma = 0.0
        if self.s_tmin <= sigma <= (self.s_tmax or math.inf):
            gamma = min(self.s_churn / steps, math.sqrt(2) - 1)
        if gamma == 0:
            return Raised(timestep, sigma, 0.0, (sigma, sigma) if self.s_churn > 0 else (0.0, 0.0))
        raised = sigma * (1 + gamma)
        timestep = float(np.clip(schedule.timestep(raised, "log_sigma"), 0, schedule.num_timesteps - 1))
        weight = self.s_noise * math.sqrt(raised**2 - sigma**2)
        return Raised(timestep, raised, weight, (sigma, raised))
