"""Schedules: how the noise falls from step to step, with the options that other tools have.

A schedule is a small dataclass; its fields are its options. `SCHEDULES` gives each a name. The older spacings
(spacing.py) are among them. A schedule gives n sigmas where steps start. The sampler's `end` follows them: no noise, or
the noise of the first timestep. If two sigmas are equal, one is left out, so that no step has length 0.

Some tools use one name for different schedules. Then each is its own option or name here, and the docstring says whose
it is. Source of the formulas: k-diffusion's sampling.py; ComfyUI's comfy/samplers.py and its scheduler nodes;
AUTOMATIC1111's modules/sd_schedulers.py.
"""

import dataclasses
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from sdjax.checks.arguments import flag, number, shown, whole
from sdjax.samplers.spacing import MAX_STEPS, Grid, after_noise_alone, from_noise_alone, make_grid
from sdjax.schedule import INTERPOLATIONS, NoiseSchedule

LOWEST, HIGHEST = 1e-5, 1e6  # sigmas that users may choose; float32 holds their squares
RHO = (0.01, 1000.0)
SAME = 1e-6  # two sigmas whose ratio is so near 1 are equal: a step between them would be rounding alone
Interpolation: TypeAlias = Literal["sigma", "log_sigma", "log_alpha"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The base of all schedules.

    `discard_penultimate` computes one step more and leaves out the last sigma before the end, as other tools do for
    DPM2, DPM++ 3M SDE and UniPC.
    """

    name: ClassVar[str]
    fewest: ClassVar[int] = 1  # steps
    counts_all: ClassVar[bool] = False  # whether samplers also count the steps that image to image leaves out

    discard_penultimate: bool = False

    def __post_init__(self) -> None:
        flag("discard_penultimate", self.discard_penultimate)

    def most(self, noise: NoiseSchedule) -> int:
        """Returns the largest number of steps."""
        return MAX_STEPS

    def path(self, noise: NoiseSchedule, num_steps: int, end: str) -> Grid:
        """Returns the ends of the steps, the last one included; nothing is discarded yet."""
        raise NotImplementedError

    def grid(self, noise: NoiseSchedule, num_steps: int, *, end: str, skip: int = 0) -> Grid:
        """Returns the ends of the steps, without the first `skip` steps.

        Raises ValueError if the schedule cannot have `num_steps` steps.
        """
        extra = int(self.discard_penultimate)
        where = f" with the schedule {self.name!r}"
        num_steps = whole("num_steps", num_steps, self.fewest, self.most(noise) - extra, context=where)
        timestep, sigma = self.path(noise, num_steps + extra, end)
        kept = np.append(sigma[1:] < sigma[:-1] * (1 - SAME), True)  # the last of equal sigmas stays
        timestep, sigma = timestep[kept], sigma[kept]
        if extra and len(sigma) > 2:
            timestep, sigma = np.delete(timestep, -2), np.delete(sigma, -2)
        count = len(sigma) - 1
        if not 0 <= skip < count:
            raise ValueError(f"cannot leave out the first {skip} of {count} steps: at least one must remain")
        return Grid(timestep[skip:], sigma[skip:])


def clipped(noise: NoiseSchedule, sigma: np.ndarray, interpolation: str) -> np.ndarray:
    """Returns the timesteps of sigmas, from 0 to the last one; that of 0 is 0."""
    positive = np.maximum(sigma, noise.sigmas[0] / 2)
    return np.clip(noise.timestep(positive, interpolation), 0, noise.num_timesteps - 1)


def ended(noise: NoiseSchedule, timestep: np.ndarray, sigma: np.ndarray, end: str) -> Grid:
    """Returns the starts of steps with their end: "sigma_min" is the noise of the first timestep, "zero" none.

    If the last step already starts at the first timestep, it always ends without noise.
    """
    last = noise.sigmas[0] if end == "sigma_min" and sigma[-1] > noise.sigmas[0] * (1 + 1e-9) else 0.0
    return Grid(np.append(timestep, 0.0), np.append(sigma, last))


@dataclasses.dataclass(frozen=True)
class Spaced(Schedule):
    """A spacing without options (`sdjax.samplers.spacing.SPACINGS`)."""

    spacing: str = "even"

    @property
    def name(self) -> str:  # type: ignore[override]
        """The spacing."""
        return self.spacing

    def path(self, noise: NoiseSchedule, num_steps: int, end: str) -> Grid:
        return make_grid(self.spacing, noise, num_steps, end=end)


@dataclasses.dataclass(frozen=True)
class Ranged(Schedule):
    """A schedule between two sigmas: by default those of the model's first and last timestep.

    `interpolation` says how sigma is interpolated between whole timesteps: linear in "sigma" (diffusers' "linear"), in
    "log_sigma" (k-diffusion; diffusers' "log_linear") or in "log_alpha" (DPM-Solver).
    """

    sigma_min: float | None = None
    sigma_max: float | None = None
    interpolation: Interpolation = "log_sigma"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ValueError(f"interpolation is one of {known}; got {shown(self.interpolation)}")
        for name in ("sigma_min", "sigma_max"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), LOWEST, HIGHEST)

    def range(self, noise: NoiseSchedule) -> tuple[float, float]:
        """Returns the largest and the smallest sigma. Raises ValueError if they are in the wrong order."""
        high = noise.sigmas[-1] if self.sigma_max is None else self.sigma_max
        low = noise.sigmas[0] if self.sigma_min is None else self.sigma_min
        if not low < high:
            raise ValueError(f"sigma_min must be below sigma_max; got {low:g} and {high:g}")
        return float(high), float(low)

    def after_noise(self, noise: NoiseSchedule, num_steps: int, high: float, low: float) -> tuple[np.ndarray, float]:
        """Returns the sigmas of pure noise to start with, and the largest sigma after them.

        If the last timestep is pure noise (zero terminal SNR), most of the steps would be spent on nearly pure noise.
        The first step is then as long as that of "trailing", unless `sigma_max` is given.
        """
        if self.sigma_max is not None or not from_noise_alone(noise, noise.num_timesteps - 1):
            return np.zeros(0), high
        after = float(noise.sigma(after_noise_alone(noise, num_steps), self.interpolation))
        return np.array([high]), max(after, low)


@dataclasses.dataclass(frozen=True)
class Curve(Ranged):
    """A schedule whose sigmas are a function of the share of the way from the largest to the smallest.

    After pure noise, the curve starts at the second step (`after_noise`).
    """

    def curve(self, share: np.ndarray, high: float, low: float) -> np.ndarray:
        """Returns sigmas, falling. share: float64 [n] from 0 (sigma is `high`) to 1 (sigma is `low`)."""
        raise NotImplementedError

    def path(self, noise: NoiseSchedule, num_steps: int, end: str) -> Grid:
        high, low = self.range(noise)
        points = num_steps + (end == "sigma_min")  # then the end of the curve is the end of the last step
        before, high = self.after_noise(noise, num_steps, high, low)
        sigma = np.append(before, self.curve(np.linspace(0, 1, points - len(before)), high, low))
        starts = sigma[:num_steps]
        last = sigma[-1] if points > num_steps else 0.0
        return Grid(np.append(clipped(noise, starts, self.interpolation), 0.0), np.append(starts, last))


@dataclasses.dataclass(frozen=True)
class Karras(Curve):
    """Sigmas whose rho-th roots are equidistant. Source: Karras et al. 2022 (arXiv 2206.00364), eq. 5."""

    name = "karras"
    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("rho", self.rho, *RHO)

    def curve(self, share: np.ndarray, high: float, low: float) -> np.ndarray:
        return ((1 - share) * high ** (1 / self.rho) + share * low ** (1 / self.rho)) ** self.rho


@dataclasses.dataclass(frozen=True)
class Exponential(Curve):
    """Sigmas with equidistant logarithms. With interpolation "log_alpha" it is DPM-Solver's "logSNR"."""

    name = "exponential"

    def curve(self, share: np.ndarray, high: float, low: float) -> np.ndarray:
        return np.exp((1 - share) * np.log(high) + share * np.log(low))


@dataclasses.dataclass(frozen=True)
class Polyexponential(Curve):
    """Sigmas whose logarithms are a power of the share of the way; with rho 1 it is "exponential"."""

    name = "polyexponential"
    rho: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("rho", self.rho, *RHO)

    def curve(self, share: np.ndarray, high: float, low: float) -> np.ndarray:
        return np.exp((1 - share) ** self.rho * np.log(high / low) + np.log(low))


@dataclasses.dataclass(frozen=True)
class KLOptimal(Curve):
    """Sigmas whose arc tangents are equidistant.

    ComfyUI ends it without noise (`end` "zero"), AUTOMATIC1111 at the smallest sigma (`end` "sigma_min").

    Source: Sabour et al. 2024 (arXiv 2404.14507), appendix.
    """

    name = "kl_optimal"

    def curve(self, share: np.ndarray, high: float, low: float) -> np.ndarray:
        # In float32 as in both tools: near pi / 2, where zero terminal SNR begins, a tangent shows every bit
        share, ends = share.astype(np.float32), np.arctan([high, low]).astype(np.float32)
        return np.tan(((1 - share) * ends[0] + share * ends[1]).astype(np.float64))


@dataclasses.dataclass(frozen=True)
class Laplace(Curve):
    """Quantiles of a Laplace distribution of log sigma, with mean `mu` and width `beta`, cut off at the range's ends.

    Source: Hang et al. 2024 (arXiv 2407.03297), table 1.
    """

    name = "laplace"
    mu: float = 0.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        number("mu", self.mu)
        number("beta", self.beta, 0)

    def curve(self, share: np.ndarray, high: float, low: float) -> np.ndarray:
        away = np.abs(0.5 - share)
        log_sigma = self.mu - self.beta * np.sign(0.5 - share) * np.log(np.maximum(1 - 2 * away, 0) + 1e-5)
        return np.clip(np.exp(np.clip(log_sigma, np.log(low), np.log(high))), low, high)


@dataclasses.dataclass(frozen=True)
class VP(Schedule):
    """The sigmas of a continuous variance-preserving process at equidistant times, whatever the model's schedule.

    sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1, with t from 1 to eps_s.

    Source: Song et al. 2021 (arXiv 2011.13456), appendix C; k-diffusion's get_sigmas_vp.
    """

    name = "vp"
    beta_d: float = 19.9
    beta_min: float = 0.1
    eps_s: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta_d", "beta_min"):
            number(name, getattr(self, name), 0, 1000)
        exponent = self.beta_d / 2 + self.beta_min
        if not 0 < number("eps_s", self.eps_s) < 1 or not 0 < exponent <= 2 * np.log(HIGHEST):
            got = f"{self.eps_s}, {self.beta_d}, {self.beta_min}"
            raise ValueError(
                f"eps_s is between 0 and 1, and beta_d / 2 + beta_min above 0 and at most 27.6; got eps_s, beta_d and "
                f"beta_min {got}"
            )

    def path(self, noise: NoiseSchedule, num_steps: int, end: str) -> Grid:
        t = np.linspace(1, self.eps_s, num_steps)
        sigma = np.sqrt(np.expm1(self.beta_d * t**2 / 2 + self.beta_min * t))
        return ended(noise, clipped(noise, sigma, "log_sigma"), sigma, end)


@dataclasses.dataclass(frozen=True)
class LinearQuadratic(Ranged):
    """Sigmas that fall linearly by the share `threshold_noise` in the first `linear_steps`, then quadratically to 0.

    `linear_steps` None is half of the steps. Source: ComfyUI's linear_quadratic, after genmo's Mochi 1.
    """

    name = "linear_quadratic"
    threshold_noise: float = 0.025
    linear_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        number("threshold_noise", self.threshold_noise, 0, 1)
        if self.linear_steps is not None:
            whole("linear_steps", self.linear_steps, 1)

    def path(self, noise: NoiseSchedule, num_steps: int, end: str) -> Grid:
        high, low = self.range(noise)
        before, high = self.after_noise(noise, num_steps, high, low)
        num_steps -= len(before)
        share: np.ndarray = np.zeros(min(num_steps, 1))
        if num_steps > 1:
            k = num_steps // 2 if self.linear_steps is None else self.linear_steps
            if k >= num_steps:
                raise ValueError(f"linear_steps must be below the number of steps, {num_steps}; got {k}")
            # A parabola through (k, threshold) with the line's slope there, and through (num_steps, 1)
            i, rest = np.arange(num_steps), num_steps - k
            slope = self.threshold_noise / k
            if slope * rest > 2 * (1 - self.threshold_noise):
                raise ValueError(
                    f"threshold_noise is too large for {k} linear of {num_steps} steps; got {self.threshold_noise:g}"
                )
            bend = (1 - self.threshold_noise - slope * rest) / rest**2
            share = slope * i + np.where(i > k, bend * (i - k) ** 2, 0.0)
        sigma = np.append(before, high * (1 - share))
        return ended(noise, clipped(noise, sigma, self.interpolation), sigma, end)


@dataclasses.dataclass(frozen=True)
class SigmaList(Schedule):
    """Sigmas chosen by the user, falling; the last one is where the last step ends, usually 0."""

    name = "sigmas"
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        values = tuple(number("a sigma", value, 0 if value == 0 else LOWEST, HIGHEST) for value in self.values)
        if not 2 <= len(values) <= MAX_STEPS + 1 or any(a <= b for a, b in zip(values, values[1:])):
            raise ValueError(
                f"sigmas are 2 to {MAX_STEPS + 1} falling numbers, the last one is the end; got {shown(values)}"
            )
        object.__setattr__(self, "values", values)

    @property
    def count(self) -> int:
        """The number of steps."""
        return len(self.values) - 1 - self.discard_penultimate

    def grid(self, noise: NoiseSchedule, num_steps: int, *, end: str, skip: int = 0) -> Grid:
        """Returns the list, whatever `num_steps` and `end` are."""
        return super().grid(noise, self.count, end=end, skip=skip)

    def path(self, noise: NoiseSchedule, num_steps: int, end: str) -> Grid:
        sigma = np.array(self.values, np.float64)
        return Grid(clipped(noise, sigma, "log_sigma"), sigma)


@dataclasses.dataclass(frozen=True)
class TimestepList(Schedule):
    """Timesteps chosen by the user, falling, where steps start. The sampler's `end` follows."""

    name = "timesteps"
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        values = tuple(number("a timestep", value, 0) for value in self.values)
        if not 1 <= len(values) <= MAX_STEPS or any(a <= b for a, b in zip(values, values[1:])):
            raise ValueError(f"timesteps are 1 to {MAX_STEPS} falling numbers; got {shown(values)}")
        object.__setattr__(self, "values", values)

    @property
    def count(self) -> int:
        """The number of steps."""
        return len(self.values) - self.discard_penultimate

    def grid(self, noise: NoiseSchedule, num_steps: int, *, end: str, skip: int = 0) -> Grid:
        """Returns the list, whatever `num_steps` is. Raises ValueError if a timestep is not one of the model's."""
        if self.values[0] > noise.num_timesteps - 1:
            raise ValueError(f"timesteps are at most {noise.num_timesteps - 1} for this model; got {self.values[0]:g}")
        return super().grid(noise, self.count, end=end, skip=skip)

    def path(self, noise: NoiseSchedule, num_steps: int, end: str) -> Grid:
        timestep = np.array(self.values, np.float64)
        return ended(noise, timestep, noise.sigma(timestep, "log_sigma"), end)


@dataclasses.dataclass(frozen=True)
class FixedGrid(Schedule):
    """The ends of steps as they stand: what another tool made of its schedule."""

    name = "grid"
    timestep: tuple[float, ...] = ()
    sigma: tuple[float, ...] = ()

    def grid(self, noise: NoiseSchedule, num_steps: int, *, end: str, skip: int = 0) -> Grid:
        """Returns the grid without its first `skip` steps, whatever `num_steps` and `end` are."""
        return Grid(np.array(self.timestep[skip:]), np.array(self.sigma[skip:]))
