"""SEEDS: exponential solvers of the reverse SDE whose inner calls see the noise that the step has drawn so far.

lambda is -log sigma, h the step in lambda, H = (1 + eta) h. A step goes through the shares 0 < r_1 < r_2 < 1 of h. Each
leg keeps the noise that the leg before it has left, shrunk, and adds its own. So it starts from the x before it, not
from the start of the step:

    x_2 = e^(-r_1 H) x + (1 - e^(-r_1 H)) x0 + noise,
    x_k+1 = q (x_k - m_k) + m_k+1 + noise,  q = e^(-(r_k - r_k-1) H),

where m_k is what the x0 of the step's calls contribute to x_k. The noise of a leg from sigma_k to sigma_k+1 is
s_noise sigma_k+1 sqrt(1 - e^(-2 eta log(sigma_k / sigma_k+1))) z.

Source: Gonzalez et al. 2023 (arXiv 2305.14267), algorithms 3 and 4; ComfyUI's sample_seeds_2 and sample_seeds_3.
"""

import dataclasses

import numpy as np

from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sde import Stochastic, check_share
from sdjax.samplers.spacing import Grid, from_noise_alone
from sdjax.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class Seeds(Stochastic):
    """The base of SEEDS: one row for each place of a step."""

    @property
    def places(self) -> list[float]:
        """The shares of h where the calls are, from 0 to below 1."""
        raise NotImplementedError

    def contributions(self, eta_h: float) -> list[np.ndarray]:
        """Returns the weights of the x0 of the step's calls, oldest first, in m_2, m_3, ..., and in the next x.

        `eta_h` is H.
        """
        raise NotImplementedError

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns a row for each place, but one row for a step that ends without noise or starts from pure noise."""
        rows = []
        for t, sigma, sigma_next in zip(grid.timestep, grid.sigma, grid.sigma[1:]):
            if sigma_next == 0 or from_noise_alone(schedule, t):
                rows.append(self.first_order(t, sigma, sigma_next))
                continue
            places = [*self.places, 1.0]
            sigmas = sigma * (sigma_next / sigma) ** np.array(places)
            h = np.log(sigma / sigma_next)
            before = np.zeros(0)
            for k, after in enumerate(self.contributions((1 + self.eta) * h)):
                here, there = sigmas[k], sigmas[k + 1]
                ratio = there / here
                q = ratio ** (1 + self.eta)
                calls = after - q * np.pad(before, (0, len(after) - len(before)))
                fresh = self.noise(here, there, there * np.sqrt(1 - ratio ** (2 * self.eta)))
                told = t if k == 0 else float(schedule.timestep(here, "log_sigma"))
                rows.append(row(
                    told, here, there, base=0.0, own=(q, 0.0, 0.0), calls=calls[::-1], **fresh, starts_step=k == 0
                ))  # fmt: skip
                before = after
        return stack(rows)


@dataclasses.dataclass(frozen=True)
class Seeds2(Seeds):
    """SEEDS-2: the second call is at the share `r`. m_3 = (1 - e^(-H)) ((1 - 1 / (2 r)) x0 + x0_2 / (2 r))."""

    r: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("r", self.r)

    @property
    def places(self) -> list[float]:
        return [0.0, self.r]

    def contributions(self, eta_h: float) -> list[np.ndarray]:
        share = 1 / (2 * self.r)
        return [
            -np.expm1(-self.r * eta_h) * np.array([1.0]),
            -np.expm1(-eta_h) * np.array([1 - share, share]),
        ]


@dataclasses.dataclass(frozen=True)
class Seeds3(Seeds):
    """SEEDS-3: calls at the shares `r_1` and `r_2`. With psi(k) = (e^(-k) - 1) / k + 1:

    m_3 = (1 - e^(-r_2 H)) x0 + (r_2 / r_1) psi(r_2 H) (x0_2 - x0),
    m_4 = (1 - e^(-H)) x0 + psi(H) / r_2 (x0_3 - x0).
    """

    r_1: float = 1 / 3
    r_2: float = 2 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("r_2", self.r_2)
        if not 0 < self.r_1 < self.r_2:
            raise ValueError(f"r_1 is a number between 0 and r_2, {self.r_2:g}; got {self.r_1!r}")

    @property
    def places(self) -> list[float]:
        return [0.0, self.r_1, self.r_2]

    def contributions(self, eta_h: float) -> list[np.ndarray]:
        k_1, k_2 = self.r_1 * eta_h, self.r_2 * eta_h
        second = self.r_2 / self.r_1 * (np.expm1(-k_2) / k_2 + 1)
        third = (np.expm1(-eta_h) / eta_h + 1) / self.r_2
        return [
            -np.expm1(-k_1) * np.array([1.0]),
            np.array([-np.expm1(-k_2) - second, second]),
            np.array([-np.expm1(-eta_h) - third, 0.0, third]),
        ]
