"""Schedules as AUTOMATIC1111 and ComfyUI set them up for their samplers: facts in tables.

Source: AUTOMATIC1111 1.10.1, modules/sd_samplers_kdiffusion.py, sd_samplers_timesteps.py, sd_samplers_lcm.py and
sd_schedulers.py; ComfyUI 0.3.64, comfy/samplers.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdjax import names
from sdjax.checks.arguments import shown
from sdjax.samplers.known_schedules import SCHEDULES, ScheduleLike, make_schedule
from sdjax.samplers.schedules import Schedule
from sdjax.schedule import NoiseSchedule

# A1111's automatic schedule types; the others' is Uniform
A1111_AUTOMATIC = {
    **dict.fromkeys(("DPM++ 2M", "DPM++ SDE", "DPM++ 2S a", "DPM2", "DPM2 a", "Restart"), "Karras"),
    **dict.fromkeys(("DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"), "Exponential"),
}
A1111_DISCARDS = ("DPM2", "DPM2 a", "DPM++ 3M SDE")  # the last sigma before 0
A1111_TIMESTEPS = ("DDIM", "DDIM CFG++", "PLMS", "UniPC")
A1111_SECOND_ORDER = ("Heun", "DPM++ SDE", "DPM++ 2S a", "DPM2", "DPM2 a", "Restart")  # two calls a step
COMFYUI_DISCARDS = ("dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2")
RANGED = ("Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Normal", "Beta")
RHO = ("Karras", "Polyexponential")
A1111_SETTINGS = (
    "rho", "sigma_min", "sigma_max", "beta_dist_alpha", "beta_dist_beta", "always_discard_next_to_last_sigma",
    "use_old_karras_scheduler_sigmas",
)  # fmt: skip
LCM_STRIDE = 20  # latent consistency models know every 20th timestep


@dataclasses.dataclass(frozen=True)
class Distilled(NoiseSchedule):
    """A schedule of only those timesteps that a latent consistency model was distilled for: 19, 39, ..., 999.

    Its timesteps count these, from 0 to 49.
    """

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """a_t of the known timesteps, float64."""
        return super().alphas_cumprod[LCM_STRIDE - 1 :: LCM_STRIDE]

    @property
    def num_timesteps(self) -> int:
        """The number of known timesteps."""
        return self.config.num_timesteps // LCM_STRIDE

    def whole(self, timestep: np.ndarray) -> np.ndarray:
        """Returns the model's timesteps of these timesteps."""
        return timestep * LCM_STRIDE + LCM_STRIDE - 1


def a1111_timesteps(num_steps: int) -> np.ndarray:
    """Returns the timesteps of A1111's DDIM, PLMS and UniPC, int, rising. There may be more than `num_steps`."""
    if num_steps > 1000:
        raise ValueError(f"A1111's timesteps are at most 1000; got {num_steps} steps")
    return np.clip(np.arange(0, 1000, 1000 // num_steps) + 1, 0, 999)


def a1111_schedule(schedule: ScheduleLike, settings: Mapping[str, Any], *, discard: bool) -> Schedule:
    """Returns a schedule type of A1111, or of ours. `settings` are its settings by its names; 0 is their default.

    A schedule type ignores settings that it has no use for, as there. Raises ValueError for unknown settings.
    """
    unknown = [name for name in settings if name not in A1111_SETTINGS]
    if unknown:
        raise ValueError(f"A1111 has no setting {unknown[0]} of schedules; it has {', '.join(A1111_SETTINGS)}")
    discard = discard or bool(settings.get("always_discard_next_to_last_sigma", False))
    if not isinstance(schedule, str) or schedule.partition("=")[0] in ("sigmas", "timesteps"):
        return _discarding(make_schedule(schedule), discard)
    try:
        own = names.find_schedule(schedule, "a1111")
    except ValueError:
        return _discarding(make_schedule(schedule), discard)
    label = next(one for one in names.SCHEDULES[own].a1111.split(", ") if names.plain(one) == names.plain(schedule))
    options: dict[str, Any] = {}
    if label in RANGED:
        if settings.get("use_old_karras_scheduler_sigmas"):
            options.update(sigma_min=0.1, sigma_max=10.0)
        options.update({key: settings[key] for key in ("sigma_min", "sigma_max") if settings.get(key)})
    if label in RHO and settings.get("rho"):
        options["rho"] = settings["rho"]
    if label == "Beta":
        options |= {"of": "sigma"}
        for ours, theirs in ("alpha", "beta_dist_alpha"), ("beta", "beta_dist_beta"):
            options |= {ours: settings[theirs]} if settings.get(theirs) else {}
    return SCHEDULES[own](**options, discard_penultimate=discard)


def _discarding(schedule: str | Schedule, discard: bool) -> Schedule:
    made = SCHEDULES[schedule]() if isinstance(schedule, str) else schedule
    if not isinstance(made, Schedule):
        raise ValueError(f"a schedule is expected; got {shown(made)}")
    return dataclasses.replace(made, discard_penultimate=True) if discard else made
