"""Settings of one picture as plain values, under our names or other tools': JSON lines, sweeps, pictures' metadata.

A settings dictionary has names of fields of `Request`, and `sampler_options`, the sampler's own fields. Its values are
what JSON can hold.
"""

import dataclasses
import json
import typing
from collections.abc import Collection, Mapping
from typing import Any

from sdjax.checks.arguments import shown, whole
from sdjax.checks.hints import OURS
from sdjax.samplers.known_schedules import from_description
from sdjax.samplers.schedules import Schedule
from sdjax.spelling import meant
from sdjax.tasks.request import ARRAYS, Request

SAMPLER_OPTIONS = "sampler_options"
SIZE = ("height", "width")
PLACES = (
    "styles_file",
    "wildcards",
    "adapters",
    "merge_with",
    "lora_dir",
    "word_embeddings",
    "embedding_dir",
    "hypernetworks",
    "hypernetwork_dir",
    "image_prompts",
    "regions",
    "controls",
    "references",
)  # paths, which a file of settings or a picture may not choose
MAX_TEXT = 100_000  # characters of a line of settings


def known_names(own: Collection[str] = SIZE) -> tuple[str, ...]:
    """Returns the names that settings may have: fields of `Request` but for arrays and paths, and `sampler_options`.

    `own` are the arguments of a task that may differ from picture to picture: height and width if it has them, and
    strength.
    """
    names = [field.name for field in dataclasses.fields(Request) if field.name not in (*ARRAYS, *SIZE, *PLACES)]
    return (*names, SAMPLER_OPTIONS, *own)


def is_text(name: str) -> bool:
    """Returns whether the values of this field may be texts."""
    hints = typing.get_type_hints(Request)
    return name in hints and str in (hints[name], *typing.get_args(hints[name]))


def name_of(spelled: str, own: Collection[str] = SIZE) -> str:
    """Returns our name of a setting. Raises ValueError, naming the nearest known one, if there is none."""
    return _candidates(spelled, known_names(own))[0]


def read(given: Mapping[str, Any], own: Collection[str] = SIZE, others: Collection[str] = ()) -> dict[str, Any]:
    """Returns settings with our names. Names of other tools are translated by `sdjax.checks.hints.OURS`.

    `own` are those of `known_names`. `others` are names that the caller reads itself; messages list them too. Raises
    ValueError for an unknown name, for a setting that is given twice, and for a value that `Request` refuses.
    """
    known = known_names(own)
    settings: dict[str, Any] = {}
    for spelled, value in sorted(given.items(), key=lambda item: _plain(item[0]) not in known):  # our names first
        names = _candidates(spelled, known, others)
        free = [name for name in names if name not in settings]
        if not free:
            raise ValueError(f"the setting {names[0]} is given twice, once as {shown(spelled)}: give it once")
        settings[free[0]] = value
    check(settings)
    return settings


def _candidates(spelled: str, known: Collection[str], others: Collection[str] = ()) -> list[str]:
    """Returns the settings that a name may mean, the best first. Raises ValueError if there is none."""
    name = _plain(spelled)
    if name in known:
        return [name]
    ours = [one for one in OURS.get(name, ()) if one in known]
    if not ours:
        near = meant(spelled, [*known, *others, *OURS])
        raise ValueError(f"unknown setting {shown(spelled)}{near}; the known ones are {', '.join((*known, *others))}")
    return ours


def check(settings: Mapping[str, Any]) -> None:
    """Raises ValueError unless `Request` takes these values and the sampler's options are a dictionary."""
    options = settings.get(SAMPLER_OPTIONS, {})
    if not isinstance(options, dict) or not all(isinstance(value, str | int | float) for value in options.values()):
        raise ValueError(f"{SAMPLER_OPTIONS} is an object of texts and numbers; got {shown(options)}")
    if not isinstance(settings.get("sampler"), str | None):
        raise ValueError(f"sampler is a name; got {shown(settings['sampler'])}")
    for name in "height", "width":
        if settings.get(name) is not None:
            whole(name, settings[name])  # the model decides which sizes it can make
    fields = {field.name for field in dataclasses.fields(Request)} - {"schedule", "schedule_options"}
    schedule_of(settings)
    Request(**{name: value for name, value in settings.items() if name in fields})


def schedule_of(settings: Mapping[str, Any]) -> str | Schedule | None:
    """Returns the schedule of `schedule` and `schedule_options`: a name of any tool, a list, or a description.

    Raises ValueError for an unknown name, option or value.
    """
    chosen, options = settings.get("schedule"), settings.get("schedule_options")
    if isinstance(chosen, dict) and not options:
        return from_description(chosen)
    return Request(schedule=chosen, schedule_options=options).schedule  # type: ignore[return-value]


def from_json(text: str, own: Collection[str] = SIZE) -> dict[str, Any]:
    """Returns the settings of a JSON object (`read`). Raises ValueError for anything else, and as `read` does."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"at most {MAX_TEXT} characters are read; got {len(text)}")
    try:
        given = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos + 1})") from None
    except ValueError as error:
        if "int_max_str_digits" not in str(error):
            raise
        raise ValueError("a whole number in it has thousands of digits: no setting takes such a number") from None
    except RecursionError:
        raise ValueError("the JSON is nested too deeply: settings are one object") from None
    if not isinstance(given, dict):
        raise ValueError(f'expected a JSON object, such as {{"prompt": "a cat", "seed": 7}}; got {shown(given)}')
    return read(given, own)


def from_text(name: str, text: str) -> Any:
    """Returns a value of this field from a text: a number, true, false or null in JSON's spelling, or a text."""
    text = text.strip()
    if text == "null":
        return None
    if is_text(name):
        return text
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (json.JSONDecodeError, RecursionError):
        return text  # `Request` says what it wants


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shown(name)} is given twice: give it once")
        found[name] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"numbers are finite; got {name}")


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")
