"""Turns what a tool wrote about a picture into settings that make it again, and says what is not understood."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sdjax import names
from sdjax.adapters.table import make_settings
from sdjax.pictures.metadata import Found
from sdjax.pictures.metadata.found import Item
from sdjax.samplers import SAMPLERS
from sdjax.samplers.tool_schedules import A1111_TIMESTEPS
from sdjax.tasks import settings
from sdjax.tasks.request import Request
from sdjax.tasks.two_pass import OWN, check_upscale

TITLES = {
    "sdjax": "sdjax", "a1111": "A1111 or Forge", "comfyui": "ComfyUI", "invokeai": "InvokeAI",
    "stable-diffusion.cpp": "stable-diffusion.cpp",
}  # fmt: skip
COMPAT = {"a1111": "a1111", "comfyui": "comfyui", "invokeai": "diffusers"}  # the tools' profiles
NAMES = {"a1111": "a1111", "comfyui": "comfyui", "invokeai": "invokeai", "stable-diffusion.cpp": "sd_cpp"}
OF_TASK = ("height", "width", "strength")
# A1111's schedule "Automatic" of a sampler; of others it is the model's own
AUTOMATIC = {
    **dict.fromkeys(("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a"), "Karras"),
    **dict.fromkeys(("DPM2", "DPM2 a", "Restart"), "Karras"),
    "DPM++ 3M SDE": "Exponential",
}
SOURCES = {"CPU": "torch_cpu", "GPU": "torch_cuda", "NV": "torch_cuda", "cpu": "torch_cpu", "cuda": "torch_cuda"}


class Understood(NamedTuple):
    """Settings as in `sdjax.tasks.settings`, those of a second pass, and both kinds of items.

    `settings` may also have strength, height and width, which belong to tasks. `hires` are the arguments of
    `sdjax.two_pass` besides the request. `of_task` are other settings of the command that made a picture of ours, as
    they stand in its file.
    """

    settings: dict[str, Any]
    hires: dict[str, Any]
    items: list[Item]
    unknown: list[Item]
    of_task: dict[str, Any]


class _NotHere(Exception):
    """A setting that sdjax does not have, or a value that it does not know."""


def understand(found: Found) -> Understood:
    """Returns the settings of what a picture says. Items whose values sdjax does not know are put aside, never refused.

    Settings of another tool get its profile (`compat`): noise, counting of steps and schedules as that tool has them.
    """
    out = Understood({}, {}, [], [], {})
    known = settings.known_names(OF_TASK)
    raw = {item.name: item.value for item in found.items if item.name}
    for item in found.items:
        try:
            if item.name is None:
                raise _NotHere
            own, _, entry = item.name.partition(".")
            if own == "task":
                out.of_task[entry] = item.value
                out.items.append(item)
                continue
            values = _translated(found.tool, item.name, item.value, raw)
            if own == "hires":
                out.hires[entry] = _of_second_pass(found.tool, entry, item.value)
            elif own == settings.SAMPLER_OPTIONS:
                out.settings.setdefault(own, {})[entry] = item.value
            elif entry and own in known and isinstance(item.value, str | int | float):
                out.settings[own] = {**out.settings.get(own, {}), entry: item.value}
            elif not values.keys() <= set(known):
                raise _NotHere
            else:
                if "guidance_options" in values:  # several keys may each have one
                    values["guidance_options"] = {
                        **out.settings.get("guidance_options", {}),
                        **values["guidance_options"],
                    }
                settings.check({**out.settings, **values})
                out.settings.update(values)
            out.items.append(item)
        except _NotHere:
            out.unknown.append(item)
        except ValueError as error:
            out.unknown.append(dataclasses.replace(item, text=f"{item.text} ({error})"))
    _check_options(out)
    fields = {field.name for field in dataclasses.fields(Request)}
    if found.tool in COMPAT and "compat" in fields:
        out.settings.setdefault("compat", COMPAT[found.tool])
    return out


def _of_second_pass(tool: str, entry: str, value: Any) -> Any:
    """Returns the value of an argument of `sdjax.two_pass`. Raises ValueError or `_NotHere` for what it cannot take."""
    if entry not in OWN or entry == "upscaler":  # a file that the user would have to name
        raise _NotHere
    if entry == "upscale":
        check_upscale(value)
    if entry == "hires_patches":
        make_settings(value)
    if entry == "hires_sampler":
        return names.find_sampler(str(value), NAMES.get(tool), SAMPLERS).sampler
    return value


def _translated(tool: str, name: str, value: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our settings for one of a tool. Raises ValueError or `_NotHere` for a value that sdjax does not know."""
    translate = TRANSLATIONS.get(name)
    ours = tool == "sdjax" and name in settings.known_names(OF_TASK) and name != "sampler"
    return {name: value} if translate is None or ours else translate(tool, value, raw)


def _sampler(tool: str, value: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    found = names.find_sampler(str(value), NAMES.get(tool), SAMPLERS)
    own = {"sampler": found.sampler}
    return own if found.schedule is None or "schedule" in raw else {**own, "schedule": found.schedule}


def _schedule(tool: str, value: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    if tool == "a1111" and value == "Automatic":
        value = AUTOMATIC.get(str(raw.get("sampler")))
        if value is None:
            return {}
    return {"schedule": names.find_schedule(str(value), NAMES.get(tool))}


def _noise_source(tool: str, value: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    if value not in SOURCES:
        raise _NotHere
    return {"noise_source": SOURCES[value]}


def _clip_skip(tool: str, value: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Says in whose counting: InvokeAI's is diffusers'; A1111's and ComfyUI's are told apart by the sign."""
    return {"clip_skip": f"diffusers:{value}" if tool == "invokeai" else value}


def _seamless(tool: str, value: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    if value is False:
        return {}
    return {"seamless": "xy" if value is True else value}


def _skip(option: str) -> "Translation":
    """Returns the reader of an option of A1111's savings, which are the guidance "skip" here."""

    def read(tool: str, value: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
        if option != "early" and raw.get("sampler") in A1111_TIMESTEPS:
            raise ValueError("with this sampler A1111 compares it with timesteps, where it has no effect")
        return {"guidance": "skip", "guidance_options": {option: value}}

    return read


Translation = Callable[[str, Any, Mapping[str, Any]], dict[str, Any]]
TRANSLATIONS: dict[str, Translation] = {
    **{f"skip.{option}": _skip(option) for option in ("sigma", "all_steps", "early")},
    "sampler": _sampler,
    "schedule": _schedule,
    "noise_source": _noise_source,
    "clip_skip": _clip_skip,
    "seamless": _seamless,
}


def _check_options(out: Understood) -> None:
    """Puts options aside that the sampler or the schedule does not have."""
    try:
        settings.schedule_of(out.settings)
        dropped = ""
    except ValueError:  # the schedule has no such option, or a value is out of range
        dropped = "schedule_options"
        out.settings.pop(dropped, None)
    given = out.settings.pop(settings.SAMPLER_OPTIONS, {})
    sampler = out.settings.get("sampler")
    own = vars(SAMPLERS[sampler]()) if sampler in SAMPLERS else {}
    kept = {name: value for name, value in given.items() if name in own}
    if kept:
        out.settings[settings.SAMPLER_OPTIONS] = kept
    for item in list(out.items):
        first, _, entry = (item.name or "").partition(".")
        if first == dropped or (first == settings.SAMPLER_OPTIONS and entry not in kept):
            out.items.remove(item)
            out.unknown.append(item)
