"""Holding a file's tensors against the table of what it should hold: strictly, and all differences at once."""

import dataclasses
from collections.abc import Collection, Mapping

from sdjax.config import ModelConfig

from . import keys, tables
from .errors import printable
from .tables import Entry


@dataclasses.dataclass(frozen=True)
class Match:
    """Which of a file's tensors is which. `other_set` are the UNet's weights that were not chosen, averaged or not."""

    names: Mapping[Entry, str]
    extras: tuple[str, ...]
    other_set: tuple[str, ...]
    problems: tuple[str, ...]
    missing_parts: tuple[str, ...]


def match(
    shapes: Mapping[str, tuple[int, ...]],
    config: ModelConfig,
    layout: tables.Layout,
    *,
    ema: bool = False,
    parts: Collection[str] = tuple(tables.PARTS),
) -> Match:
    """Returns what fits and every difference, each a phrase that spells tensors as the file does.

    `ema` takes the UNet's moving averages, an ldm file's `model_ema.` tensors. `parts` are those wanted; others may be
    missing, and are passed over where they are there.
    """
    by_name: dict[str, str] = {}
    problems: list[str] = []
    for name in shapes:
        canonical = tables.canonical(name, layout)
        if canonical in by_name:
            problems.append(f"{printable(name)} and {printable(by_name[canonical])} are the same tensor")
        by_name[canonical] = name
    matched: dict[Entry, str] = {}
    other_set: set[str] = set()
    missing: list[tuple[str, str]] = []  # part and name
    used: set[str] = set()
    found: set[str] = set()
    for entry in tables.entries(config, layout):
        stored = entry.name
        if layout == "ldm" and entry.part == "unet":
            pair = (entry.name, keys.ema_name(entry.name))
            stored, other = pair[::-1] if ema else pair
            if other in by_name:
                other_set.add(other)
        if stored not in by_name:
            if entry.part in parts:
                missing.append((entry.part, stored))
            continue
        used.add(stored)
        if entry.part not in parts:
            continue
        found.add(entry.part)
        shape = shapes[by_name[stored]]
        if not entry.accepts(shape):
            problems.append(f"{printable(by_name[stored])} has the shape {list(shape)} instead of {list(entry.shape)}")
        matched[entry] = by_name[stored]
    missing_parts = tuple(part for part in tables.parts_of(config) if part in parts and part not in found)
    problems = [f"{name} is missing" for part, name in missing if part in found] + problems
    extras, unknown = [], []
    for canonical, name in by_name.items():
        if canonical in used or canonical in other_set:
            continue
        if tables.is_known_extra(canonical, layout, config):
            extras.append(name)
        else:
            unknown.append(f"{printable(name)} {list(shapes[name])} is unknown")
    others = tuple(by_name[name] for name in sorted(other_set))
    return Match(matched, tuple(extras), others, tuple(problems + unknown), missing_parts)
