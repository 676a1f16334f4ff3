"""The settings of a work as arguments of a task: names of the library become files, names of inputs become pictures."""

import dataclasses
import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sdjax import names, samplers
from sdjax.checks.arguments import is_sequence, shown, whole
from sdjax.config import ModelConfig
from sdjax.pictures import open_mask, open_picture
from sdjax.samplers import Sampler
from sdjax.schedule import NoiseSchedule
from sdjax.serve.engine.work import Work
from sdjax.spelling import meant
from sdjax.tasks import settings as written
from sdjax.tasks.controls import ControlUse
from sdjax.tasks.describing import OF_SAMPLER
from sdjax.tasks.image_prompts import ImagePrompt
from sdjax.tasks.references import Reference
from sdjax.tasks.regions import Region
from sdjax.tasks.request import Request
from sdjax.tasks.resolve import USUAL_SAMPLER, check_size, make_sampler, rescaled
from sdjax.tasks.style_aligned import ALONE

if TYPE_CHECKING:
    from sdjax.serve.library import Library

MOST_PICTURES = 100  # of one work
# Settings that are lists, and how many entries they may have
LISTS = {"controls": 8, "image_prompts": 8, "regions": 32, "references": 4, "hypernetworks": 8}
MOST_ANNOTATORS = 4  # of a hint
FOLDERS = {"lora_dir": "lora", "embedding_dir": "embedding", "hypernetwork_dir": "hypernetwork"}
BUILT_IN_CONTROLS = ("builtin-edges",)


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """The settings of a work, checked.

    `given` are the picture's settings by our names, `own` the task's own arguments, `of_files` what settings that name
    files became: fields of `Request`. `count` is the number of pictures.
    """

    work: Work
    library: "Library"
    given: Mapping[str, Any]
    own: Mapping[str, Any]
    of_files: Mapping[str, Any]
    count: int

    def picture(self, name: str = "image") -> np.ndarray:
        """Returns an input picture, uint8 [h, w, 3]; transparent parts are white. Raises ValueError without it."""
        return open_picture(_input(self.work, name)).pixels

    def mask(self, name: str = "mask") -> np.ndarray | None:
        """Returns an input mask, uint8 [h, w]; None without it."""
        return None if name not in self.work.inputs else open_mask(_input(self.work, name)).pixels

    def sampler(self, schedule: NoiseSchedule | None = None) -> tuple[str, Sampler] | None:
        """Returns the name and the sampler of the settings, for a model of this schedule; None if they choose none."""
        own = self.given
        if not any(own.get(name) not in (None, {}) for name in OF_SAMPLER):
            return None
        found = names.find_sampler(own.get("sampler") or USUAL_SAMPLER, more=samplers.SAMPLERS)
        if schedule is not None:
            schedule = rescaled(schedule, Request(zero_terminal_snr=own.get("zero_terminal_snr")).zero_terminal_snr)
        options = dict(own.get("sampler_options") or {})
        spacing = options.pop("spacing", None)  # settings with the names of options go first
        if isinstance(spacing, Mapping):
            spacing = written.schedule_of({"schedule": dict(spacing)})
        options = _coerced(found.sampler, options)
        eta = options.pop("eta", None)
        if own.get("schedule") is not None:
            spacing = written.schedule_of(own)
        made = make_sampler(
            found.sampler, schedule, own.get("compat"), eta=eta if own.get("eta") is None else own["eta"],
            spacing=own.get("spacing") or spacing or found.schedule, **options,
        )  # fmt: skip
        return found.sampler, made

    def for_task(self, schedule: NoiseSchedule) -> dict[str, Any]:
        """Returns the options that all tasks have, for a model of this schedule."""
        out = {name: value for name, value in self.given.items() if name not in (*OF_SAMPLER, "prompt")}
        chosen = self.sampler(schedule)
        return {**out, **self.of_files, **({} if chosen is None else {"sampler": chosen[1]}), "num_images": self.count}


def read(work: Work, library: "Library", own: Collection[str], sized: Collection[str] = ()) -> Options:
    """Returns the options of a work for a task with these `own` arguments; `sized` are height and width if it has them.

    Raises ValueError for unknown names, values out of range, files that the library does not have, and inputs that are
    not there.
    """
    if not isinstance(work.settings, Mapping):
        raise ValueError(f"settings are names and values; got {shown(work.settings)}")
    rest = {name: value for name, value in work.settings.items() if value is not None}
    count = whole("num_images", rest.pop("num_images", 1), 1, MOST_PICTURES)
    mine = {name: rest.pop(name) for name in own if name in rest}
    lists = {name: _listed(name, rest.pop(name), most) for name, most in LISTS.items() if rest.get(name)}
    for name in LISTS:
        rest.pop(name, None)
    for name in written.PLACES:
        if name in rest and name != "merge_with":
            raise ValueError(f"{name} is chosen by the server's owner: leave it out")
    loras = rest.pop("loras", None)
    given = written.read(rest, sized, ("num_images", *own, *LISTS, "loras", "vae"))
    if given.get("style_aligned") is not None and count == 1:
        raise ValueError(ALONE)
    if loras is not None:
        given["loras"] = loras
    if given.get("styles"):
        _check_styles(given["styles"], library)
    options = Options(work, library, given, mine, _files(work, library, lists, loras, given), count)
    options.sampler()
    if sized:
        windowed = given.get("window") is not None
        check_size(ModelConfig("any"), given.get("height"), given.get("width"), windowed=windowed)
    return options


def _files(
    work: Work, library: "Library", lists: Mapping[str, list[Any]], loras: Any, given: Mapping[str, Any]
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for field, kind in FOLDERS.items():
        folders = [str(folder) for folder in library.folders(kind)]
        if folders:
            several = [folder for folder in folders if os.pathsep not in folder]
            out[field] = os.pathsep.join(several) if several else folders[0]
    if given.get("styles"):
        out["styles_file"] = str(library.styles_file())
    if loras is not None:
        out["adapters"] = tuple(_lora(text, library) for text in str(loras).split("+") if text.strip())
        out["loras"] = None
    if "hypernetworks" in lists:
        out["hypernetworks"] = tuple(_weighted(text, "hypernetwork", library) for text in lists["hypernetworks"])
    if "controls" in lists:
        out["controls"] = tuple(_control(one, work, library) for one in lists["controls"])
    if "image_prompts" in lists:
        out["image_prompts"] = tuple(_image_prompt(one, work, library) for one in lists["image_prompts"])
    if "regions" in lists:
        out["regions"] = tuple(_region(one, work) for one in lists["regions"])
    if "references" in lists:
        out["references"] = tuple(_reference(one, work) for one in lists["references"])
    return out


def _check_styles(chosen: Any, library: "Library") -> None:
    """Raises ValueError for a style that the server's table does not have."""
    known = library.styles()
    for name in [chosen] if isinstance(chosen, str) else chosen:
        if name not in known:
            there = ", ".join(known) if known else "no styles; its owner puts styles.csv beside the models"
            raise ValueError(f"there is no style {shown(name)}{meant(name, known)}; the server has {there}")


def find_file(library: "Library", kind: str, name: Any) -> str:
    """Returns the path of a file of the library. Raises ValueError for a name that it does not have."""
    if not isinstance(name, str):
        raise ValueError(f"a file is named by a text; got {shown(name)}")
    return str(library.find(kind, name).path)


def find_annotators(library: "Library", names: Any) -> tuple[str, ...]:
    """Returns the paths of annotators: a name, or a list of them. Raises ValueError for anything else."""
    several = [] if names is None else _listed("annotators", names, MOST_ANNOTATORS)
    return tuple(find_file(library, "detector", one) for one in several)


def _lora(text: str, library: "Library") -> str:
    name, *weights = text.strip().split(":")
    return ":".join([find_file(library, "lora", name), *(weights or ["1"])])


def _weighted(text: Any, kind: str, library: "Library") -> str:
    name, colon, weight = str(text).strip().partition(":")
    return f"{find_file(library, kind, name)}{colon}{weight}"


def _listed(name: str, value: Any, most: int) -> list[Any]:
    several = list(value) if is_sequence(value) else [value]
    if len(several) > most:
        raise ValueError(f"{name} has at most {most} entries; got {len(several)}")
    return several


def _fields(given: Any, what: str, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{what} is an object with names and values; got {shown(given)}")
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{what} has no {shown(unknown[0])}{meant(unknown[0], known)}; it has {', '.join(known)}")
    return {name: value for name, value in given.items() if value is not None}


def _control(given: Any, work: Work, library: "Library") -> ControlUse:
    known = [field.name for field in dataclasses.fields(ControlUse)]
    fields = _fields(given, "a control", known)
    network = fields.get("network")
    fields["network"] = network if network in BUILT_IN_CONTROLS else find_file(library, "control", network)
    for name in "hint", "mask", "hidden":
        if name in fields:
            fields[name] = _input(work, fields[name])
    if not isinstance(fields.get("options", {}), Mapping):
        raise ValueError(f"a control's options are names and numbers; got {shown(fields['options'])}")
    fields["annotators"] = find_annotators(library, fields.get("annotators"))
    return ControlUse(**fields)


def _image_prompt(given: Any, work: Work, library: "Library") -> ImagePrompt:
    fields = _fields(
        given,
        "an image prompt",
        ("adapter", "image", "weight", "start", "end", "blocks", "mask", "negative", "encoder"),
    )
    fields["adapter"] = find_file(library, "ip_adapter", fields.get("adapter"))
    for name in "image", "mask", "negative":
        if name in fields:
            value = fields[name]
            fields[name] = [_input(work, one) for one in value] if is_sequence(value) else _input(work, value)
    if "encoder" in fields:
        fields["encoder"] = find_file(library, "clip_vision", fields["encoder"])
    return ImagePrompt(**fields)


def _region(given: Any, work: Work) -> Region:
    fields = _fields(given, "a region", ("prompt", "place", "weight", "negative_prompt"))
    if "prompt" not in fields or "place" not in fields:
        raise ValueError("a region has a prompt and a place")
    place = fields["place"]
    fields["place"] = _input(work, place) if isinstance(place, str) else tuple(place) if is_sequence(place) else place
    return Region(**fields)


def _reference(given: Any, work: Work) -> Reference:
    fields = _fields(given, "a reference", [field.name for field in dataclasses.fields(Reference)])
    return Reference(**{**fields, "picture": _input(work, fields.get("picture"))})


def _input(work: Work, name: Any) -> np.ndarray:
    if not isinstance(name, str) or name not in work.inputs:
        there = f"sent: {', '.join(map(shown, work.inputs))}" if work.inputs else "no input was sent"
        raise ValueError(f"the input {shown(name)} is missing: inputs are pictures by name; {there}")
    return work.inputs[name]


def describe_input(pixels: np.ndarray) -> dict[str, Any]:
    """Returns what a picture's file records of an input: its size, and a hash of its pixels."""
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    return {"sha256_of_pixels": digest, "width": width, "height": height}


def _coerced(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a sampler's options in the types of its fields. Raises ValueError for another type."""
    default: Any = samplers.SAMPLERS[name]() if name in samplers.SAMPLERS else None
    out: dict[str, Any] = {}
    for option, value in options.items():
        kind = type(getattr(default, option, value))
        fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value, fits = float(value), True
        if kind is tuple and isinstance(value, str):
            parts = value.strip("()").split(",")
            try:
                value, fits = tuple(int(part) for part in parts if part.strip()), True
            except ValueError:
                fits = False
        if not fits:
            raise ValueError(f"the option {option} of the sampler {name} is of another type; got {shown(value)}")
        out[option] = value
    return out
