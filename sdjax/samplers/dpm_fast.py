"""DPM-Solver-fast of k-diffusion: steps of order 3 at equal distances of log sigma, and an ancestral form."""

import dataclasses

import numpy as np

from sdjax.samplers.ancestral import AddsNoise, first_order, split_noise
from sdjax.samplers.dpm_solver import singlestep, singlestep_orders
from sdjax.samplers.rows import Rows, renoised, stack
from sdjax.samplers.sampler import End
from sdjax.samplers.spacing import Grid, from_noise_alone
from sdjax.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class DPMFast(AddsNoise):
    """DPM-Solver-fast: N network calls in steps of order 3, then of order 2 or 1 or both.

    Only the first and the last sigma above 0 of the spacing count; the steps between them have equal lengths in log
    sigma. With eta a step goes down to sigma_down, not below the last sigma, and adds noise up to sigma'.

    Source: Lu et al. 2022 (arXiv 2206.00927), algorithm 3 and appendix D; k-diffusion's sample_dpm_fast.
    """

    spacing: str = "exponential"
    end: End = "sigma_min"

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per call."""
        calls, rows = len(grid.timestep) - 1, []
        first, last = grid.sigma[0], grid.sigma[grid.sigma > 0][-1]
        if from_noise_alone(schedule, grid.timestep[0]) and calls > 1:
            # A step of order 3 would use differences of outputs over the first step, which have no meaning
            rows.append(first_order(grid.timestep[0], first, grid.sigma[1], eta=self.eta, s_noise=self.s_noise))
            first, calls = grid.sigma[1], calls - 1
        orders = singlestep_orders(calls, 3)
        ends = np.geomspace(first, last, len(orders) + 1)
        for order, sigma, sigma_next in zip(orders, ends, ends[1:]):
            down = max(split_noise(sigma, sigma_next, self.eta)[0], last)
            sigmas = np.geomspace(sigma, down, order + 1)
            step = singlestep(schedule.timestep(sigmas, "log_sigma"), sigmas, "dpmsolver", "dpm_solver")
            up = np.sqrt(max(sigma_next**2 - down**2, 0.0))
            step[-1] = renoised(step[-1], sigma_next, self.s_noise * up, (sigma, sigma_next))
            rows += step
        return stack(rows)
