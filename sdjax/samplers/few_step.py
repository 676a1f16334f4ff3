"""TCD: few steps with a model distilled for it. (LCM is in ancestral.py.)"""

import dataclasses

import numpy as np

from sdjax.checks.arguments import number
from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sampler import Sampler
from sdjax.samplers.schedules import Schedule
from sdjax.samplers.spacing import Grid
from sdjax.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class TCD(Sampler):
    """Trajectory consistency distillation: jump to the timestep s = floor((1 - gamma) t'), then add noise up to t'.

    x' = x0 + sigma_s epsilon + sqrt(sigma'^2 - sigma_s^2) z.

    `eta` is the paper's gamma, from 0 (no fresh noise) to 1 (like LCM). The last step goes to timestep 0 without noise.
    Needs weights distilled for it.

    Source: Zheng et al. 2024 (arXiv 2402.19159), algorithm 4; diffusers' TCDScheduler.
    """

    spacing: str | Schedule = "lcm"
    eta: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        number("eta", self.eta, 0, 1)

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step."""
        t, sigma = grid
        n = len(t) - 1
        rows = []
        for i in range(n):
            s = int(np.float32(1 - self.eta) * np.float32(t[i + 1]))  # rounded down from float32, as in diffusers
            down = sigma[i + 1] if i == n - 1 else schedule.sigmas[s]
            keep = down / sigma[i]
            noise = np.sqrt(max(0.0, sigma[i + 1] ** 2 - down**2))
            rows.append(row(t[i], sigma[i], sigma[i + 1], base=keep, calls=[1 - keep], noise=noise))
        return stack(rows)
