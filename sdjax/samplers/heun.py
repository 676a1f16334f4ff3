"""Samplers that build on Heun's step: HeunPP2, which looks two steps ahead, and Restart, which goes back up."""

import dataclasses
from typing import ClassVar, NamedTuple

import numpy as np

from sdjax.checks.arguments import number, whole
from sdjax.checks.effects import needs
from sdjax.samplers.churn import Churned
from sdjax.samplers.rows import Rows, renoised, row, stack
from sdjax.samplers.sampler import End, Sampler, check_numbers
from sdjax.samplers.spacing import Grid, from_noise_alone
from sdjax.schedule import NoiseSchedule

AUTOMATIC_FROM, TWICE_FROM = 20, 36  # steps from which the automatic Restart returns once, and twice
MOST_RETURNED = 1000  # steps that all returns of an explicit Restart add
EXPLICIT = (lambda s: not s.automatic, "with automatic true")


@dataclasses.dataclass(frozen=True)
class HeunPP2(Churned):
    """Heun++: up to three calls a step, at the sigmas where this step and the next two start.

    x_2 = x_hat + (sigma' - sigma_hat) d,  x_3 = x_2 + (sigma'' - sigma') d_2,
    x' = x_hat + (sigma' - sigma_hat) (w_1 d + w_2 d_2 + w_3 d_3),
    w_2 = sigma' / (3 sigma_0),  w_3 = sigma'' / (3 sigma_0),  w_1 = 1 - w_2 - w_3,  d = (x - x0) / sigma,

    where sigma_0 is the first sigma of the run. The last step but one has two calls, with 2 sigma_0 in place of
    3 sigma_0. The last step is Euler's. The weights are no quadrature, so the order is 1.

    Source: ComfyUI's sample_heunpp2, from Carzit's sd-webui-samplers-scheduler.
    """

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns three rows per step, two for the last but one, one for the last and for a step from pure noise."""
        t, sigma = grid
        n = len(t) - 1
        rows = []
        for i in range(n):
            start = self.churn(schedule, t[i], sigma[i], n)
            if start.interval != (0, 0):  # the reference draws in every step
                start = start._replace(interval=(sigma[i], sigma[i + 1] or start.sigma))
            calls = 1 if from_noise_alone(schedule, t[i]) else min(3, n - i)
            points = [start.sigma, *sigma[i + 1 : i + calls]]
            weights = np.array(points) / (calls * sigma[0])
            weights[0] = 1 - weights[1:].sum()
            step = sigma[i + 1] - start.sigma
            first = row(start.timestep, start.sigma, sigma[i + 1], calls=[step], remember="epsilon")
            rows.append(start.begin(first))
            for k in range(1, calls):
                last = k == calls - 1
                leg = step * weights[: k + 1] if last else np.array([step, sigma[i + k + 1] - sigma[i + k]])
                ends = (t[i + k], sigma[i + k], sigma[i + 1] if last else sigma[i + k + 1])
                rows.append(row(*ends, calls=leg[::-1], remember="epsilon", starts_step=False))
        return stack(rows)


class Leg(NamedTuple):
    """A step of Heun, from one sigma and timestep to the next."""

    timestep: float
    sigma: float
    timestep_next: float
    sigma_next: float


@dataclasses.dataclass(frozen=True)
class Restart(Sampler):
    """Restart: Heun's steps, with returns from a low sigma to a high one by fresh noise.

    x_high = x_low + s_noise sqrt(sigma_high^2 - sigma_low^2) z, then Heun's steps from sigma_high down to sigma_low.

    Where the steps come past the sigma next to `low`, they return `times` times to the sigma next to `high`, and go
    down again over `points` sigmas with equidistant 7th roots. That adds `times` (`points` - 1) steps. `automatic`
    divides the given number of steps instead, as A1111 does: below 20 there is no return, from 20 on one, of 9 steps,
    from 36 on two, of a quarter of all steps each; the others are on Karras's spacing between the same ends.

    Source: Xu et al. 2023 (arXiv 2306.14878), algorithm 1; A1111's restart_sampler.
    """

    spacing: str = "karras"
    end: End = "zero"
    automatic: bool = False
    low: float = needs(0.1, *EXPLICIT)
    high: float = needs(2.0, *EXPLICIT)
    points: int = needs(10, *EXPLICIT)
    times: int = needs(1, *EXPLICIT)
    s_noise: float = 1.0
    variance_preserving: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "s_noise", "low")
        number("high", self.high, self.low)
        whole("points", self.points, 2)
        whole("times", self.times, 1)
        if self.times * (self.points - 1) > MOST_RETURNED:
            raise ValueError(
                f"times {self.times} and points {self.points} add {self.times * (self.points - 1)} steps; at most "
                f"{MOST_RETURNED} are possible"
            )

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns two rows per step, but one row for a step that ends without noise or starts from pure noise."""
        legs = self._legs(schedule, grid)
        rows = []
        for here, after in zip(legs, [*legs[1:], None]):
            rows += heun_step(schedule, here)
            if after is not None and after.sigma > here.sigma_next:
                weight = self.s_noise * np.sqrt(after.sigma**2 - here.sigma_next**2)
                rows[-1] = renoised(rows[-1], after.sigma, weight, (here.sigma_next, after.sigma))
        return stack(rows)

    def _legs(self, schedule: NoiseSchedule, grid: Grid) -> list[Leg]:
        """Returns all steps in their order."""
        n = len(grid.timestep) - 1
        low, high, points, times = self.low, self.high, self.points, self.times
        if self.automatic:
            if n < AUTOMATIC_FROM:
                return list(_legs_of(grid))
            low, high, times = 0.1, 2.0, 1 if n < TWICE_FROM else 2
            points = (9 if n < TWICE_FROM else n // 4) + 1
            first = int(from_noise_alone(schedule, grid.timestep[0]))  # a step from pure noise stays as it is
            spaced = _karras(schedule, grid.sigma[first], grid.sigma[-2], n - first - (points - 1) * times)
            grid = Grid(*(np.concatenate([a[:first], b, [0.0]]) for a, b in zip(grid, spaced)))
        legs = []
        bottom, top = (int(np.argmin(abs(grid.sigma - sigma))) for sigma in (low, high))
        for i, leg in enumerate(_legs_of(grid)):
            legs.append(leg)
            if i + 1 == bottom and top < bottom:
                legs += [*_legs_of(_karras(schedule, grid.sigma[top], grid.sigma[bottom], points))] * times
        return legs


def heun_step(schedule: NoiseSchedule, leg: Leg) -> list[Rows]:
    """Returns the rows of one step of Heun, or of Euler if it ends without noise or starts from pure noise."""
    t, sigma, t_next, sigma_next = leg
    dt = sigma_next - sigma
    rows = [row(t, sigma, sigma_next, calls=[dt], remember="epsilon")]
    if sigma_next > 0 and not from_noise_alone(schedule, t):
        halves = [dt / 2, dt / 2]
        rows.append(row(t_next, sigma_next, sigma_next, calls=halves, remember="epsilon", starts_step=False))
    return rows


def _legs_of(grid: Grid) -> list[Leg]:
    t, sigma = grid
    return [Leg(t[i], sigma[i], t[i + 1], sigma[i + 1]) for i in range(len(t) - 1)]


def _karras(schedule: NoiseSchedule, high: float, low: float, points: int) -> Grid:
    """Returns sigmas from high to low with equidistant 7th roots (k-diffusion's get_sigmas_karras), with timesteps."""
    share = np.linspace(0, 1, points)
    sigma = ((1 - share) * high ** (1 / 7) + share * low ** (1 / 7)) ** 7
    return Grid(schedule.timestep(np.maximum(sigma, schedule.sigmas[0] / 2), "log_sigma"), sigma)
