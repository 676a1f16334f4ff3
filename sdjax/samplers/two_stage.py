"""Samplers with two network calls per step, as in k-diffusion: Heun, DPM2, DPM-Solver++(2S).

With eta above 0 ("ancestral") a step goes further down, to the noise level of `split_noise`, and then adds fresh noise
up to the next level. With churn it first goes up. A last step that ends without noise is Euler's, and so is a first
step from pure noise.
"""

import dataclasses

import numpy as np

from sdjax.samplers.ancestral import first_order, split_noise
from sdjax.samplers.churn import Churned
from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sampler import check_eta
from sdjax.samplers.spacing import Grid, from_noise_alone
from sdjax.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class TwoStage(Churned):
    """The base of Heun, DPM2 and DPMSolver2S: N steps make 2 N - 1 rows."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    def middle(self, sigma: float, down: float) -> float:
        """Returns the sigma of a step's second call."""
        return np.sqrt(sigma * down)

    def stages(self, sigma: float, middle: float, down: float) -> tuple[dict, dict]:
        """Returns the rows of a step's two calls: the first leads to `middle`, the second to `down`."""
        raise NotImplementedError

    def first_order(self, timestep: float, sigma: float, sigma_next: float) -> Rows:
        """Returns the row of a step with one call."""
        return first_order(timestep, sigma, sigma_next, eta=self.eta, s_noise=self.s_noise)

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns two rows per step, but one row for a step that ends without noise or starts from pure noise."""
        n = len(grid.timestep) - 1
        rows = []
        for i in range(n):
            t, sigma, sigma_next = grid.timestep[i], grid.sigma[i], grid.sigma[i + 1]
            start = self.churn(schedule, t, sigma, n)
            down, up = split_noise(start.sigma, sigma_next, self.eta)
            if down == 0 or from_noise_alone(schedule, t):
                rows.append(start.begin(self.first_order(start.timestep, start.sigma, sigma_next)))
                continue
            middle = self.middle(start.sigma, down)
            first, second = self.stages(start.sigma, middle, down)
            t_middle = float(schedule.timestep(middle, "log_sigma"))
            rows.append(start.begin(row(start.timestep, start.sigma, middle, **first)))
            rows.append(row(
                t_middle, middle, sigma_next, **second, noise=self.s_noise * up, interval=(sigma, sigma_next),
                starts_step=False,
            ))  # fmt: skip
        return stack(rows)


class Heun(TwoStage):
    """Heun's method in sigma: the slope is the mean of the slopes at the start and at the end of the step.

    x_2 = x_hat + (sigma' - sigma_hat) d,  x' = x_hat + (sigma' - sigma_hat) (d + d_2) / 2,  d = (x - x0) / sigma.

    Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 2.
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
    """The midpoint method in sigma; the middle is halfway in log sigma.

    x_2 = x_hat + (sigma_mid - sigma_hat) d,  x' = x_hat + (sigma_down - sigma_hat) d_2 + s_noise sigma_up z.

    Source: k-diffusion's sample_dpm_2 and sample_dpm_2_ancestral.
    """

    def stages(self, sigma: float, middle: float, down: float) -> tuple[dict, dict]:
        return (
            {"calls": [middle - sigma], "remember": "epsilon"},
            {"calls": [down - sigma], "remember": "epsilon"},
        )


@dataclasses.dataclass(frozen=True)
class DPMSolver2S(TwoStage):
    """DPM-Solver++(2S): the midpoint method in log sigma for x0.

    x_2 = sigma_mid / sigma x - (e^(-h / 2) - 1) x0,
    x' = sigma_down / sigma x - (e^(-h) - 1) x0_2 + s_noise sigma_up z,  h = log(sigma / sigma_down).

    With `cfg_pp` (CFG++) x is shifted by x0 - x0_unconditional before it is scaled. The second line takes the
    unconditional branch of the second call.

    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 1; k-diffusion's sample_dpmpp_2s_ancestral; ComfyUI's
    sample_dpmpp_2s_ancestral_cfg_pp.
    """

    cfg_pp: bool = False

    @property
    def uses_unconditional(self) -> bool:
        """Whether the steps use the unconditional x0."""
        return self.cfg_pp

    def first_order(self, timestep: float, sigma: float, sigma_next: float) -> Rows:
        return first_order(timestep, sigma, sigma_next, eta=self.eta, s_noise=self.s_noise, cfg_pp=self.cfg_pp)

    def stages(self, sigma: float, middle: float, down: float) -> tuple[dict, dict]:
        first, second = middle / sigma, down / sigma
        if self.cfg_pp:
            return (
                {"base": first, "calls": [1.0], "own": (0.0, 0.0, -first)},
                {"base": second, "calls": [1 - second, second], "own": (0.0, 0.0, -second)},
            )
        return (
            {"base": first, "calls": [1 - first]},
            {"base": second, "calls": [1 - second]},
        )
