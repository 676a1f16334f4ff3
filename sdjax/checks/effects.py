"""Fields of a description that matter only with certain values of others. Each field declares its condition.

A field without a declaration is always obeyed.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sdjax.checks.notes import note


class Needs(NamedTuple):
    """When a field has an effect, as a function of the description; `otherwise` continues "FIELD has no effect"."""

    met: Callable[[Any], bool]
    otherwise: str


def needs(default: Any, met: Callable[[Any], bool], otherwise: str) -> Any:
    """Returns a dataclass's field with a condition."""
    return dataclasses.field(default=default, metadata={"needs": Needs(met, otherwise)})


def ignored(description: Any) -> Iterator[tuple[dataclasses.Field, str]]:
    """Yields the fields that have no effect in this description, and why."""
    for field in dataclasses.fields(description):
        condition = field.metadata.get("needs")
        if condition is not None and not condition.met(description):
            yield field, condition.otherwise


def note_effects(description: Any, name: str = "") -> None:
    """Notes every field without effect that is not at its default; `name` says what is described."""
    for field, otherwise in ignored(description):
        value = getattr(description, field.name)
        if value != field.default:
            place = f"{name}.{field.name}" if name else field.name
            note(f"{place} = {value!r} has no effect {otherwise}: leave it out")


def in_use(description: Any) -> dict[str, Any]:
    """Returns the fields that have an effect, with their values."""
    without = {field.name for field, _ in ignored(description)}
    return {field.name: getattr(description, field.name) for field in dataclasses.fields(description)
            if field.name not in without}  # fmt: skip
