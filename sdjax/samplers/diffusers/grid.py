"""diffusers' ways to choose timesteps and sigmas, which differ from class to class.

Source: huggingface/diffusers 0.42.1, `set_timesteps` of the classes in schedulers/.
"""

import dataclasses
import math
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from sdjax.checks.arguments import whole
from sdjax.samplers.schedules import Schedule
from sdjax.samplers.spacing import MAX_STEPS, Grid
from sdjax.schedule import NoiseSchedule

Spacing: TypeAlias = Literal["linspace", "leading", "trailing"]
Sigmas: TypeAlias = Literal["table", "karras", "exponential", "beta", "lu"]
Last: TypeAlias = Literal["zero", "sigma_min", "repeat"]

SPACINGS = ("linspace", "leading", "trailing")
RHO = 7.0


def starts(spacing: str, count: int, num_steps: int, offset: int) -> np.ndarray:
    """Returns `num_steps` timesteps where steps start, falling: of Euler, DDIM and all others but `intervals`.

    "linspace" ones may be fractional.
    """
    if spacing == "linspace":
        return np.linspace(0, count - 1, num_steps)[::-1]
    if spacing == "leading":
        return np.arange(num_steps)[::-1] * (count // num_steps) + float(offset)
    return trailing(count, count, num_steps)


def intervals(spacing: str, count: int, first: int, num_steps: int, offset: int) -> np.ndarray:
    """Returns the whole timesteps where steps start, falling: the ends of equal intervals (DPM-Solver, UniPC, DEIS).

    `first` is the number of timesteps left of `count` after those of largest noise were left out.
    """
    if spacing == "linspace":
        return np.round(np.linspace(0, first - 1, num_steps + 1))[:0:-1]
    if spacing == "leading":
        return np.arange(num_steps + 1)[:0:-1] * (first // (num_steps + 1)) + float(offset)
    return trailing(count, first, num_steps)


def trailing(count: int, first: int, num_steps: int) -> np.ndarray:
    """Returns whole timesteps counted back from `first`, count / num_steps apart, falling."""
    n = math.ceil(first / (count / num_steps) - 1e-9)
    return np.round(first - np.arange(n) * (count / num_steps)) - 1


def timestep_of(schedule: NoiseSchedule, sigma: np.ndarray) -> np.ndarray:
    """Returns the fractional timesteps of sigmas, from 0 to the last one, linear in log sigma.

    The table is rounded to float32: whole timesteps stay whole, or not, as in diffusers.
    """
    table = np.log(schedule.sigmas.astype(np.float32)).astype(np.float64)
    return np.interp(np.log(np.maximum(sigma, 1e-10)), table, np.arange(len(table), dtype=np.float64))


def spread(kind: str, high: float, low: float, num_steps: int) -> np.ndarray:
    """Returns `num_steps` sigmas from high to low."""
    share = np.linspace(0, 1, num_steps)
    if kind == "karras":
        return (high ** (1 / RHO) + share * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO
    if kind == "beta":
        from scipy.special import betaincinv

        return low + betaincinv(0.6, 0.6, 1 - share) * (high - low)
    return np.exp(np.log(high) + share * (np.log(low) - np.log(high)))  # "exponential", "lu"


@dataclasses.dataclass(frozen=True)
class DiffusersGrid(Schedule):
    """The grid of a scheduler that works with sigmas.

    `of_intervals`: timesteps are whole, and those of `intervals` (DPM-Solver, UniPC, DEIS, SA-Solver); the sigmas of
    the other ways cover the whole schedule. Otherwise timesteps are those of `starts`, and other sigmas lie between
    those of the first and the last timestep.

    `sigmas` other than "table" replace the sigmas of the timesteps, between `sigma_max` and `sigma_min` if given; the
    timesteps follow them. `log_linear`: instead, sigmas are equidistant in their logarithm. `last` is where the last
    step ends; "repeat" makes it a step of length 0 if `sigmas` is not "table". `lambda_min` leaves out the timesteps of
    smaller log SNR / 2. `continuous`: the network gets log(sigma) / 4 as its timestep. `rising`: the steps go up, from
    the image to noise. `rounds_karras`: the timesteps of Karras's sigmas are whole (KDPM2). `timesteps` or
    `given_sigmas` (with the last one) replace all of it.
    """

    name: ClassVar[str] = "diffusers"
    counts_all: ClassVar[bool] = True

    spacing: Spacing = "linspace"
    offset: int = 0
    of_intervals: bool = False
    sigmas: Sigmas = "table"
    last: Last = "zero"
    sigma_min: float | None = None
    sigma_max: float | None = None
    lambda_min: float = -math.inf
    log_linear: bool = False
    continuous: bool = False
    rising: bool = False
    rounds_karras: bool = False
    variance_preserving: bool = True
    timesteps: tuple[float, ...] | None = None
    given_sigmas: tuple[float, ...] | None = None

    def upwards(self) -> "DiffusersGrid":
        """Returns the grid with `rising`."""
        return dataclasses.replace(self, rising=True)

    def between(self, sigma_min: float | None, sigma_max: float | None) -> "DiffusersGrid":
        """Returns the grid with these ends of other sigmas."""
        return dataclasses.replace(self, sigma_min=sigma_min, sigma_max=sigma_max)

    def grid(self, noise: NoiseSchedule, num_steps: int, *, end: str, skip: int = 0) -> Grid:
        """Returns the ends of the steps, without the first `skip` steps. `end` has no effect: `last` is in its place.

        Raises ValueError if there cannot be `num_steps` steps.
        """
        timestep, sigma = self.points(noise, whole("num_steps", num_steps, 1, MAX_STEPS))
        if self.continuous:
            timestep = np.log(sigma[:-1]) / 4
        timestep = np.append(timestep, 0.0)
        if not 0 <= skip < len(sigma) - 1:
            raise ValueError(f"cannot leave out the first {skip} of {len(sigma) - 1} steps: at least one must remain")
        return Grid(timestep[skip:], sigma[skip:])

    def points(self, noise: NoiseSchedule, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the timesteps where steps start, and the sigmas of their ends: one more."""
        table = noise.sigmas
        if self.given_sigmas is not None:
            sigma = np.array(self.given_sigmas)
            check_count(len(sigma) - 1, num_steps, "sigmas, of which the last is the end,")
            return timestep_of(noise, sigma[:-1]), sigma
        timestep = self.told(noise, num_steps)
        check_timesteps(timestep, noise)
        sigma = np.interp(timestep, np.arange(len(table)), table)
        if self.log_linear:
            sigma = np.exp(np.linspace(np.log(table[-1]), np.log(table[0]), num_steps + 1))
            if self.sigmas == "table":
                return timestep, sigma
        high, low = (table[-1], table[0]) if self.of_intervals else (sigma[0], sigma[-1])
        low = low if self.sigma_min is None else self.sigma_min
        high = high if self.sigma_max is None else self.sigma_max
        if self.sigmas != "table":
            sigma = spread(self.sigmas, high, low, num_steps)
            timestep = timestep_of(noise, sigma)
            if self.of_intervals:
                rounds = self.sigmas in ("karras", "lu") and noise.config.kind != "squaredcos"
                timestep = np.round(timestep) if rounds else np.trunc(timestep)
            elif self.rounds_karras and self.sigmas == "karras":
                timestep = np.round(timestep)
        if self.rising:
            return self.risen(noise, timestep, sigma, num_steps)
        repeats = self.last == "repeat" and self.sigmas != "table"
        last = 0.0 if self.last == "zero" else sigma[-1] if repeats else table[0]
        return timestep, np.append(sigma, last)

    def told(self, noise: NoiseSchedule, num_steps: int) -> np.ndarray:
        """Returns the timesteps where steps start, falling, before other sigmas replace them."""
        if self.timesteps is not None:
            check_count(len(self.timesteps), num_steps, "timesteps")
            return np.array(self.timesteps, np.float64)
        count = noise.num_timesteps
        if not self.of_intervals:
            return starts(self.spacing, count, num_steps, self.offset)
        first = count - int(np.searchsorted(-np.log(noise.sigmas[::-1]), self.lambda_min))
        return intervals(self.spacing, count, first, num_steps, self.offset)

    def risen(
        self, noise: NoiseSchedule, timestep: np.ndarray, sigma: np.ndarray, num_steps: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the points of steps that go up, from the first timestep to the last (DPMSolverMultistepInverse)."""
        table = noise.sigmas
        if self.sigmas != "table":
            return timestep[::-1], np.append(sigma[::-1], sigma[0])
        first = noise.num_timesteps - 1 - int(np.searchsorted(-np.log(table[::-1]), self.lambda_min))
        if self.spacing == "linspace":
            timestep = np.round(np.linspace(0, first, num_steps + 1))[:-1]
        elif self.spacing == "leading":
            timestep = np.arange(num_steps) * ((first + 1) // (num_steps + 1)) + float(self.offset)
        else:
            timestep = trailing(noise.num_timesteps, first + 1, num_steps)[::-1]
        timestep = np.unique(timestep)
        return timestep, np.append(np.interp(timestep, np.arange(len(table)), table), table[first])


def check_count(given: int, num_steps: int, what: str) -> None:
    """Raises ValueError unless as many timesteps or sigmas are given as there are steps."""
    if given != num_steps:
        raise ValueError(f"the {what} make {given} steps; got num_steps {num_steps}")


def check_timesteps(timestep: np.ndarray, noise: NoiseSchedule) -> None:
    """Raises ValueError if a timestep is not in the schedule."""
    outside = timestep[(timestep < 0) | (timestep > noise.num_timesteps - 1)]
    if len(outside):
        raise ValueError(
            f"timesteps are from 0 to {noise.num_timesteps - 1}; so many steps with this spacing and steps_offset need "
            f"{outside[0]:g}"
        )
