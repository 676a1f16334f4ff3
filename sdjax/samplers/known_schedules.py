"""The table of schedules, and the reading of what users write: names of any tool, options, lists of numbers."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from sdjax import names
from sdjax.checks.arguments import is_sequence, shown
from sdjax.samplers.optimised_schedules import GITS, AlignYourSteps, AYSTimesteps
from sdjax.samplers.schedules import (
    VP,
    Exponential,
    Karras,
    KLOptimal,
    Laplace,
    LinearQuadratic,
    Polyexponential,
    Schedule,
    SigmaList,
    Spaced,
    TimestepList,
)
from sdjax.samplers.spacing import SPACINGS
from sdjax.samplers.timestep_schedules import Beta, DDIMUniform, Normal, SDTurbo, SGMUniform, Simple

ScheduleLike: TypeAlias = str | Schedule | Sequence[float]

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    **{name: functools.partial(Spaced, spacing=name) for name in SPACINGS},
    "linspace": functools.partial(Normal, interpolation="sigma"),
    "time_uniform": functools.partial(Normal, interpolation="log_alpha"),
    "logSNR": functools.partial(Exponential, interpolation="log_alpha"),
    "exponential": Exponential,
    "karras": Karras,
    "normal": Normal,
    "simple": Simple,
    "sgm_uniform": SGMUniform,
    "ddim_uniform": DDIMUniform,
    "polyexponential": Polyexponential,
    "beta": Beta,
    "linear_quadratic": LinearQuadratic,
    "kl_optimal": KLOptimal,
    "laplace": Laplace,
    "vp": VP,
    "align_your_steps": AlignYourSteps,
    "align_your_steps_11": functools.partial(AlignYourSteps, table=11),
    "align_your_steps_32": functools.partial(AlignYourSteps, table=32),
    "align_your_steps_timesteps": AYSTimesteps,
    "gits": GITS,
    "sd_turbo": SDTurbo,
}
LISTS: dict[str, Callable[..., Schedule]] = {"sigmas": SigmaList, "timesteps": TimestepList}


def make_schedule(schedule: ScheduleLike, options: Mapping[str, Any] | None = None) -> str | Schedule:
    """Returns a schedule. `options` are its fields, or texts of them.

    `schedule` is a name of any tool, a list (floats are sigmas, whole numbers are timesteps), or a Schedule. A name
    without options whose meaning is a spacing stays a name.

    Raises ValueError for an unknown name, option or value.
    """
    options = dict(options or {})
    if isinstance(schedule, Schedule):
        made: Callable[..., Schedule] = functools.partial(dataclasses.replace, schedule)
        name = schedule.name
    elif isinstance(schedule, str):
        name, equals, numbers = schedule.partition("=")
        if equals and name in LISTS:
            made = functools.partial(LISTS[name], values=_numbers(name, numbers))
        else:
            name = schedule if schedule in SCHEDULES else names.find_schedule(schedule, more=SCHEDULES)
            if name in SPACINGS and not options:
                return name
            made = SCHEDULES[name]
    elif is_sequence(schedule):
        values = [value.item() if hasattr(value, "item") else value for value in schedule]
        name = "timesteps" if all(isinstance(value, int) for value in values) else "sigmas"
        made = functools.partial(LISTS[name], values=tuple(values))
    else:
        raise ValueError(f"schedule is a name, a list of sigmas or timesteps, or a Schedule; got {shown(schedule)}")
    plain = made()
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain) if field.init}
    fields = {key: value for key, value in fields.items() if key not in ("values", "spacing")}
    unknown = [key for key in options if key not in fields]
    if unknown:
        raise ValueError(f"the schedule {name} has no {unknown[0]}; it has {', '.join(fields)}")
    return made(**{key: _read(name, key, value, fields[key]) for key, value in options.items()})


def is_automatic(schedule: Any) -> bool:
    """Returns whether this is A1111's schedule type "Automatic", the sampler's own schedule."""
    return isinstance(schedule, str) and names.plain(schedule) == "automatic"


def describe(schedule: str | Schedule) -> str | dict[str, Any]:
    """Returns a schedule as JSON can hold it: its name, or its name and all its options."""
    if isinstance(schedule, str):
        return schedule
    fields = {field.name: getattr(schedule, field.name) for field in dataclasses.fields(schedule)}
    return {"name": schedule.name, **{key: value for key, value in fields.items() if key != "spacing"}}


def from_description(described: Any) -> str | Schedule:
    """Returns the schedule of what `describe` returned. Raises ValueError for anything else."""
    if isinstance(described, str):
        return make_schedule(described)
    if not isinstance(described, Mapping) or not isinstance(described.get("name"), str):
        raise ValueError(f"a schedule is described by its name and options; got {shown(described)}")
    options = {key: value for key, value in described.items() if key != "name"}
    name = described["name"]
    if name in LISTS:
        values = options.pop("values", ())
        if not is_sequence(values):
            raise ValueError(f"the values of {name} are a list of numbers; got {shown(values)}")
        return make_schedule(LISTS[name](values=tuple(values)), options)
    return make_schedule(name, options)


def _numbers(name: str, text: str) -> tuple[float, ...]:
    """Returns the numbers of "14.6,7,0"."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        such = "14.6,7.5,2,0" if name == "sigmas" else "999,700,300"
        raise ValueError(f"{name} are numbers, separated by commas, as {name}={such}; got {shown(text)}") from None


def _read(schedule: str, name: str, value: Any, present: Any) -> Any:
    """Returns an option's value, read from a text if it is one."""
    if not isinstance(value, str) or isinstance(present, str):
        return value
    try:
        if isinstance(present, bool):
            return {"true": True, "false": False}[value]
        if isinstance(present, int) or name == "linear_steps":
            return int(value)
        return float(value)
    except (ValueError, KeyError):
        wanted = (
            "true or false"
            if isinstance(present, bool)
            else "a whole number"
            if isinstance(present, int)
            else "a number"
        )
        raise ValueError(f"{name} of the schedule {schedule} is {wanted}; got {value!r}") from None
