"""Samplers with two network calls per step, as in k-diffusion: Heun, DPM2, DPM-Solver++(2S).

With eta above 0 ("ancestral") a step goes further down, to the noise level of `split_noise`, and then adds fresh noise
up to the next level. A last step that ends without noise is Euler's, and so is a first step from pure noise.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from sdjax.samplers.ancestral import split_noise
from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sampler import End, Sampler, check_eta
from sdjax.samplers.spacing import from_noise_alone
from sdjax.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class TwoStage(Sampler):
    """The base of Heun, DPM2 and DPMSolver2S: N steps make 2 N - 1 rows."""

    spacing: str = "karras"
    end: End = "zero"
    eta: float = 0.0
    variance_preserving: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    def middle(self, sigma: float, down: float) -> float:
        """Returns the sigma of a step's second call."""
        return np.sqrt(sigma * down)

    def stages(self, sigma: float, middle: float, down: float) -> tuple[dict, dict]:
        """Returns the rows of a step's two calls: the first leads to `middle`, the second to `down`."""
        raise NotImplementedError

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns two rows per step, but one row for a step that ends without noise or starts from pure noise."""
        t, sigma = self.grid(schedule, num_steps, skip=skip)
        rows = []
        for i in range(len(t) - 1):
            down, up = split_noise(sigma[i], sigma[i + 1], self.eta)
            if down == 0 or from_noise_alone(schedule, t[i]):
                keep = down / sigma[i]
                rows.append(row(t[i], sigma[i], sigma[i + 1], base=keep, calls=[1 - keep], noise=up))
                continue
            middle = self.middle(sigma[i], down)
            first, second = self.stages(sigma[i], middle, down)
            t_middle = float(schedule.timestep(middle, "log_sigma"))
            rows.append(row(t[i], sigma[i], middle, **first))
            rows.append(row(t_middle, middle, sigma[i + 1], **second, noise=up, starts_step=False))
        return stack(rows)


class Heun(TwoStage):
    """Heun's method in sigma: the slope is the mean of the slopes at the start and at the end of the step.

    Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 1.
    """

    def middle(self, sigma: float, down: float) -> float:
        return down

    def stages(self, sigma: float, middle: float, down: float) -> tuple[dict, dict]:
        dt = down - sigma
        return (
            {"calls": [dt], "remember": "epsilon"},
            {"calls": [dt / 2, dt / 2], "remember": "epsilon"},
        )


class DPM2(TwoStage):
    """The midpoint method in sigma; the middle is halfway in log sigma. Source: k-diffusion's sample_dpm_2."""

    def stages(self, sigma: float, middle: float, down: float) -> tuple[dict, dict]:
        return (
            {"calls": [middle - sigma], "remember": "epsilon"},
            {"calls": [down - sigma], "remember": "epsilon"},
        )


class DPMSolver2S(TwoStage):
    """DPM-Solver++(2S): the midpoint method in log sigma for x0. Source: k-diffusion's sample_dpmpp_2s_ancestral."""

    def stages(self, sigma: float, middle: float, down: float) -> tuple[dict, dict]:
        return (
            {"base": middle / sigma, "calls": [1 - middle / sigma]},
            {"base": down / sigma, "calls": [1 - down / sigma]},
        )
