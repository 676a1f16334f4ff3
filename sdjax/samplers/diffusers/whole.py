"""Schedulers of diffusers that walk over whole timesteps: DDIM and its inversion, DDPM, PNDM, LCM.

Their steps go from the noise of timestep t to that of t - num_timesteps // num_steps. That need not be the next
timestep: "linspace" ones, for example, are further apart. The variance-preserving latent is then taken as if it had the
next timestep's noise. `relabelled` does the same.
"""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from sdjax.checks.arguments import whole
from sdjax.samplers.ancestral import split_noise
from sdjax.samplers.diffusers.grid import Spacing, check_count, check_timesteps, starts
from sdjax.samplers.multistep import ADAMS_BASHFORTH
from sdjax.samplers.rows import Coef, Rows, row, stack
from sdjax.samplers.rule import Linear
from sdjax.samplers.sampler import Sampler
from sdjax.samplers.schedules import Schedule
from sdjax.samplers.spacing import Grid
from sdjax.schedule import PREDICTIONS, NoiseSchedule

PRK_MEMORY = 12  # calls of three steps of Runge-Kutta, before the first of Adams-Bashforth


def size(sigma: float) -> float:
    """Returns the norm of x over that of the variance-preserving latent."""
    return np.sqrt(1 + sigma**2)


def relabelled(one: Rows, sigma_next: float, taken_as: float) -> Rows:
    """Returns a row after which the latent of noise `sigma_next` is taken as one of noise `taken_as`."""
    coef, factor = one.coef, size(taken_as) / size(sigma_next)
    assert isinstance(coef, Coef)
    coef = coef._replace(base=coef.base * factor, calls=coef.calls * factor, noise=coef.noise * factor)
    return one._replace(coef=coef, sigma_next=np.asarray(taken_as, np.float64))


@dataclasses.dataclass(frozen=True)
class WholeGrid(Schedule):
    """Whole timesteps, as DDIM, DDPM, LCM and TCD of diffusers choose them.

    `distilled`: `num_steps` of so many timesteps that a model was distilled for (LCM, TCD), in the place of `spacing`.
    `last` is the noise at the end: none, or that of timestep 0. `timesteps` replace all of them.
    """

    spacing: Spacing = "leading"
    offset: int = 0
    distilled: int | None = None
    last: Literal["zero", "sigma_min"] = "zero"
    timesteps: tuple[float, ...] | None = None

    name: ClassVar[str] = "diffusers"
    variance_preserving: ClassVar[bool] = True

    def grid(self, noise: NoiseSchedule, num_steps: int, *, end: str, skip: int = 0) -> Grid:
        """Returns the timesteps, with their sigmas and the last one. `end` has no effect: `last` is in its place.

        Raises ValueError if there cannot be `num_steps` steps.
        """
        timestep = self.told(noise, whole("num_steps", num_steps, 1, noise.num_timesteps))
        check_timesteps(timestep, noise)
        if not 0 <= skip < len(timestep):
            raise ValueError(f"cannot leave out the first {skip} of {len(timestep)} steps: at least one must remain")
        table = noise.sigmas
        sigma = np.append(table[timestep.astype(int)], 0.0 if self.last == "zero" else table[0])
        return Grid(np.append(timestep, 0.0)[skip:], sigma[skip:])

    def told(self, noise: NoiseSchedule, num_steps: int) -> np.ndarray:
        """Returns the timesteps where steps start, falling."""
        count = noise.num_timesteps
        if self.timesteps is not None:
            check_count(len(self.timesteps), num_steps, "timesteps")
            return np.array(self.timesteps, np.float64)
        if self.distilled is not None:
            if num_steps > self.distilled:
                raise ValueError(f"this model was distilled for at most {self.distilled} steps; got {num_steps}")
            places = np.arange(num_steps) * self.distilled // num_steps
            return (np.arange(self.distilled, 0, -1) * (count // self.distilled) - 1.0)[places]
        return np.round(starts(self.spacing, count, num_steps, self.offset))


@dataclasses.dataclass(frozen=True)
class Walk(Sampler):
    """The base of samplers that walk over a `WholeGrid`."""

    def path(
        self, schedule: NoiseSchedule, num_steps: int, skip: int, *, evenly: bool
    ) -> tuple[Grid, list[float], list[float]]:
        """Returns the grid, the noise that each step reaches, and the noise that its result is taken to have.

        A step reaches timestep t - num_timesteps // num_steps if `evenly`, else the next timestep; both are the last
        sigma of the grid where there is no such timestep.
        """
        grid = self.grid(schedule, num_steps, skip=skip)
        taken = list(grid.sigma[1:])
        if not evenly:
            return grid, taken, taken
        before = grid.timestep[:-1].astype(int) - schedule.num_timesteps // num_steps
        reached = [schedule.sigmas[t] if t >= 0 else grid.sigma[-1] for t in before]
        return grid, reached, [*taken[:-1], reached[-1]]


@dataclasses.dataclass(frozen=True)
class DDIMScheduler(Walk):
    """DDIM: x' = x0 + down epsilon + up z, with down and up of `split_noise`.

    With `clips` the rule limits x0 (thresholding.py) but not the x0 in epsilon, unless `clips_epsilon`.

    Source: diffusers' DDIMScheduler, `step`.
    """

    eta: float = 0.0
    clips: bool = False
    clips_epsilon: bool = False

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns one row per step."""
        grid, reached, taken = self.path(schedule, num_steps, skip, evenly=True)
        rows = []
        for t, sigma, end, taken_as in zip(grid.timestep, grid.sigma, reached, taken):
            down, up = split_noise(sigma, end, self.eta)
            keep = down / sigma
            remember: str | tuple[float, ...] = "x0"
            calls = [1 - keep]
            if self.clips and not self.clips_epsilon:
                remember, calls = (0.0, -keep, 1.0), [1.0]
            one = row(t, sigma, end, base=keep, calls=calls, noise=up, remember=remember)
            rows.append(relabelled(one, end, taken_as))
        return stack(rows)


@dataclasses.dataclass(frozen=True)
class DDPMScheduler(Walk):
    """Ancestral sampling: the posterior's mean for x0, with one of two variances.

    In the variance-preserving latent, with a = alphas_cumprod and beta = 1 - a / a':
    x' = sqrt(a') beta / (1 - a) x0 + sqrt(a / a') (1 - a') / (1 - a) x + s z, where s^2 is beta (1 - a') / (1 - a), the
    posterior's variance, or beta itself if `large`. There is no noise after timestep 0.

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 7 and section 3.2; diffusers' DDPMScheduler, `step`.
    """

    large: bool = False

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns one row per step."""
        grid, reached, taken = self.path(schedule, num_steps, skip, evenly=False)
        rows = []
        for t, sigma, end, taken_as in zip(grid.timestep, grid.sigma, reached, taken):
            a, a_next = size(sigma) ** -2, size(end) ** -2
            beta = 1 - a / a_next
            variance = beta if self.large else max(beta * (1 - a_next) / (1 - a), 1e-20)
            one = row(
                t, sigma, end, base=a / a_next * (1 - a_next) / (1 - a), calls=[beta / (1 - a)],
                noise=np.sqrt(variance / a_next) if t > 0 else 0.0,
            )  # fmt: skip
            rows.append(relabelled(one, end, taken_as))
        return stack(rows)


@dataclasses.dataclass(frozen=True)
class LCMScheduler(Walk):
    """LCM: x' = c_skip x + c_out x0 + sigma' z in the variance-preserving x, without noise after the last step.

    c_skip = 1/4 / (t^2 + 1/4) and c_out = t / sqrt(t^2 + 1/4) with t the timestep times `scaling`.

    Source: Luo et al. 2023 (arXiv 2310.04378), appendix; diffusers' LCMScheduler, `step`.
    """

    scaling: float = 10.0

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns one row per step."""
        t, sigma = grid
        rows = []
        for i in range(len(t) - 1):
            scaled = t[i] * self.scaling
            c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
            rows.append(
                row(t[i], sigma[i], sigma[i + 1], base=c_skip / size(sigma[i]), calls=[c_out], noise=sigma[i + 1])
            )
        return stack(rows)


@dataclasses.dataclass(frozen=True)
class DDIMInverseScheduler(Sampler):
    """DDIM backwards, from the image to noise: x' = x + (sigma' - sigma) epsilon(x, t'), t' the timestep of sigma'.

    The forward step from t' to t takes epsilon(x', t'), so the network is called with x but told t'.

    Source: Song et al. 2021 (arXiv 2010.02502), section 4.3; diffusers' DDIMInverseScheduler, `step`.
    """

    timestep_spacing: Literal["leading", "trailing"] = "leading"
    offset: int = 0
    starts_without_noise: bool = True

    def grid(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Grid:
        """Returns the timesteps that the network is told, and the noise where steps start and end. Both rise."""
        num_steps = whole("num_steps", num_steps, 1, schedule.num_timesteps)
        told = np.round(starts(self.timestep_spacing, schedule.num_timesteps, num_steps, self.offset))[::-1]
        check_timesteps(told, schedule)
        end = schedule.sigmas[told.astype(int)]
        if not 0 <= skip < len(told):
            raise ValueError(f"cannot leave out the first {skip} of {len(told)} steps: at least one must remain")
        first = 0.0 if self.starts_without_noise else schedule.sigmas[0]
        before = told.astype(int) - schedule.num_timesteps // num_steps
        start = np.where(before >= 0, schedule.sigmas[before], first)
        return Grid(np.append(told, told[-1])[skip:], np.append(start, end[-1])[skip:])

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns one row per step."""
        t, start = self.grid(schedule, num_steps, skip=skip)
        n = len(t) - 1
        called = np.maximum(start, schedule.sigmas[0])  # a network cannot be asked for the noise in no noise
        rows = []
        for i in range(n):
            end = schedule.sigmas[int(t[i])]
            slope = end - start[i]
            if start[i] > 0:
                one = row(t[i], start[i], end, calls=[slope], remember="epsilon")
            else:  # without noise v is the network's epsilon, and x is x0
                of_noise = "v" if schedule.config.prediction == "v" else "epsilon"
                one = row(t[i], called[i], end, base=1 / size(called[i]), calls=[slope], remember=of_noise)
            rows.append(relabelled(one, end, called[i + 1] if i + 1 < n else end))
        return stack(rows)


@dataclasses.dataclass(frozen=True)
class PNDMScheduler(Sampler):
    """PNDM: Adams-Bashforth over the network's outputs, after a warm-up by Runge-Kutta or by a step like Heun's.

    x' = x + (sigma' - sigma) e', where e' is the combined output as epsilon. Outputs are combined as the network gives
    them. `runge_kutta`: the first three steps are of the fourth-order method, with four calls each; otherwise the first
    step has two calls. In image to image the walk starts in the middle of this list of calls, as it does in diffusers.

    Source: Liu et al. 2022 (arXiv 2202.09778), eq. 9 to 13; diffusers' PNDMScheduler, `step_prk` and `step_plms`.
    """

    timestep_spacing: Spacing = "leading"
    offset: int = 0
    runge_kutta: bool = False
    ends_without_noise: bool = False

    @property
    def rule(self) -> Linear:
        """The compiled part of the sampler."""
        return Linear(PRK_MEMORY) if self.runge_kutta else Linear()

    def told(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
        """Returns the timesteps of all calls, in order."""
        count = schedule.num_timesteps
        walk = np.round(starts(self.timestep_spacing, count, num_steps, self.offset))
        check_timesteps(walk, schedule)
        if not self.runge_kutta:
            return np.concatenate([walk[:1], walk[1:2], walk[1:]])
        if num_steps < 4:
            raise ValueError(f"PNDM with steps of Runge-Kutta needs at least 4 steps; got {num_steps}")
        half = count // num_steps // 2
        rising = walk[:4][::-1].repeat(2) + np.tile([0, half], 4)
        return np.concatenate([rising[:-1].repeat(2)[1:-1][::-1], walk[3:]])

    def grid(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Grid:
        """Returns the timesteps of all calls with their noise. `skip` calls are left out."""
        num_steps = whole("num_steps", num_steps, 1, schedule.num_timesteps)
        told = self.told(schedule, num_steps)
        if not 0 <= skip < len(told):
            raise ValueError(f"cannot leave out the first {skip} of {len(told)} calls: at least one must remain")
        end = 0.0 if self.ends_without_noise else schedule.sigmas[0]
        return Grid(np.append(told, 0.0)[skip:], np.append(schedule.sigmas[told.astype(int)], end)[skip:])

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns one row per call."""
        grid = self.grid(schedule, num_steps, skip=skip)
        called = grid.timestep[:-1].astype(int)
        warm_up = list(self.told(schedule, num_steps)[:12].astype(int)) if self.runge_kutta else []
        step = schedule.num_timesteps // num_steps
        table, last = schedule.sigmas, grid.sigma[-1]

        def at(timestep: int) -> float:
            return table[timestep] if timestep >= 0 else last

        rows = []
        start = 0  # the call at the start of the present step
        for i, t in enumerate(called):
            begins = True
            if i < len(warm_up):
                k = i % 4
                begins, start = k == 0, i - k
                came_from, goes_to = warm_up[start], t - (0 if i % 2 else step // 2)
                weights = np.array([[1.0], [1.0, 0], [1.0, 0, 0], [1 / 6, 1 / 3, 1 / 3, 1 / 6]][k])
            elif i == 1 and not self.runge_kutta:
                begins, came_from, goes_to, weights = False, t + step, t, np.array([0.5, 0.5])
            else:
                start, came_from, goes_to = i, t, t - step
                weights = self.adams(i)
            sigma, sigma_next = at(came_from), at(goes_to)
            next_sigma = grid.sigma[i + 1] if i + 1 < len(called) else sigma_next
            of_x, of_out = map(float, PREDICTIONS[schedule.config.prediction].x0(sigma))
            slope = (sigma_next - sigma) / sigma
            # The step's start was kept as of the noise at its call; here it is taken as of `sigma`
            base = (1 + slope * (1 - of_x)) * size(sigma) / size(grid.sigma[start if not begins else i])
            one = row(
                t, grid.sigma[i], sigma_next, base=base, calls=-slope * of_out * weights, starts_step=begins,
                remember=schedule.config.prediction, memory=self.rule.memory,
            )  # fmt: skip
            rows.append(relabelled(one, sigma_next, next_sigma))
        return stack(rows)

    def adams(self, i: int) -> np.ndarray:
        """Returns Adams-Bashforth's weights of the last calls, newest first, at call i."""
        if not self.runge_kutta:
            kept = [0, *range(2, i + 1)]  # the second call is not used again
        else:
            kept = [0, 4, 8, *range(12, i + 1)]
        kept = kept[::-1][:4]
        weights = np.zeros(i - kept[-1] + 1)
        weights[[i - call for call in kept]] = ADAMS_BASHFORTH[len(kept) - 1]
        return weights
