"""Options of guidance rules: fields with a meaning, a range and a default, and how a user's value becomes a number."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from sdjax.checks.arguments import flag, is_sequence, number, shown
from sdjax.diffusion.guidance import Rule
from sdjax.spelling import meant

MOST = 256  # numbers in a list for the steps of a run
LAYERS = re.compile(r"[\w.|()\[\]^$,-]{1,200}")  # no repetition: matching takes no longer than the text is


def option(default: float, meaning: str, low: float = -np.inf, high: float = np.inf) -> Any:
    """Returns a field for a number. It is traced: another value needs no new compilation."""
    return struct.field(default=default, metadata={"kind": "number", "meaning": meaning, "low": low, "high": high})


def switch(default: bool, meaning: str) -> Any:
    """Returns a field for true or false, which is traced as 1 or 0."""
    return struct.field(default=float(default), metadata={"kind": "switch", "meaning": meaning})


def choice(default: str, meaning: str, known: Sequence[str]) -> Any:
    """Returns a field for one of several names. It is static."""
    metadata = {"kind": "choice", "meaning": meaning, "known": tuple(known)}
    return struct.field(pytree_node=False, default=default, metadata=metadata)


def layers(default: str, meaning: str) -> Any:
    """Returns a field that chooses layers by their names in diffusers, several of them divided by commas."""
    return struct.field(pytree_node=False, default=default, metadata={"kind": "layers", "meaning": meaning})


def numbers(meaning: str) -> Any:
    """Returns a field for a list of numbers, one for each step. It is traced, as MOST numbers."""
    return struct.field(metadata={"kind": "numbers", "meaning": meaning})


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a rule, as a table shows it."""

    name: str
    default: Any
    meaning: str
    values: str


def options_of(rule: type[Rule]) -> list[Option]:
    """Returns the options of a rule."""
    out = []
    for field in dataclasses.fields(rule):  # type: ignore[arg-type]
        kind = field.metadata.get("kind", "number")
        default = field.default
        if kind == "switch":
            default = "true" if default else "false"
        elif kind == "numbers":
            default = "none"
        low, high = field.metadata.get("low", -np.inf), field.metadata.get("high", np.inf)
        span = f"{low:g} to {high:g}" if np.isfinite(high) else f"from {low:g}"
        values = {
            "number": span if np.isfinite(low) else "a number",
            "switch": "true or false",
            "choice": ", ".join(field.metadata.get("known", ())),
            "layers": "names, divided by commas",
            "numbers": "numbers, divided by commas",
        }[kind]
        out.append(Option(field.name, default, field.metadata.get("meaning", ""), values))
    return out


def with_options(name: str, rule: type[Rule], values: Mapping[str, Any]) -> Rule:
    """Returns the rule with these options. Raises ValueError for an unknown option or a value that does not fit."""
    fields = {field.name: field for field in dataclasses.fields(rule)}  # type: ignore[arg-type]
    unknown = [key for key in values if key not in fields]
    if unknown:
        known = f"it has {', '.join(fields)}" if fields else "it has none"
        raise ValueError(f"the guidance {name} has no option {shown(unknown[0])}{meant(unknown[0], fields)}; {known}")
    missing = [key for key, field in fields.items() if field.metadata.get("kind") == "numbers" and key not in values]
    if missing:
        raise ValueError(f"the guidance {name} needs its option {missing[0]}, such as {missing[0]}=7.5,5,3")
    return rule(**{key: _read(f"{key} of the guidance {name}", fields[key], value) for key, value in values.items()})


def checked(rule: Rule) -> Rule:
    """Returns the rule with its options read as those of a named rule. Raises ValueError for values that do not fit."""
    name = type(rule).__name__
    if jax.tree_util.all_leaves([rule]):
        raise ValueError(f"the rule {name} must be a flax.struct.dataclass, so that its numbers can differ by picture")
    read = {
        field.name: _read(f"{field.name} of {name}", field, getattr(rule, field.name))
        for field in dataclasses.fields(rule)  # type: ignore[arg-type]
        if "kind" in field.metadata
    }
    return dataclasses.replace(rule, **read) if read else rule  # type: ignore[type-var]


def _read(label: str, field: dataclasses.Field, value: Any) -> Any:
    metadata = field.metadata
    kind = metadata.get("kind", "number")
    if kind == "number":
        return number(label, value, metadata.get("low", -np.inf), metadata.get("high", np.inf))
    if kind == "switch":
        return float(flag(label, value))
    if kind == "numbers":
        return read_numbers(label, value)
    if kind == "choice":
        if not isinstance(value, str) or value not in metadata["known"]:
            raise ValueError(f"{label} is one of {', '.join(metadata['known'])}; got {shown(value)}")
        return value
    text = ",".join(value) if is_sequence(value) and all(isinstance(one, str) for one in value) else value
    try:
        if not isinstance(text, str) or not LAYERS.fullmatch(text):
            raise ValueError
        for one in text.split(","):
            re.compile(one)
    except (ValueError, re.error):
        examples = "names of layers such as mid or down_blocks.2.attentions.1"
        raise ValueError(f"{label} are {examples}; got {shown(value)}") from None
    return text


def read_numbers(label: str, value: Any) -> np.ndarray:
    """Returns a list of numbers as float32 [MOST]; the last one fills the rest."""
    several = value if is_sequence(value) else [value]
    if isinstance(value, str):
        try:
            several = [float(one) for one in value.split(",")]
        except ValueError:
            several = []
    if not 1 <= len(several) <= MOST:
        raise ValueError(f"{label} are 1 to {MOST} numbers; got {shown(value)}")
    read = [number(f"each of {label}", one) for one in several]
    return np.asarray(read + read[-1:] * (MOST - len(read)), np.float32)
