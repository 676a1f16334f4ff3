"""Fields that have an effect only with certain values of other fields. Each such field declares its condition.

A field without a condition always has an effect.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sdjax.checks.notes import note


class Needs(NamedTuple):
    """The condition for a field to have an effect. `otherwise` continues the sentence "FIELD has no effect"."""

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
    """Gives a note for every field without effect that is not at its default. `name` is what is described."""
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
