"""A scheduler of diffusers by its class's name, as the released models' pipelines make it with `from_config`."""

import re
from collections.abc import Mapping
from typing import Any

from sdjax import names
from sdjax.checks.arguments import shown
from sdjax.samplers.diffusers.build import from_diffusers
from sdjax.samplers.diffusers.schedule import KINDS, PREDICTIONS
from sdjax.samplers.known_schedules import describe
from sdjax.samplers.sampler import Sampler
from sdjax.schedule import NoiseSchedule

# What the released models' files say, where a class takes it
OFFSET = {"steps_offset": 1}
OF_RELEASES: dict[str, dict[str, Any]] = {
    "DDIMScheduler": OFFSET | {"set_alpha_to_one": False, "clip_sample": False},
    "PNDMScheduler": OFFSET | {"set_alpha_to_one": False, "skip_prk_steps": True},
    "DDPMScheduler": OFFSET | {"clip_sample": False},
    "LCMScheduler": OFFSET | {"set_alpha_to_one": False},
    "TCDScheduler": OFFSET | {"set_alpha_to_one": False},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True}, "logSNR": {"use_lu_lambdas": True},
    **{name: {"timestep_spacing": name} for name in ("leading", "linspace", "trailing")},
}  # fmt: skip


def by_name(name: str, noise: NoiseSchedule, schedule: Any = None, step: Mapping[str, Any] | None = None) -> Sampler:
    """Returns the sampler of a scheduler's name, such as "DPMSolverMultistepScheduler(use_karras_sigmas=True)".

    A name of ours, or of another tool, means the class that is the same sampler. `schedule` is one of SCHEDULES, None
    for the class's own. `step` are arguments of the scheduler's `step`, such as eta. The betas and the prediction are
    the model's; other fields are those of the released models' files, or the class's defaults.

    Raises ValueError if diffusers has no such scheduler, or not with this schedule.
    """
    label = name
    if "Scheduler" not in name:
        found = names.find_sampler(name)
        labels = names.SAMPLERS[found.sampler].names.of("diffusers") if found.sampler in names.SAMPLERS else []
        if not labels:
            raise ValueError(f"diffusers has no scheduler for {shown(name)}: choose one that it has, or another compat")
        label = re.sub(r"use_\w+", "", labels[0])  # a schedule that the name says is not the class's own
        schedule = found.schedule if schedule is None else schedule
    class_name, _, options = label.strip().rstrip(")").partition("(")
    config = dict(_option(text) for text in re.split(r"[,;]\s*", options) if text.strip())
    if schedule is not None:
        schedule = describe(schedule)
        if not isinstance(schedule, str) or schedule not in SCHEDULES:
            given = shown(schedule) if isinstance(schedule, str) else f"{schedule['name']} with its own numbers"
            raise ValueError(f"with compat diffusers a schedule is one of {', '.join(SCHEDULES)}; got {given}")
        config |= SCHEDULES[schedule]
    own = noise.config
    kind, prediction = (
        next(theirs for theirs, ours in table.items() if ours == mine)
        for table, mine in ((KINDS, own.kind), (PREDICTIONS, own.prediction))
    )
    betas = {"beta_start": own.beta_start, "beta_end": own.beta_end, "beta_schedule": kind,
             "num_train_timesteps": own.num_timesteps}  # fmt: skip
    more = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if own.zero_terminal_snr else {}
    defaults = {"prediction_type": prediction, **OF_RELEASES.get(class_name, OFFSET), **more}
    return from_diffusers({"_class_name": class_name, **betas, **defaults, **config}, **(step or {}))


def _option(text: str) -> tuple[str, Any]:
    """Returns a field and its value of "name=value", or of "name" for true."""
    key, separator, value = text.strip().partition("=")
    value = value.strip().strip("'\"")
    if not separator or value == "True":
        return key, True
    if value in ("False", "None"):
        return key, {"False": False, "None": None}[value]
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value
