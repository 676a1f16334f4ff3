"""Compares a file's tensors with the table of expected ones, and reports all differences together."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from sdjax.convert.containers.lazy import LazyTensor, is_floating, same
from sdjax.convert.errors import DIFFERENCES, CheckpointError, listed, printable, shown
from sdjax.convert.names import naming
from sdjax.convert.names.tables import Entry, Table

LONGEST = 200  # characters of a tensor's name that a message repeats
MOST_COMPARED = 50  # names; more are not looked through for one that is like a missing one


@dataclasses.dataclass(frozen=True)
class Match:
    """A file's tensors, matched to entries. `other_set` holds the UNet's weights that were not chosen.

    `unknown` are those of the extras that are not known to lie beside models.
    """

    names: Mapping[Entry, str]
    extras: tuple[str, ...]
    other_set: tuple[str, ...]
    problems: tuple[str, ...]
    missing_parts: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    def leaves(self, tensors: Mapping[str, LazyTensor], dtype: np.dtype | None) -> dict[str, LazyTensor]:
        """Returns the parameters by path, cast to a type if one is given."""
        leaves: dict[str, LazyTensor] = {}
        for entry, name in self.names.items():
            leaves |= {path: leaf.cast(dtype) for path, leaf in entry.split(tensors[name]).items()}
        return dict(sorted(leaves.items()))


def match(
    tensors: Mapping[str, LazyTensor], table: Table, *, ema: bool = False, parts: Collection[str] | None = None
) -> Match:
    """Returns the matched tensors and all differences. Each difference is a phrase that names tensors as the file does.

    `ema` takes the UNet's moving averages, an ldm file's `model_ema.` tensors. `parts` are those wanted; others
    may be missing, and are passed over if they are there. A tensor that no network here has is no difference,
    unless a larger network of the same make would have it. A second copy of a tensor under another tool's name is none
    either, if both hold the same.
    """
    parts = table.parts if parts is None else parts
    by_name, doubles = _canonical(tensors, table)
    spelled = {entry: _spelled(entry, ema) for entry in table.entries}
    used = {stored for stored, _ in spelled.values() if stored in by_name}
    other_set = {other for _, other in spelled.values() if other in by_name}
    matched = {
        entry: by_name[stored] for entry, (stored, _) in spelled.items() if entry.part in parts and stored in used
    }
    found = {entry.part for entry in matched}
    absent = [stored for entry, (stored, _) in spelled.items() if entry.part in found and stored not in used]
    taken = used | other_set
    rest = [canonical for canonical in by_name if canonical not in taken]
    unnamed = [canonical for canonical in rest if not table.beside(canonical)]
    larger = _Larger(table.entries)
    foreign = dict.fromkeys(by_name[canonical] for canonical in unnamed if larger.has(canonical))
    unknown = [by_name[canonical] for canonical in unnamed if by_name[canonical] not in foreign]
    extras = [name for canonical, name in doubles if canonical not in used]
    extras += [by_name[canonical] for canonical in rest if by_name[canonical] not in foreign]

    problems = _missing(absent, {name: tensors[name].name for name in (*foreign, *unknown)})
    problems += [problem for entry, name in matched.items() for problem in _misfit(tensors[name], entry)]
    for canonical, name in doubles:
        one, two = tensors[name], tensors[by_name[canonical]]
        if canonical in used and not same(one, two):
            names = " and ".join(printable(tensor.name, limit=LONGEST) for tensor in (one, two))
            problems.append(f"{names} name one tensor and differ")
    problems += [_unknown(tensors[name]) for name in foreign]
    if problems:  # among these may be the ones that are missing, under other names
        problems += [_unknown(tensors[name]) for name in unknown]
    missing_parts = tuple(part for part in table.parts if part in parts and part not in found)
    not_chosen = tuple(by_name[name] for name in sorted(other_set))
    return Match(matched, tuple(extras), not_chosen, tuple(problems), missing_parts, tuple(unknown))


def _canonical(tensors: Mapping[str, LazyTensor], table: Table) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Returns the file's names by the names that the table has for them, and further copies of a tensor.

    A copy is the name as the table spells it, and the copy's own.
    """
    by_name: dict[str, str] = {}
    doubles = []
    for name in tensors:
        canonical = table.canonical(name)
        if canonical in by_name:
            doubles.append((canonical, by_name[canonical] if name == canonical else name))
        if canonical not in by_name or name == canonical:
            by_name[canonical] = name
    return by_name, doubles


def _spelled(entry: Entry, ema: bool) -> tuple[str, str | None]:
    """Returns the name of an entry's tensor, and its name in the set of the UNet's weights that is not chosen."""
    if not entry.name.startswith(naming.LDM_PREFIXES["unet"]):
        return entry.name, None
    averaged = naming.ema_name(entry.name)
    return (averaged, entry.name) if ema else (entry.name, averaged)


def _missing(absent: Sequence[str], others: Mapping[str, str]) -> list[str]:
    """Returns a problem for each missing tensor; the first ones with the unknown tensor of the nearest name."""
    return [f"{name} is missing" + (_hint(name, others) if i < DIFFERENCES else "") for i, name in enumerate(absent)]


def _misfit(tensor: LazyTensor, entry: Entry) -> list[str]:
    """Returns the problem of a tensor that has an entry's name."""
    if not entry.accepts(tensor.shape):
        return [
            f"{printable(tensor.name, limit=LONGEST)} has the shape {list(tensor.shape)} instead of {list(entry.shape)}"
        ]
    if not is_floating(tensor.dtype):
        advice = "of a quantised model, name the one in float32, float16 or bfloat16"
        return [f"{shown(tensor.name)} holds {tensor.dtype.name} numbers instead of floating-point ones ({advice})"]
    return []


def _unknown(tensor: LazyTensor) -> str:
    return f"{printable(tensor.name, limit=LONGEST)} {list(tensor.shape)} is unknown"


_WITHOUT = {
    "unet": "it has no UNet, which makes it no model",
    "vae": "it has no autoencoder; give one by vae= (--vae on the command line)",
    "text": "it has no text encoder, which must come from the whole checkpoint",
}


def refuse(found: Match, what: str, error: Callable[[str], CheckpointError]) -> None:
    """Raises the error of a reason, naming every difference, unless a file holds `what`."""
    problems = [_WITHOUT.get(part, f"it has no {part}") for part in found.missing_parts] + list(found.problems)
    if problems:
        count = len(problems)
        raise error(f"it does not hold {what}, with {count} difference{'s'[: count > 1]}: {listed(problems)}")


class _Larger:
    """Names that a larger network of the same kind would have: another block, another bias of a used layer."""

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self.patterns = {_NUMBER.sub("#", entry.name) for entry in entries}
        self.modules = {entry.name.rpartition(".")[0] for entry in entries}

    def has(self, name: str) -> bool:
        if name.startswith(naming.EMA_PREFIX):
            return False
        module, _, leaf = name.rpartition(".")
        return _NUMBER.sub("#", name) in self.patterns or (leaf in ("weight", "bias") and module in self.modules)


_NUMBER = re.compile(r"\d+")


def _hint(name: str, unknown: Mapping[str, str]) -> str:
    """Returns the words about the unknown tensor whose name is nearest to that of a missing one.

    `unknown` are names as the table would have them, and as the file spells them.
    """
    if len(unknown) > MOST_COMPARED:
        return ""
    near = difflib.get_close_matches(name, unknown, 1, 0.9)
    return f" (there is {printable(unknown[near[0]], limit=LONGEST)}, which is unknown)" if near else ""
