"""Holding a file's tensors against the table of what it should hold: every difference is found at once."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Collection, Mapping

from sdjax.config import ModelConfig
from sdjax.convert.errors import DIFFERENCES, printable
from sdjax.convert.names import keys, tables
from sdjax.convert.names.tables import Entry

MOST_COMPARED = 50  # names; more are not looked through for one that is like a missing one


@dataclasses.dataclass(frozen=True)
class Match:
    """Which of a file's tensors is which. `other_set` are the UNet's weights that were not chosen, averaged or not.

    `unknown` are those of the extras that are not known to lie beside models.
    """

    names: Mapping[Entry, str]
    extras: tuple[str, ...]
    other_set: tuple[str, ...]
    problems: tuple[str, ...]
    missing_parts: tuple[str, ...]
    unknown: tuple[str, ...] = ()


def match(
    shapes: Mapping[str, tuple[int, ...]],
    config: ModelConfig,
    layout: tables.Layout,
    *,
    ema: bool = False,
    parts: Collection[str] = tuple(tables.PARTS),
    spelled: Callable[[str], str] = str,
    equal: Callable[[str, str], bool] = lambda one, other: False,
) -> Match:
    """Returns what fits and every difference, each a phrase that spells tensors as the file does.

    `ema` takes the UNet's moving averages, an ldm file's `model_ema.` tensors. `parts` are those wanted; others may be
    missing, and are passed over where they are there. `spelled` gives the name that the file has for one of `shapes`.
    A tensor that no network here has is no difference; one that a larger network of the same make would have is. Nor is
    a second copy under another tool's name, if `equal` says that the two tensors of these names are the same.
    """
    by_name: dict[str, str] = {}
    doubles: list[tuple[str, str]] = []  # name as the table spells it, and another tensor of that name
    for name in shapes:
        canonical = tables.canonical(name, layout)
        if canonical in by_name:
            doubles.append((canonical, by_name[canonical] if name == canonical else name))
        if canonical not in by_name or name == canonical:
            by_name[canonical] = name
    matched: dict[Entry, str] = {}
    problems: list[str] = []
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
            spelling = printable(spelled(by_name[stored]))
            problems.append(f"{spelling} has the shape {list(shape)} instead of {list(entry.shape)}")
        matched[entry] = by_name[stored]
    for canonical, name in doubles:
        if canonical in used and not equal(name, by_name[canonical]):
            one, other = printable(spelled(name)), printable(spelled(by_name[canonical]))
            problems.append(f"{one} and {other} name one tensor and differ")
    missing_parts = tuple(part for part in tables.parts_of(config) if part in parts and part not in found)
    extras = [name for canonical, name in doubles if canonical not in used]
    unknown, foreign = [], []
    larger = _Larger(tables.entries(config, layout))
    for canonical, name in by_name.items():
        if canonical in used or canonical in other_set:
            continue
        known = tables.is_known_extra(canonical, layout, config)
        if not known and larger.has(canonical):
            foreign.append(name)
        else:
            extras.append(name)
            if not known:
                unknown.append(name)
    absent = [name for part, name in missing if part in found]
    others = (*foreign, *unknown)
    problems = [
        f"{name} is missing" + (_hint(name, others, spelled) if i < DIFFERENCES else "")
        for i, name in enumerate(absent)
    ] + problems
    problems += [f"{printable(spelled(name))} {list(shapes[name])} is unknown" for name in foreign]
    if problems:  # among these may be the ones that are missing, under other names
        problems += [f"{printable(spelled(name))} {list(shapes[name])} is unknown" for name in unknown]
    not_chosen = tuple(by_name[name] for name in sorted(other_set))
    return Match(matched, tuple(extras), not_chosen, tuple(problems), missing_parts, tuple(unknown))


class _Larger:
    """What a larger network of the same make would hold besides: another block, another bias of a layer in use."""

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self.patterns = {_NUMBER.sub("#", entry.name) for entry in entries}
        self.modules = {entry.name.rpartition(".")[0] for entry in entries}

    def has(self, name: str) -> bool:
        if name.startswith(keys.EMA_PREFIX):
            return False
        module, _, leaf = name.rpartition(".")
        return _NUMBER.sub("#", name) in self.patterns or (leaf in ("weight", "bias") and module in self.modules)


_NUMBER = re.compile(r"\d+")


def _hint(name: str, unknown: Collection[str], spelled: Callable[[str], str]) -> str:
    """Returns the words about the unknown tensor whose name is nearest to that of a missing one."""
    if len(unknown) > MOST_COMPARED:
        return ""
    near = difflib.get_close_matches(name, unknown, 1, 0.9)
    return f" (there is {printable(spelled(near[0]))}, which is unknown)" if near else ""
