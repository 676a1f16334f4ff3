"""Adams-Bashforth methods for epsilon: DEIS, iPNDM. Each step extrapolates the network's last outputs.

In x = x0 + sigma noise the probability flow is dx = epsilon dsigma. A step integrates a polynomial through the last
outputs. The methods differ in what epsilon is a polynomial of.
"""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from sdjax.samplers.exponential import adams_weights
from sdjax.samplers.multistep import ADAMS_BASHFORTH
from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sampler import End, Sampler, check_order, choose
from sdjax.samplers.schedules import Schedule
from sdjax.samplers.spacing import Grid
from sdjax.schedule import NoiseSchedule

POINTS = 10_000  # of the sum that stands for an integral in DEIS's "tab" form
POLYNOMIALS = ("log_sigma", "time")


def extrapolated(grid: Grid, i: int, weights: np.ndarray) -> Rows:
    """Returns the row of step i: x' = x + sum of weights[j] epsilon_j, with the last outputs, newest first."""
    return row(grid.timestep[i], grid.sigma[i], grid.sigma[i + 1], calls=weights, remember="epsilon")


def denoised(grid: Grid, i: int) -> Rows:
    """Returns the row of a step i that ends without noise: x' = x0. The result is remembered as epsilon, too."""
    return extrapolated(grid, i, np.array([-grid.sigma[i]]))


def vp_beta(epsilon: float = 1e-3, low: float = 0.002, high: float = 80.0) -> tuple[float, float]:
    """Returns beta_d and beta_min of the process with alpha_bar = e^(-beta_d t^2 / 2 - beta_min t).

    It has sigma `low` at t = `epsilon` and sigma `high` at t = 1.

    Source: Karras et al. 2022 (arXiv 2206.00364), appendix C.1; diff-sampler's edm2t.
    """
    first, last = np.log(low**2 + 1), np.log(high**2 + 1)
    beta_d = 2 * (first / epsilon - last) / (epsilon - 1)
    return beta_d, last - beta_d / 2


def time_weights(sigma: np.ndarray, order: int) -> np.ndarray:
    """Returns the weights of the last `order` epsilons, newest first, in a step from sigma[-2] to sigma[-1].

    They are the integrals of L_j(t) dsigma with the time t of `vp_beta`, as sums over 10,000 points (DEIS's "tAB").
    """
    beta_d, beta_min = vp_beta()
    t = (np.sqrt(beta_min**2 + 2 * beta_d * np.log(sigma[-order - 1 :] ** 2 + 1)) - beta_min) / beta_d
    nodes = t[-2::-1]
    at = np.linspace(t[-2], t[-1], POINTS)
    alpha = np.exp(-(at**2) * beta_d / 2 - at * beta_min)
    slope = (at * beta_d + beta_min) / 2 / np.sqrt(alpha * (1 - alpha))  # dsigma / dt
    weights = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        basis = np.prod([(at - other) / (node - other) for other in others], axis=0)
        weights.append(np.mean(slope * basis) * (t[-1] - t[-2]))
    return np.array(weights)


@dataclasses.dataclass(frozen=True)
class DEIS(Sampler):
    """DEIS: x' = x + sum_j C_j epsilon_j, where C_j is the integral of L_j over sigma from the step's start to its end.

    L_j are the Lagrange polynomials through the last outputs, in log sigma ("log_sigma": diffusers' log-rho, with exact
    integrals), or in the time of a variance-preserving process ("time": ComfyUI's "tab", with sums). With fewer
    steps than `lower_order_below` the last ones have lower order. A step that ends without noise takes x0.

    Source: Zhang & Chen 2023 (arXiv 2204.13902), eq. 15; DEISMultistepScheduler; ComfyUI's deis.
    """

    spacing: str | Schedule = "even"
    end: End = "zero"
    order: int = 3
    polynomial: Literal["log_sigma", "time"] = "log_sigma"
    lower_order_below: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        most = 3 if self.polynomial == "log_sigma" else 4
        choose("polynomial", self.polynomial, POLYNOMIALS)
        if self.order not in range(1, most + 1):
            raise ValueError(f"order of DEIS with polynomial {self.polynomial} is 1 to {most}; got {self.order}")
        if self.lower_order_below < 0:
            raise ValueError(f"lower_order_below is a number of steps from 0 up; got {self.lower_order_below}")

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns the rows of `rows`, without the first `skip` steps."""
        return self.rows(schedule, self.grid(schedule, num_steps, skip=skip), skip)

    def rows(self, schedule: NoiseSchedule, grid: Grid, skip: int = 0) -> Rows:
        """Returns one row per step."""
        sigma = grid.sigma
        n = len(sigma) - 1
        counts_all = isinstance(self.spacing, Schedule) and self.spacing.counts_all
        lowered = n + skip * counts_all < self.lower_order_below
        rows = []
        for i in range(n):
            if sigma[i + 1] == 0:
                rows.append(denoised(grid, i))
                continue
            p = min(self.order, i + 1, n - i) if lowered else min(self.order, i + 1)
            if p == 1:
                weights = np.array([sigma[i + 1] - sigma[i]])
            elif self.polynomial == "time":
                weights = time_weights(sigma[: i + 2], p)
            else:
                lam = -np.log(sigma[i + 1 - p : i + 2])[::-1]
                weights = -sigma[i + 1] * adams_weights(lam[1:], lam[1], lam[0], -1.0)
            rows.append(extrapolated(grid, i, weights))
        return stack(rows)


def variable_weights(sigma: np.ndarray, order: int) -> np.ndarray:
    """Returns iPNDM-v's weights of the last `order` epsilons, newest first, per unit of the step in sigma.

    With h the step's length and h1, h2, h3 those of the steps before it, newest first:

        a = (1 - h^2 / (3 h1 (h1 + h2))) / 2,
        b = ((1 - h / (3 (h + h1))) / 2 + (1 - h / (2 (h + h1))) h / (6 (h + h1 + h2)))
            * h (h + h1) (h + h1 + h2) / (h1 (h1 + h2) (h1 + h2 + h3)),
        c = h1 (h1 + h2) / (h2 (h2 + h3)),

        order 2: (1 + h / (2 h1), -h / (2 h1))
        order 3: order 2 + a (1, -1 - h1 / h2, h1 / h2)
        order 4: order 3 + b (1, -1 - h1 / h2 - c, h1 / h2 + c (1 + h2 / h3), -c h1 / h2)

    From order 3 on they are not the weights of Adams-Bashforth with variable steps: `a` lacks a bracket, and the last
    entry of order 4 has h1 / h2 in the place of h2 / h3. Their sum is not 1 in order 4. They are kept, because the
    pictures that people know are made with them.

    Source: diff-sampler's ipndm_v, as in ComfyUI.
    """
    h, h1, h2, h3 = np.append(np.diff(sigma)[::-1][:order], np.ones(4))[:4]
    weights = np.zeros(4)
    weights[:2] = 1 + h / h1 / 2, -h / h1 / 2
    if order > 2:
        a = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
        weights[:3] += a * np.array([1, -1 - h1 / h2, h1 / h2])
    if order > 3:
        b = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
        b *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        c = h1 * (h1 + h2) / (h2 * (h2 + h3))
        weights += b * np.array([1, -1 - h1 / h2 - c, h1 / h2 + c * (1 + h2 / h3), -c * h1 / h2])
    return weights[:order]


@dataclasses.dataclass(frozen=True)
class IPNDM(Sampler):
    """iPNDM: Adams-Bashforth over the last outputs, fewer at the start: x' = x + (sigma' - sigma) sum_j w_j epsilon_j.

    The weights w_j are those of equal steps (3/2, -1/2 and so on), or with `variable_steps` those of `variable_weights`
    (iPNDM-v). A step that ends without noise takes x0.

    Source: Liu et al. 2022 (arXiv 2202.09778), eq. 12; Zhang & Chen 2023 (arXiv 2204.13902), appendix; ComfyUI's ipndm
    and ipndm_v.
    """

    spacing: str | Schedule = "karras"
    end: End = "zero"
    order: int = 4
    variable_steps: bool = False
    variance_preserving: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.order, 4)

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step."""
        sigma = grid.sigma
        rows = []
        for i in range(len(sigma) - 1):
            p = min(self.order, i + 1)
            weights = ADAMS_BASHFORTH[p - 1]
            if self.variable_steps and p > 1:
                weights = variable_weights(sigma[: i + 2], p)
            ends = sigma[i + 1] == 0
            rows.append(denoised(grid, i) if ends else extrapolated(grid, i, (sigma[i + 1] - sigma[i]) * weights))
        return stack(rows)
