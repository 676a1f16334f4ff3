"""ER-SDE: solvers of an extended family of reverse SDEs, chosen by how much noise they add at each sigma."""

import dataclasses
from typing import ClassVar

import numpy as np

from sdjax.checks.arguments import whole
from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sampler import End, Sampler, check_numbers
from sdjax.samplers.spacing import Grid
from sdjax.schedule import NoiseSchedule

POINTS = 200  # of the reference's quadrature


def noise_scale(sigma: np.ndarray | float) -> np.ndarray:
    """Returns phi(sigma) = sigma (e^(sigma^0.3) + 10): the paper's "ER SDE 5", which the reference uses."""
    return np.asarray(sigma * (np.exp(sigma**0.3) + 10))


@dataclasses.dataclass(frozen=True)
class ERSDE(Sampler):
    """ER-SDE-Solver-1, -2 and -3. With r = phi(sigma') / phi(sigma) and dt = sigma' - sigma:

        x' = r x + (1 - r) x0 + (dt + phi(sigma') S) D1 + (dt^2 / 2 + phi(sigma') S_u) D2
             + s_noise sqrt(sigma'^2 - r^2 sigma^2) z,
        S = integral of 1 / phi,  S_u = integral of (u - sigma) / phi(u), both from sigma' to sigma.

    D1 and D2 are divided differences of x0 over the last two and three sigmas: D1 = (x0 - x0_1) / (sigma - sigma_1),
    D2 = 2 (D1 - D1_previous) / (sigma - sigma_2). The integrals are sums over 200 points, as in the reference.
    `max_stage` 2 adds the term with D1, 3 that with D2; the first steps have fewer terms. D1 is the slope half a step
    back, so the order with all terms is 2 as well, with a smaller error.

    Source: Cui et al. 2023 (arXiv 2309.06169), algorithms 1 to 3; ComfyUI's sample_er_sde.
    """

    spacing: str = "karras"
    end: End = "zero"
    max_stage: int = 3
    s_noise: float = 1.0
    brownian: bool = True
    variance_preserving: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("max_stage", self.max_stage, 1, 3)
        check_numbers(self, "s_noise")

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step."""
        t, sigma = grid
        rows = []
        for i in range(len(t) - 1):
            here, there = sigma[i], sigma[i + 1]
            ratio = noise_scale(there) / noise_scale(here)
            calls = (1 - ratio) * np.eye(3)[0]
            if there > 0:
                for weight, difference in zip(self._weights(here, there), self._differences(sigma[: i + 1])):
                    calls += weight * difference
            weight = np.sqrt(max(there**2 - (ratio * here) ** 2, 0.0))
            noise = self.s_noise * weight
            rows.append(row(t[i], here, there, base=ratio, calls=calls, noise=noise, brownian=self.brownian))
        return stack(rows)

    def _weights(self, here: float, there: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the weights of D1 and D2."""
        dt = there - here
        width = -dt / POINTS
        at = there + np.arange(POINTS) * width
        plain = np.sum(1 / noise_scale(at)) * width
        tilted = np.sum((at - here) / noise_scale(at)) * width
        return dt + plain * noise_scale(there), dt**2 / 2 + tilted * noise_scale(there)

    def _differences(self, sigma: np.ndarray) -> list[np.ndarray]:
        """Returns D1 and D2 as weights of the last three x0, newest first: as many as the order and the calls allow."""
        now, used = np.eye(3), min(self.max_stage, len(sigma))
        if used == 1:
            return []
        first = (now[0] - now[1]) / (sigma[-1] - sigma[-2])
        if used == 2:
            return [first]
        previous = (now[1] - now[2]) / (sigma[-2] - sigma[-3])
        return [first, 2 * (first - previous) / (sigma[-1] - sigma[-3])]
