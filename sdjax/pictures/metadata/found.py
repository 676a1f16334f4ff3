"""The result of reading a tool's text: named settings, and what has no name here."""

import dataclasses
import json
import math
from typing import Any

MAX_WORDS = 20_000  # characters of a prompt
MAX_SHOWN = 200  # characters of a value in a report


@dataclasses.dataclass(frozen=True)
class Item:
    """One entry of a tool's text: its name there and its value as text. `name` is ours, None if there is none.

    `value` is the value of our setting. Samplers and schedules keep the tool's names.
    """

    key: str
    text: str
    name: str | None = None
    value: Any = None


@dataclasses.dataclass(frozen=True)
class Found:
    """What a picture says about itself. `tool` is "sdjax", "a1111", "comfyui", "invokeai" or another name.

    `needs` names what the picture was made from besides its settings, such as "a picture". `model` are the names and
    hashes by which the tool calls the model; they are shown and compared, never opened. `task` is the tool's name of
    what was done. `inputs` are the files that a picture of sdjax was made from: for each entry of its text, such as
    "mask", their names and hashes. They are shown and compared, never opened. `about` are entries about the computer
    and the versions, to compare. `computed` says how sdjax computed the picture: entries of its text that are no
    settings.
    """

    tool: str
    items: tuple[Item, ...]
    model: dict[str, str] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()
    task: str = "txt2img"
    inputs: dict[str, list[dict[str, str]]] = dataclasses.field(default_factory=dict)
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    computed: dict[str, Any] = dataclasses.field(default_factory=dict)


def item(key: str, value: Any, name: str | None = None, text: str | None = None) -> Item:
    """Returns an item with a short text for reports."""
    return Item(key, shorten(str(value) if text is None else text), name, value)


def unknown(key: str, value: Any) -> Item:
    """Returns an item without a setting."""
    return Item(shorten(key), shorten(value if isinstance(value, str) else json.dumps(value, default=str)))


def shorten(text: str) -> str:
    """Returns the text in one printable line, cut if it is long."""
    line = "".join(one if one.isprintable() else " " for one in text[: 2 * MAX_SHOWN])
    return line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}..."


def words(text: Any) -> str:
    """Returns a prompt. Raises ValueError if it is no text or too long."""
    if not isinstance(text, str):
        raise ValueError(f"a prompt is a text; got {shorten(json.dumps(text, default=str))}")
    if len(text) > MAX_WORDS:
        raise ValueError(f"a prompt has at most {MAX_WORDS} characters; got {len(text)}")
    return text


def whole(text: Any) -> int:
    """Returns a whole number of at most 20 digits, also from a text. Raises ValueError for anything else."""
    if isinstance(text, str):
        text = text.strip()
        if len(text) > 20:
            raise ValueError(f"expected a whole number; got {shorten(text)}")
        text = int(text)
    if isinstance(text, bool) or not isinstance(text, int) or abs(text) >= 10**20:
        raise ValueError(f"expected a whole number; got {shorten(str(text)[:100])}")
    return text


def number(text: Any) -> float:
    """Returns a finite number, also from a text. Raises ValueError for anything else."""
    if isinstance(text, bool) or not isinstance(text, str | int | float) or len(str(text)[:101]) > 100:
        raise ValueError("expected a number")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number; got {value}")
    return value


def parse(text: str) -> Any:
    """Returns the value of a JSON text. Raises ValueError, in one sentence, for anything else."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error.msg} at character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def table(text: str) -> dict[str, Any]:
    """Returns a JSON object. Raises ValueError for anything else."""
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _no_constant(name: str) -> float:
    return math.nan  # ComfyUI writes NaN for "is_changed"; a setting with it is refused later
