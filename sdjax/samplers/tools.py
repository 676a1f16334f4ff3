"""How other tools run their samplers: schedule, start, counting of strength, timesteps told to the network.

    how = recipe("a1111", "DPM++ 2M", "Karras")
    start = how.begin(NoiseSchedule(config), 20)

A `Recipe` gives the rows of a run and its first x (`sdjax.samplers.start.Start`), as the tool has them. The samplers
themselves are those of `SAMPLERS`.

Source: AUTOMATIC1111 1.10.1, modules/sd_samplers_*.py; ComfyUI 0.3.64, comfy/samplers.py and comfy/sample.py;
k-diffusion's external.py; diffusers' StableDiffusionImg2ImgPipeline.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from sdjax import names
from sdjax.checks.arguments import number, whole
from sdjax.samplers.known_schedules import SCHEDULES, ScheduleLike, make_schedule
from sdjax.samplers.optimised_schedules import GITS, AlignYourSteps
from sdjax.samplers.rows import Coef, Rows
from sdjax.samplers.sampler import Sampler, choose
from sdjax.samplers.schedules import FixedGrid, Schedule, SigmaList, Spaced, clipped
from sdjax.samplers.spacing import Grid
from sdjax.samplers.start import Start
from sdjax.samplers.tool_schedules import (
    A1111_AUTOMATIC,
    A1111_DISCARDS,
    A1111_SECOND_ORDER,
    A1111_TIMESTEPS,
    COMFYUI_DISCARDS,
    Distilled,
    a1111_schedule,
    a1111_timesteps,
)
from sdjax.schedule import LAST_ALPHAS, NoiseSchedule

TOOLS = ("a1111", "comfyui", "diffusers", "k_diffusion")
A1111_CFG_PP = 1 / 12.5  # A1111's DDIM CFG++ multiplies the guidance scale by this
ADAPTIVE, ATTEMPTS = ("DPM adaptive", "dpm_adaptive", "sample_dpm_adaptive"), 1000
NOTHING = Start(None, np.float32(1), np.float32(0))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A sampler as a tool runs it.

    `begins`: the first x is the latent plus noise times sigma ("sigma"), or times sqrt(1 + sigma^2)
    ("variance_preserving"), or the latter where the first sigma is the model's largest ("comfyui").
    `told`: the network gets the timestep whose log sigma is that of x, a fraction ("log_sigma"); or the nearest whole
    one ("nearest"); or the grid's ("grid").
    `as_it_is`: the result is x itself, not divided by sqrt(1 + sigma^2) where it ends with noise.
    `scale_factor`: the guidance scale is multiplied by this.
    """

    tool: str
    label: str  # the sampler's name in the tool
    sampler: Sampler
    schedule: Schedule
    begins: Literal["sigma", "variance_preserving", "comfyui"] = "sigma"
    told: Literal["log_sigma", "nearest", "grid"] = "log_sigma"
    as_it_is: bool = True
    scale_factor: float = 1.0

    @property
    def on_timesteps(self) -> bool:
        """Whether it is one of A1111's samplers that take timesteps, and no schedule: DDIM, PLMS, UniPC."""
        return self.tool == "a1111" and self.label in A1111_TIMESTEPS

    def noise_schedule(self, noise: NoiseSchedule, *, zero_terminal_snr: bool = False) -> NoiseSchedule:
        """Returns the model's schedule as the tool has it, rescaled with the tool's last alphas_cumprod."""
        if zero_terminal_snr or noise.config.zero_terminal_snr:
            config = dataclasses.replace(noise.config, zero_terminal_snr=False)
            noise = dataclasses.replace(noise, config=config, last_alpha=LAST_ALPHAS.get(self.tool, 2.0**-24))
        if self.tool == "a1111" and self.label == "LCM":
            return Distilled(noise.config, noise.last_alpha)
        return noise

    def timesteps(
        self, num_steps: int, *, strength: float | None = None, exact_steps: bool = False
    ) -> np.ndarray:  # fmt: skip
        """Returns the timesteps that A1111's DDIM, PLMS and UniPC get, int, rising; with `strength` only the first."""
        total, left = _a1111_steps(num_steps, strength, exact_steps)
        return a1111_timesteps(total)[:left]

    def sigmas(
        self, noise: NoiseSchedule, num_steps: int, *, strength: float | None = None, exact_steps: bool = False
    ) -> Grid:
        """Returns the ends of the steps that are run. `noise` is `noise_schedule`'s.

        `strength` below 1 leaves out the first steps, counted as the tool does. `exact_steps`: A1111's setting "do
        exactly the amount of steps the slider says". The grid has fewer than two entries if no step is left.
        """
        num_steps = whole("num_steps", num_steps, 1)
        strength = None if strength is None else number("strength", strength, 0, 1)
        if self.tool == "a1111":
            total, left = _a1111_steps(num_steps, strength, exact_steps)
            if self.on_timesteps:
                return self._timestep_grid(noise, total, left)
            grid = self._grid(noise, total)
            return grid if left is None else Grid(*(values[max(total - left - 1, 0) :] for values in grid))
        if strength is None or (self.tool == "comfyui" and strength > 0.9999):
            return self._grid(noise, num_steps)
        if strength == 0:
            return Grid(np.zeros(0), np.zeros(0))
        if self.tool == "comfyui" and isinstance(self.schedule, AlignYourSteps | GITS):
            return Grid(*(values[-(round(num_steps * strength) + 1) :] for values in self._grid(noise, num_steps)))
        if self.tool == "comfyui":
            grid = self._grid(noise, int(num_steps / strength))
            return Grid(*(values[-(num_steps + 1) :] for values in grid))
        grid = self._grid(noise, num_steps)
        count = len(grid.sigma) - 1
        left = min(int(num_steps * strength), count)
        return Grid(*(values[count - left :] for values in grid))

    def begin(
        self,
        noise: NoiseSchedule,
        num_steps: int,
        *,
        strength: float | None = None,
        exact_steps: bool = False,
        has_latent: bool = False,
        zero_terminal_snr: bool = False,
        first: int = 0,
        last: int | None = None,
        remove_all_noise: bool = False,
    ) -> Start:
        """Returns the start of a run, for the model's own schedule.

        The first x has the latent in it if `strength` is given, or in ComfyUI if `has_latent`. ComfyUI's advanced
        sampler runs only the steps from `first` to `last` of those; with `remove_all_noise` its last step ends without
        noise.
        """
        noise = self.noise_schedule(noise, zero_terminal_snr=zero_terminal_snr)
        if self.on_timesteps:
            return self._timestep_start(noise, num_steps, strength, exact_steps)
        t, sigma = self.sigmas(noise, num_steps, strength=strength, exact_steps=exact_steps)
        if last is not None and last < len(sigma) - 1:
            t, sigma = t[: last + 1], sigma[: last + 1].copy()
            if remove_all_noise:
                sigma[-1] = 0.0
        t, sigma = t[first:], sigma[first:]
        if len(sigma) < 2:
            return NOTHING
        rows = self.rows(noise, Grid(t, sigma))
        of_x0 = float(strength is not None or (has_latent and self.tool == "comfyui"))
        root = math.sqrt(1 + sigma[0] ** 2)
        vp = {"sigma": False, "variance_preserving": True, "comfyui": sigma[0] >= noise.sigmas[-1] * (1 - 1e-5)}
        full = vp[self.begins] and not (of_x0 and self.begins == "variance_preserving")
        return Start(rows, np.float32(of_x0), np.float32(root if full else sigma[0]), self.as_it_is)

    def rows(self, noise: NoiseSchedule, grid: Grid) -> Rows:
        """Returns the rows of a grid, with the timesteps that the tool tells the network."""
        t, sigma = grid
        if self.label in ADAPTIVE:  # the number of steps is no limit there
            sigma = np.geomspace(sigma[0], sigma[sigma > 0][-1], ATTEMPTS + 1)
            t = clipped(noise, sigma, "log_sigma")
        sampler = self.sampler
        if self.label in ("uni_pc", "uni_pc_bh2"):  # ComfyUI's have a lower order for few steps
            sampler = dataclasses.replace(sampler, order=min(3, max(len(sigma) - 2, 1)))  # type: ignore[call-arg]
        if isinstance(noise, Distilled):  # the boundary condition depends on the model's timesteps
            t = noise.whole(t)
        fixed = FixedGrid(timestep=tuple(map(float, t)), sigma=tuple(map(float, sigma)))
        rows = dataclasses.replace(sampler, spacing=fixed).steps(noise, len(sigma) - 1)
        if self.on_timesteps and self.label == "UniPC" and noise.config.prediction == "v":
            return _truncated(noise, rows)
        if self.told == "grid" or len(rows.index) == 1:
            return rows
        sigma = np.maximum(np.asarray(rows.sigma, np.float64), noise.sigmas[0] / 2)
        if isinstance(noise, Distilled):
            told = noise.whole(noise.nearest_timestep(sigma))
        elif self.told == "nearest":
            told = noise.nearest_timestep(sigma)
        else:
            told = np.clip(noise.timestep(sigma, "log_sigma"), 0, noise.num_timesteps - 1)
        return rows._replace(timestep=told.astype(np.float32))

    def guided_calls(
        self,
        start: Start,
        *,
        num_steps: int,
        minimum_sigma: float = 0.0,
        every_step: bool = False,
        skip_early: float = 0.0,
    ) -> np.ndarray:
        """Returns in which calls of a run A1111 computes the unconditional branch, bool [n].

        `minimum_sigma` is its "negative guidance minimum sigma": below it every second call is unguided, or all with
        `every_step`. `skip_early` is its "ignore negative prompt during early sampling": the share of the run.
        """
        assert start.rows is not None
        call = np.arange(len(start.rows.sigma))
        total = num_steps * (2 if self.label in A1111_SECOND_ORDER else 1)
        early = call / total <= skip_early if skip_early else np.zeros(len(call), bool)
        level = start.rows.timestep if self.on_timesteps else start.rows.sigma
        low = ((call % 2 == 1) | every_step) & (np.asarray(level) < minimum_sigma)
        return ~(early | low)

    def _grid(self, noise: NoiseSchedule, num_steps: int) -> Grid:
        """Returns the ends of all steps of the schedule."""
        whole_range = self.tool == "a1111" and self.schedule.name == "kl_optimal"  # ends at the smallest sigma there
        if self.tool == "a1111" and self.schedule == AlignYourSteps(table=11) and num_steps == 1:
            return SigmaList(values=(0.029, 0.0)).grid(noise, 1, end="zero")  # it interpolates from the low end
        end = "sigma_min" if whole_range else self.sampler.end if self.tool == "diffusers" else "zero"
        return self.schedule.grid(noise, num_steps, end=end)

    def _timestep_grid(self, noise: NoiseSchedule, total: int, left: int | None) -> Grid:
        """Returns the ends of the steps of A1111's samplers on timesteps; the first timestep is only an end."""
        every = a1111_timesteps(total)
        used = every if left is None else every[:left]
        if self.label != "UniPC":
            return Grid(used[::-1].astype(np.float64), noise.sigmas[used[::-1]])
        highest = noise.num_timesteps - 1.0 if left is None else float(used[-1]) if len(used) else 0.0
        timestep = np.linspace(highest, 0, len(used) + 1)
        return Grid(timestep, noise.sigma(timestep, "log_alpha"))

    def _timestep_start(self, noise: NoiseSchedule, num_steps: int, strength: float | None, exact_steps: bool) -> Start:
        """Returns the start of A1111's samplers on timesteps: noise of the timestep above the first one that is run."""
        total, left = _a1111_steps(num_steps, strength, exact_steps)
        grid = self._timestep_grid(noise, total, left)
        if left is None and len(grid.sigma) < 2:
            raise ValueError(f"A1111's {self.label} makes no step at all for 1 step: give at least 2")
        if left is None:
            return Start(self.rows(noise, grid), np.float32(0), np.float32(math.sqrt(1 + grid.sigma[0] ** 2)))
        every = a1111_timesteps(total)
        added = noise.sigmas[every[min(left, len(every) - 1)]]
        if len(grid.sigma) < 2:
            return NOTHING
        of_x0 = math.sqrt((1 + grid.sigma[0] ** 2) / (1 + added**2))  # its latent is variance-preserving
        return Start(self.rows(noise, grid), np.float32(of_x0), np.float32(of_x0 * added))


def _truncated(noise: NoiseSchedule, rows: Rows) -> Rows:
    """Returns rows that remember x0 as A1111 computes it for UniPC and v: with epsilon of the whole timestep below.

    With a, s the weights of x0 and noise at the fractional timestep and a', s' those at the whole one, and with the
    network's v = (a x - x0) / s for the variance-preserving x: epsilon = a' v + s' x, and x0' = (x - s epsilon) / a.
    """
    assert isinstance(rows.coef, Coef)
    below = np.floor(np.asarray(rows.timestep) + 1e-3).astype(int)
    alpha = 1 / np.sqrt(1 + np.asarray(rows.sigma, np.float64) ** 2)
    of_noise = np.sqrt(1 - alpha**2)
    whole_alpha = np.sqrt(noise.alphas_cumprod[below])
    of_x = 1 - whole_alpha * alpha - of_noise * np.sqrt(1 - whole_alpha**2)
    remember = np.stack([of_x, whole_alpha / alpha, np.zeros(len(alpha))], axis=1).astype(np.float32)
    return rows._replace(coef=rows.coef._replace(remember=remember))


def _a1111_steps(num_steps: int, strength: float | None, exact_steps: bool) -> tuple[int, int | None]:
    """Returns the number of steps of the whole schedule, and t_enc, A1111's count of those that are left."""
    if strength is None:
        return num_steps, None
    strength = min(strength, 0.999)
    if exact_steps:
        if strength == 0:
            raise ValueError("strength 0 leaves no steps, so there are none to count exactly")
        return int(num_steps / strength), num_steps - 1
    return num_steps, int(strength * num_steps)


def recipe(
    tool: str,
    sampler: str,
    schedule: ScheduleLike | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    schedule_settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """Returns how a tool runs a sampler with a schedule, both by the names that they have there (or here).

    `schedule` None is the tool's own choice: A1111's automatic schedule type, ComfyUI's "normal", diffusers' "leading"
    and k-diffusion's "normal". `settings` are fields of the sampler, `schedule_settings` of the schedule; for A1111 its
    settings by its names, as `beta_dist_alpha` or `always_discard_next_to_last_sigma`.

    Raises ValueError for a tool, name or setting that is unknown, or a pair that does not go together.
    """
    choose("tool", tool, TOOLS)
    from sdjax.samplers import SAMPLERS

    found = names.find_sampler(sampler, tool, SAMPLERS)
    known = names.SAMPLERS.get(found.sampler)
    labels = known.names.of(tool) if known else []
    label = next(
        (one for one in labels if names.plain(one) == names.plain(sampler)), labels[0] if labels else found.sampler
    )
    schedule = found.schedule if schedule is None else schedule
    own = _tool_settings(tool, label) | dict(settings or {})
    made = SAMPLERS[found.sampler]()
    if not isinstance(made, Sampler):
        raise ValueError(f"the sampler {found.sampler} is not one of {names.TITLES[tool]}'s")
    fields = {field.name for field in dataclasses.fields(made)}
    for name in own:
        if name not in fields:
            raise ValueError(f"the sampler {label} has no {name}; it has {', '.join(sorted(fields))}")
    made = dataclasses.replace(made, **own)
    extra = dict(schedule_settings or {})
    if tool == "a1111":
        if label in A1111_TIMESTEPS:
            if schedule not in (None, "Automatic"):
                raise ValueError(
                    f"A1111's {label} has timesteps of its own and no schedule type; leave the schedule out"
                )
            factor = A1111_CFG_PP if label == "DDIM CFG++" else 1.0
            return Recipe(
                tool, label, made, Spaced(spacing="compvis"), "variance_preserving", "grid", False, scale_factor=factor
            )
        chosen = A1111_AUTOMATIC.get(label, "Uniform") if schedule in (None, "Automatic") else schedule
        return Recipe(tool, label, made, a1111_schedule(chosen, extra, discard=label in A1111_DISCARDS))
    if tool == "diffusers":
        plan = _object(make_schedule("leading" if schedule is None else schedule, extra))
        vp = made.variance_preserving or plan == Spaced(spacing="leading")
        return Recipe(tool, label, made, plan, "variance_preserving" if vp else "sigma", "grid", False)
    named = _in_tool(schedule, tool)
    plan = _object(make_schedule(named, extra))
    if tool == "comfyui":
        if label in COMFYUI_DISCARDS:
            plan = dataclasses.replace(plan, discard_penultimate=True)
        return Recipe(tool, label, made, plan, "comfyui", "nearest")
    return Recipe(tool, label, made, plan)


def _object(schedule: str | Schedule) -> Schedule:
    """Returns the schedule itself for a name of ours."""
    return SCHEDULES[schedule]() if isinstance(schedule, str) else schedule


def _in_tool(schedule: ScheduleLike | None, tool: str) -> ScheduleLike:
    """Returns the schedule, with a tool's name for it replaced by ours; "normal" if there is none."""
    if schedule is None:
        return "normal"
    if not isinstance(schedule, str) or "=" in schedule:
        return schedule
    try:
        return names.find_schedule(schedule, tool)
    except ValueError:
        return names.find_schedule(schedule, more=SCHEDULES)


def _tool_settings(tool: str, label: str) -> dict[str, Any]:
    """Returns the fields of a sampler that a tool sets differently from our defaults."""
    return dict(SETTINGS.get((tool, label), {}))


# (tool, name of the sampler there) -> fields
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("a1111", "UniPC"): {"variant": "bh1", "order": 3, "end": "sigma_min"},
    ("a1111", "DPM fast"): {"eta": 1.0},
    ("a1111", "DPM adaptive"): {"eta": 1.0, "joint": True},
    ("comfyui", "dpm_adaptive"): {"joint": True},
    **dict.fromkeys(
        [("comfyui", "er_sde"), ("comfyui", "seeds_2"), ("comfyui", "seeds_3")], {"brownian": False}
    ),  # it draws independent noise for them
    ("k_diffusion", "sample_dpm_adaptive"): {"joint": True},
}


def comfyui_percent_to_sigma(noise: NoiseSchedule, percent: float) -> float:
    """Returns the sigma at a share of the schedule, as ComfyUI's nodes count it: 0 is before the start, 1 is the end.

    Raises ValueError for anything but a number.
    """
    percent = number("percent", percent)
    if percent <= 0:
        return 999999999.9
    if percent >= 1:
        return 0.0
    return float(noise.sigma((1 - percent) * (noise.num_timesteps - 1), "log_sigma"))
