"""DPM-Solver++(2M) SDE: second order, with fresh noise in each step."""

import dataclasses
from typing import ClassVar

import numpy as np

from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sampler import End, Sampler, check_eta
from sdjax.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class DPMSolverSDE(Sampler):
    """DPM-Solver++(2M) for the reverse SDE, midpoint form; eta 0 is DPM-Solver++(2M) itself.

    With h the step in lambda and r = h_previous / h:
    x' = sigma' / sigma e^(-eta h) x + (1 - e^(-(1 + eta) h)) (m + (m - m_previous) / (2 r))
       + sigma' sqrt(1 - e^(-2 eta h)) z.

    Source: Lu et al. 2022 (arXiv 2211.01095), section 5 and appendix; k-diffusion's sample_dpmpp_2m_sde.
    """

    spacing: str = "karras"
    end: End = "zero"
    eta: float = 1.0
    variance_preserving: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns one row per step."""
        t, sigma = self.grid(schedule, num_steps, skip=skip)
        rows = []
        for i in range(len(t) - 1):
            ratio = sigma[i + 1] / sigma[i]  # e^(-h)
            base = ratio ** (1 + self.eta)
            change = 0.0
            if i > 0 and ratio > 0:
                change = np.log(ratio) / np.log(sigma[i] / sigma[i - 1]) / 2  # 1 / (2 r)
            calls = (1 - base) * np.array([1 + change, -change])
            noise = sigma[i + 1] * np.sqrt(1 - ratio ** (2 * self.eta))
            rows.append(row(t[i], sigma[i], sigma[i + 1], base=base, calls=calls, noise=noise))
        return stack(rows)
