"""Schedulers of diffusers whose steps differ from the samplers of the same name: Euler, SA-Solver, EDM and others."""

import dataclasses
import math
from typing import ClassVar, Literal

import numpy as np

from sdjax.checks.arguments import number, whole
from sdjax.samplers.ancestral import split_noise
from sdjax.samplers.diffusers.grid import timestep_of
from sdjax.samplers.dpm_solver import (
    DPMSolverMultistep,
    DPMSolverSinglestep,
    backward_differences,
    multistep,
    singlestep,
    singlestep_orders,
)
from sdjax.samplers.multistep import ADAMS_BASHFORTH, LMS, lms_weights
from sdjax.samplers.rows import Coef, Rows, row, stack
from sdjax.samplers.rule import Noisy
from sdjax.samplers.sa_solver import SASolver
from sdjax.samplers.sampler import Sampler
from sdjax.samplers.schedules import Schedule
from sdjax.samplers.spacing import MAX_STEPS, Grid
from sdjax.schedule import PREDICTIONS, NoiseSchedule


@dataclasses.dataclass(frozen=True)
class EulerScheduler(Sampler):
    """Euler's method with churn: the network is called before the noise is added, and its output is used after it.

    x_hat = x + s_noise sqrt(sigma_hat^2 - sigma^2) z with sigma_hat = (1 + gamma) sigma, x' = x_hat + (sigma' -
    sigma_hat) (x_hat - x0) / sigma_hat, where x0 is that of the output at x_hat. gamma is s_churn / num_steps, at most
    sqrt(2) - 1, where s_tmin <= sigma <= s_tmax, and 0 elsewhere.

    Source: diffusers' EulerDiscreteScheduler and EDMEulerScheduler, `step`.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("s_churn", "s_tmin", "s_noise"):
            number(name, getattr(self, name), 0)

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns the rows of `rows`, without the first `skip` steps."""
        return self.rows(schedule, self.grid(schedule, num_steps, skip=skip), skip)

    def rows(self, schedule: NoiseSchedule, grid: Grid, skip: int = 0) -> Rows:
        """Returns one row per step."""
        t, sigma = grid
        n = len(t) - 1
        most = min(self.s_churn / (n + skip), math.sqrt(2) - 1)
        rows = []
        for i in range(n):
            gamma = most if self.s_tmin <= sigma[i] <= self.s_tmax else 0.0
            hat = sigma[i] * (1 + gamma)
            of_x, of_out = map(float, PREDICTIONS[schedule.config.prediction].x0(hat))
            slope = (sigma[i + 1] - hat) / hat
            base = 1 + slope * (1 - of_x)
            rows.append(
                row(
                    t[i], sigma[i], sigma[i + 1], base=base, calls=[-slope * of_out],
                    noise=base * self.s_noise * math.sqrt(hat**2 - sigma[i] ** 2), remember=schedule.config.prediction,
                )
            )  # fmt: skip
        return stack(rows)


@dataclasses.dataclass(frozen=True)
class SinglestepScheduler(DPMSolverSinglestep):
    """The singlestep DPM-Solvers on diffusers' grid: all calls are at its points.

    With `lower_order_final` the orders are those of `singlestep_orders`, and in order 2 the last two calls are steps of
    order 1. A last step of higher order that ends without noise is made with one call more of order 1. If image to
    image begins within a step, the rest of it is a step of lower order. The way to the third call is of the same type
    as the others.

    Source: diffusers' DPMSolverSinglestepScheduler, `get_order_list` and `step`.
    """

    lower_order_final: bool = True

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns the rows of `rows`, without the first `skip` steps."""
        return self.rows(schedule, self.grid(schedule, num_steps, skip=skip), skip)

    def rows(self, schedule: NoiseSchedule, grid: Grid, skip: int = 0) -> Rows:
        """Returns one row per call of the network."""
        n = len(grid.timestep) - 1 + skip
        lowers = self.lower_order_final or n % self.order != 0 or grid.sigma[-1] == 0
        orders = singlestep_orders(n, self.order) if lowers else [self.order] * (n // self.order)
        if orders[-1] > 1 and ((lowers and self.order == 2) or grid.sigma[-1] == 0):
            orders[-1:] = [orders[-1] - 1, 1]
        ends = np.cumsum(orders) - skip
        starts = np.maximum(ends - orders, 0)
        parts = [Grid(*(values[a : b + 1] for values in grid)) for a, b in zip(starts, ends) if b > a]
        algorithm, kind = self.algorithm, self.solver_type
        rows = [one for part in parts for one in singlestep(*part, algorithm, kind, middle=kind)]
        return self.finished(rows, grid)


@dataclasses.dataclass(frozen=True)
class LMSScheduler(LMS):
    """LMS. Where image to image begins, the missing outputs of the steps before are taken as 0, as in diffusers.

    Source: diffusers' LMSDiscreteScheduler, `step`.
    """

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns one row per step."""
        t, sigma = self.grid(schedule, num_steps)
        rows = []
        for i in range(skip, len(t) - 1):
            weights = lms_weights(sigma, i, min(i + 1, self.order))
            rows.append(row(t[i], sigma[i], sigma[i + 1], calls=weights, remember="epsilon"))
        return stack(rows)


@dataclasses.dataclass(frozen=True)
class DPMSolverSDEScheduler(Sampler):
    """DPM-Solver++ SDE with two calls a step, the second halfway in log sigma.

    x_2 = x0 + down_2 epsilon + s_noise up_2 z_2,  x' = x0_2 + down (x - x0_2) / sigma + s_noise up z, with down and up
    of `split_noise` from sigma to the second call's sigma and to sigma'. The last step is Euler's.

    Source: diffusers' DPMSolverSDEScheduler, `step`.
    """

    s_noise: float = 1.0

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns two rows per step, and one for the last, which ends without noise."""
        t, sigma = grid
        rows = []
        for i in range(len(t) - 1):
            if sigma[i + 1] == 0:
                rows.append(row(t[i], sigma[i], 0.0, base=0.0, calls=[1.0]))
                continue
            middle = float(np.sqrt(sigma[i] * sigma[i + 1]))
            places = (t[i], sigma[i], middle), (float(timestep_of(schedule, np.array(middle))), middle, sigma[i + 1])
            for k, (told, at, to) in enumerate(places):
                down, up = split_noise(sigma[i], to, 1.0)
                keep, fresh = down / sigma[i], self.s_noise * up
                rows.append(row(told, at, to, base=keep, calls=[1 - keep], noise=fresh, starts_step=k == 0))
        return stack(rows)


@dataclasses.dataclass(frozen=True)
class SDEThirdOrderScheduler(DPMSolverMultistep):
    """SDE-DPM-Solver++ of order 3 as diffusers has it: the second difference's weight has the wrong sign of 1/2.

    The weight of half of h^2 m'' should be about h / 3 and is about -1, so that its pictures are those of no known
    method. They are kept for the sake of those who know them.

    Source: diffusers' DPMSolverMultistepScheduler, `multistep_dpm_solver_third_order_update`.
    """

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns the rows of `rows`, without the first `skip` steps."""
        return self.rows(schedule, self.grid(schedule, num_steps, skip=skip), skip)

    def rows(self, schedule: NoiseSchedule, grid: Grid, skip: int = 0) -> Rows:
        """Returns one row per step."""
        lowered = len(grid.timestep) - 1 + skip < self.lower_order_below
        rows = multistep(grid, self.algorithm, self.order, self.solver_type, lowered=lowered, euler=self.euler_at_final)
        for i, one in enumerate(rows):
            coef = one.coef
            assert isinstance(coef, Coef)
            if np.count_nonzero(coef.calls) == 3:
                bend = np.zeros_like(coef.calls)
                bend[:3] = backward_differences(grid.sigma[: i + 2], 3)[2] / 2
                rows[i] = one._replace(coef=coef._replace(calls=coef.calls - bend))
        return stack(rows)


@dataclasses.dataclass(frozen=True)
class SASolverScheduler(SASolver):
    """SA-Solver with diffusers' orders at the end: the corrector keeps one order more.

    Source: diffusers' SASolverScheduler, `step`.
    """

    def orders(self, i: int, n: int, skip: int, *, to_zero: bool) -> tuple[int, int]:
        """Returns the orders of predictor and corrector at step i of n."""
        p, q = min(self.predictor_order, i + 1), min(self.corrector_order, i + 1)
        if self.lower_order_final:
            p, q = min(p, n - i), min(q, n - i + 2)
        return p, q if i > 0 else 0


@dataclasses.dataclass(frozen=True)
class Trigonometric(Schedule):
    """The grid of IPNDMScheduler: sin(u pi / 2)^2 is the share of noise in x, u falls evenly from 1 to 0.

    The network gets the angle of noise over image as its timestep, 1 for pure noise. `noises` replace the shares.
    """

    noises: tuple[float, ...] | None = None
    name: ClassVar[str] = "diffusers"
    variance_preserving: ClassVar[bool] = True

    def grid(self, noise: NoiseSchedule, num_steps: int, *, end: str, skip: int = 0) -> Grid:
        """Returns the ends of the steps; the first sigma stands for an infinite one."""
        num_steps = whole("num_steps", num_steps, 1, MAX_STEPS)
        share = np.sin(np.linspace(1, 0, num_steps + 1) * np.pi / 2) ** 2
        if self.noises is not None:
            if len(self.noises) != num_steps + 1:
                raise ValueError(f"trained_betas are for {len(self.noises) - 1} steps; got num_steps {num_steps}")
            share = np.array(self.noises)
        image = np.sqrt(1 - share**2)
        sigma = share / np.maximum(image, 2.0**-24)
        timestep = np.append((np.arctan2(share, image) / np.pi * 2)[:-1], 0.0)
        if not 0 <= skip < num_steps:
            raise ValueError(f"cannot leave out the first {skip} of {num_steps} steps: at least one must remain")
        return Grid(timestep[skip:], sigma[skip:])


@dataclasses.dataclass(frozen=True)
class IPNDMScheduler(Sampler):
    """iPNDM of a network that predicts v: x' = x + (sigma' - sigma) sum_j w_j epsilon_j with Adams-Bashforth's w_j.

    A first step from pure noise takes x0 = 0. Source: diffusers' IPNDMScheduler, `step`.
    """

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step."""
        t, sigma = grid
        rows = []
        for i in range(len(t) - 1):
            weights = (sigma[i + 1] - sigma[i]) * ADAMS_BASHFORTH[min(i, 3)]
            base = 1.0
            if sigma[i] > 1e6:
                base, weights = sigma[i + 1] / sigma[i], np.zeros(1)
            rows.append(row(t[i], sigma[i], sigma[i + 1], base=base, calls=weights, remember="epsilon"))
        return stack(rows)


@dataclasses.dataclass(frozen=True)
class EDMGrid(Schedule):
    """The grid of the EDM schedulers, in units of `sigma_data`: that is, for pictures of deviation 1.

    The network gets log(sigma) / 4 as its timestep.

    Source: Karras et al. 2022 (arXiv 2206.00364), eq. 5 and table 1; diffusers' EDMEulerScheduler.
    """

    name: ClassVar[str] = "edm"
    counts_all: ClassVar[bool] = True

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float | None = 7.0  # None: equidistant logarithms
    last: Literal["zero", "sigma_min"] = "zero"

    def grid(self, noise: NoiseSchedule, num_steps: int, *, end: str, skip: int = 0) -> Grid:
        """Returns the ends of the steps. `end` has no effect: `last` is in its place."""
        num_steps = whole("num_steps", num_steps, 1, MAX_STEPS)
        share = np.linspace(0, 1, num_steps)
        if self.rho is None:
            sigma = np.exp(np.log(self.sigma_max) + share * np.log(self.sigma_min / self.sigma_max))
        else:
            high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
            sigma = (high + share * (low - high)) ** self.rho
        timestep = np.append(np.log(sigma) / 4, 0.0)
        sigma = np.append(sigma, 0.0 if self.last == "zero" else self.sigma_min) / self.sigma_data
        if not 0 <= skip < num_steps:
            raise ValueError(f"cannot leave out the first {skip} of {num_steps} steps: at least one must remain")
        return Grid(timestep[skip:], sigma[skip:])


def unscaled(rows: Rows, unit: float = 1.0) -> Rows:
    """Returns the rows, ended so that the latent is x itself, times `unit`, and not the variance-preserving one."""
    coef = rows.coef
    assert isinstance(coef, Coef)
    factor = np.ones(len(rows.index), np.float32)
    factor[-1] = unit * np.sqrt(1 + rows.sigma_next[-1] ** 2)
    coef = coef._replace(
        base=coef.base * factor, calls=coef.calls * factor[:, None], noise=coef.noise * factor
    )  # fmt: skip
    return rows._replace(coef=coef)


@dataclasses.dataclass(frozen=True)
class EDM(Sampler):
    """A sampler of a network with the preconditioning of EDM. In units of sigma_data it is one that predicts v.

    x' is that of `method`; x starts as sqrt(1 + sigma_max^2) z, as in diffusers.

    Source: Karras et al. 2022 (arXiv 2206.00364), table 1; diffusers' EDMEulerScheduler and
    EDMDPMSolverMultistepScheduler.
    """

    method: Sampler = dataclasses.field(default_factory=lambda: DPMSolverMultistep(spacing=EDMGrid()))

    @property
    def own(self) -> EDMGrid:
        """The grid."""
        assert isinstance(self.method.spacing, EDMGrid)
        return self.method.spacing

    def grid(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Grid:
        """Returns where the steps start and end, in units of sigma_data."""
        return self.method.grid(schedule, num_steps, skip=skip)

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns the rows of `method`."""
        return unscaled(self.method.steps(schedule, num_steps, skip=skip), self.own.sigma_data)

    def initial(self, noise: Noisy, rows: Rows) -> Noisy:
        """Returns the first x, given unit noise."""
        return noise * float(np.sqrt(1 + self.own.sigma_max**2) / self.own.sigma_data)
