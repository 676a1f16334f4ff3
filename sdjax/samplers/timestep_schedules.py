"""Schedules that choose timesteps: even ones, whole ones, and quantiles of a beta distribution.

Source: ComfyUI's comfy/samplers.py and its node SDTurboScheduler; AUTOMATIC1111's modules/sd_schedulers.py.
"""

import dataclasses
from typing import Literal

import numpy as np

from sdjax.checks.arguments import number, shown
from sdjax.samplers.schedules import Ranged, Schedule, clipped, ended
from sdjax.samplers.spacing import Grid
from sdjax.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class Normal(Ranged):
    """Equidistant timesteps from the last to the first.

    With interpolation "log_sigma" this is A1111's "Uniform" and "Normal", ComfyUI's "normal" and k-diffusion's
    get_sigmas(n); with "sigma" it is "linspace", diffusers' Euler and LMS; with "log_alpha" DPM-Solver's
    "time_uniform".
    """

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name that this interpolation has."""
        return {"log_sigma": "normal", "sigma": "linspace", "log_alpha": "time_uniform"}[self.interpolation]

    def times(self, noise: NoiseSchedule, points: int) -> np.ndarray:
        """Returns equidistant timesteps over the range, float64 [points]."""
        last, first = clipped(noise, np.array(self.range(noise)), self.interpolation)
        return np.linspace(last, first, points)

    def path(self, noise: NoiseSchedule, num_steps: int, end: str) -> Grid:
        points = num_steps + (end == "sigma_min")
        timestep = self.times(noise, points)
        sigma = noise.sigma(timestep, self.interpolation)
        if points > num_steps:
            return Grid(np.append(timestep[:-1], 0.0), sigma)
        return Grid(np.append(timestep, 0.0), np.append(sigma, 0.0))


@dataclasses.dataclass(frozen=True)
class SGMUniform(Normal):
    """The timesteps of "normal" for one step more, without the last one."""

    @property
    def name(self) -> str:  # type: ignore[override]
        """Its name."""
        return "sgm_uniform"

    def path(self, noise: NoiseSchedule, num_steps: int, end: str) -> Grid:
        timestep = self.times(noise, num_steps + 1)[:-1]
        return ended(noise, timestep, noise.sigma(timestep, self.interpolation), end)


@dataclasses.dataclass(frozen=True)
class Whole(Schedule):
    """The base of schedules of whole timesteps."""

    def most(self, noise: NoiseSchedule) -> int:
        return noise.num_timesteps

    def times(self, noise: NoiseSchedule, num_steps: int) -> np.ndarray:
        """Returns the whole timesteps where steps start, falling."""
        raise NotImplementedError

    def path(self, noise: NoiseSchedule, num_steps: int, end: str) -> Grid:
        timestep = self.times(noise, num_steps).astype(int)
        return ended(noise, timestep.astype(np.float64), noise.sigmas[timestep], end)


@dataclasses.dataclass(frozen=True)
class Simple(Whole):
    """Every k-th timestep counted back from the last one, k = num_timesteps / num_steps."""

    name = "simple"

    def times(self, noise: NoiseSchedule, num_steps: int) -> np.ndarray:
        count = noise.num_timesteps
        return count - 1 - (np.arange(num_steps) * (count / num_steps)).astype(int)


@dataclasses.dataclass(frozen=True)
class DDIMUniform(Whole):
    """1, 1 + k, 1 + 2k, ... with k = num_timesteps // num_steps, as many as there are: 31 for 30 steps, 63 for 60.

    The spacing "leading" is the same with exactly `num_steps` steps.
    """

    name = "ddim_uniform"

    def times(self, noise: NoiseSchedule, num_steps: int) -> np.ndarray:
        return np.arange(1, noise.num_timesteps, max(noise.num_timesteps // num_steps, 1))[::-1]


@dataclasses.dataclass(frozen=True)
class Beta(Ranged):
    """Quantiles of a beta distribution with the parameters `alpha` and `beta`.

    `of` "timestep" is ComfyUI's: the first n of n + 1 even quantiles, as whole timesteps; equal ones are left out, so
    there may be fewer steps than asked for. `of` "sigma" is AUTOMATIC1111's: n even quantiles of sigma.

    Source: Lee et al. 2024 (arXiv 2407.12173).
    """

    name = "beta"
    alpha: float = 0.6
    beta: float = 0.6
    of: Literal["timestep", "sigma"] = "timestep"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta"):
            if number(name, getattr(self, name), 0, 1000) == 0:
                raise ValueError(f"{name} is a number above 0; got {shown(getattr(self, name))}")
        if self.of not in ("timestep", "sigma"):
            raise ValueError(f"of is timestep or sigma; got {shown(self.of)}")

    def path(self, noise: NoiseSchedule, num_steps: int, end: str) -> Grid:
        from scipy.special import betaincinv

        high, low = self.range(noise)
        if self.of == "sigma":
            sigma = low + betaincinv(self.alpha, self.beta, 1 - np.linspace(0, 1, num_steps)) * (high - low)
            return ended(noise, clipped(noise, sigma, self.interpolation), sigma, end)
        quantile = 1 - np.linspace(0, 1, num_steps, endpoint=False)
        last, first = clipped(noise, np.array([high, low]), self.interpolation)
        timestep = np.rint(first + betaincinv(self.alpha, self.beta, quantile) * (last - first)).astype(int)
        return ended(noise, timestep.astype(np.float64), noise.sigmas[timestep], end)


@dataclasses.dataclass(frozen=True)
class SDTurbo(Whole):
    """The first n of the timesteps 999, 899, ..., 99: those of SD-Turbo, at most 10.

    `denoise` below 1 leaves out the first 10 - int(10 denoise) of them; then there are fewer steps than asked for if
    too few are left.
    """

    name = "sd_turbo"
    denoise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if int(10 * number("denoise", self.denoise, 0, 1)) < 1:
            raise ValueError(f"denoise leaves none of 10 timesteps below 0.1; got {self.denoise:g}")

    def most(self, noise: NoiseSchedule) -> int:
        return 10

    def times(self, noise: NoiseSchedule, num_steps: int) -> np.ndarray:
        every = np.arange(10, 0, -1) * (noise.num_timesteps // 10) - 1
        first = 10 - int(10 * self.denoise)
        return every[first : first + num_steps]
