"""DPM-Solver++ for the reverse SDE: fresh noise in each step. One to three calls of the network enter a step.

lambda is -log sigma, h the step in lambda, and H = (1 + eta) h. If x0 does not change in the step,

    x' = e^(-H) x + (1 - e^(-H)) x0 + s_noise sigma' sqrt(1 - e^(-2 eta h)) z.

eta 0 gives the probability flow's solvers. Noise is the increment of a Brownian path, so that more steps refine the
same picture.

Source: Lu et al. 2022 (arXiv 2211.01095), section 5 and appendix; k-diffusion's sample_dpmpp_sde, sample_dpmpp_2m_sde,
sample_dpmpp_3m_sde.
"""

import dataclasses
from typing import Literal

import numpy as np

from sdjax.checks.effects import needs
from sdjax.samplers.ancestral import AddsNoise, first_order, split_noise
from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sampler import End, choose
from sdjax.samplers.spacing import Grid, from_noise_alone
from sdjax.schedule import NoiseSchedule

NOISY = (lambda s: s.eta > 0, "with eta 0")


@dataclasses.dataclass(frozen=True)
class Stochastic(AddsNoise):
    """The base of the SDE's solvers. `brownian` chooses the noise: increments of one path, or independent draws."""

    spacing: str = "karras"
    end: End = "zero"
    eta: float = 1.0
    brownian: bool = needs(True, *NOISY)

    def noise(self, sigma: float, sigma_next: float, weight: float) -> dict:
        """Returns the arguments of a row for noise of the given weight that lies between two sigmas."""
        return {"noise": self.s_noise * weight, "interval": (sigma, sigma_next), "brownian": self.brownian}

    def first_order(self, timestep: float, sigma: float, sigma_next: float) -> Rows:
        """Returns the row of a step with one call."""
        return first_order(
            timestep, sigma, sigma_next, eta=self.eta, s_noise=self.s_noise, brownian=self.brownian
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MultistepSDE(Stochastic):
    """The base of solvers that use the x0 of earlier steps."""

    def differences(self, h: np.ndarray, eta_h: float) -> np.ndarray:
        """Returns the weights of the last calls' x0, newest first, that are added to those of the first order.

        `h` are the lengths of the present step and of those before it, newest first. `eta_h` is H.
        """
        raise NotImplementedError

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step."""
        t, sigma = grid
        rows = []
        for i in range(len(t) - 1):
            ratio = sigma[i + 1] / sigma[i]  # e^(-h)
            base = ratio ** (1 + self.eta)
            calls = np.array([1 - base])
            if i > 0 and ratio > 0:
                h = -np.diff(np.log(sigma[: i + 2]))[::-1]
                more = self.differences(h, (1 + self.eta) * h[0])
                calls = more + np.pad(calls, (0, len(more) - 1))
            weight = sigma[i + 1] * np.sqrt(1 - ratio ** (2 * self.eta))
            fresh = self.noise(sigma[i], sigma[i + 1], weight)
            rows.append(row(t[i], sigma[i], sigma[i + 1], base=base, calls=calls, **fresh))
        return stack(rows)


def phi_2(h: float) -> float:
    """Returns (e^(-h) - 1) / h + 1, the weight of the first difference over a step of length h."""
    return np.expm1(-h) / h + 1


@dataclasses.dataclass(frozen=True)
class DPMSolverSDE(MultistepSDE):
    """DPM-Solver++(2M) SDE; eta 0 is DPM-Solver++(2M) itself. With r = h_previous / h:

    x' = e^(-H) x + (1 - e^(-H)) x0 + w (x0 - x0_previous) / r + s_noise sigma' sqrt(1 - e^(-2 eta h)) z.

    `solver_type` "midpoint" has w = (1 - e^(-H)) / 2, "heun" has w = 1 - (1 - e^(-H)) / H.
    """

    brownian: bool = needs(False, *NOISY)
    solver_type: Literal["midpoint", "heun"] = "midpoint"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("solver_type", self.solver_type, ("midpoint", "heun"))

    def differences(self, h: np.ndarray, eta_h: float) -> np.ndarray:
        w = -np.expm1(-eta_h) / 2 if self.solver_type == "midpoint" else phi_2(eta_h)
        return w * h[0] / h[1] * np.array([1.0, -1.0])


@dataclasses.dataclass(frozen=True)
class DPMSolverSDE3M(MultistepSDE):
    """DPM-Solver++(3M) SDE. With D1 and D2 the first and second differences of x0 over the last three calls:

    x' = e^(-H) x + (1 - e^(-H)) x0 + phi_2 D1 - phi_3 D2 + s_noise sigma' sqrt(1 - e^(-2 eta h)) z,
    phi_2 = (e^(-H) - 1) / H + 1,  phi_3 = phi_2 / H - 1 / 2.

    D2 is half of h^2 times the second derivative, as in the reference: so the order is 2, with a small error.
    """

    def differences(self, h: np.ndarray, eta_h: float) -> np.ndarray:
        now = np.eye(3)
        first = (now[0] - now[1]) * h[0] / h[1]
        if len(h) == 2:
            return (phi_2(eta_h) * first)[:2]
        second = (now[1] - now[2]) * h[0] / h[2]
        bend = (first - second) * h[0] / (h[1] + h[2])
        return phi_2(eta_h) * (first + bend * h[1] / h[0]) - (phi_2(eta_h) / eta_h - 0.5) * bend


@dataclasses.dataclass(frozen=True)
class DPMSolverSDE2S(Stochastic):
    """DPM-Solver++ SDE with two calls a step, the second at the share `r` of h ("DPM++ SDE"):

    x_2 = (1 - d_1 / sigma) x0 + d_1 / sigma x + s_noise u_1 z_1,
    x' = (1 - d / sigma) ((1 - 1 / (2 r)) x0 + x0_2 / (2 r)) + d / sigma x + s_noise u z_2,

    where (d_1, u_1) and (d, u) are the noise to keep and to add (`split_noise`) from sigma to the sigma of the second
    call and to sigma'. A last step that ends without noise is Euler's, and so is a first step from pure noise.
    """

    r: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("r", self.r)

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns two rows per step, but one row for a step that ends without noise or starts from pure noise."""
        rows = []
        for t, sigma, sigma_next in zip(grid.timestep, grid.sigma, grid.sigma[1:]):
            if sigma_next == 0 or from_noise_alone(schedule, t):
                rows.append(self.first_order(t, sigma, sigma_next))
                continue
            middle = sigma * (sigma_next / sigma) ** self.r
            down, up = split_noise(sigma, middle, self.eta)
            keep, fresh = down / sigma, self.noise(sigma, middle, up)
            rows.append(row(t, sigma, middle, base=keep, calls=[1 - keep], **fresh))
            down, up = split_noise(sigma, sigma_next, self.eta)
            keep, fresh = down / sigma, self.noise(sigma, sigma_next, up)
            calls = (1 - keep) * np.array([1 / (2 * self.r), 1 - 1 / (2 * self.r)])
            t_middle = float(schedule.timestep(middle, "log_sigma"))
            rows.append(row(t_middle, middle, sigma_next, base=keep, calls=calls, **fresh, starts_step=False))
        return stack(rows)


def check_share(name: str, value: float) -> None:
    """Raises ValueError unless the value lies between 0 and 1, as a place inside a step."""
    if not 0 < value < 1:
        raise ValueError(f"{name} is a number between 0 and 1, a place inside the step; got {value!r}")
