"""What a checkpoint holds, told without reading its weights."""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

from sdjax.config import ConfigError
from sdjax.convert.containers.file_kinds import UNET_ALONE, kind_of_folder, kind_of_tensors
from sdjax.convert.describe import prediction
from sdjax.convert.describe.tokens import check_tokens
from sdjax.convert.errors import CheckpointError, OtherKindError, printable
from sdjax.convert.model import choose_ema, describe, stated
from sdjax.convert.names import keys, tables
from sdjax.convert.names.matching import match
from sdjax.convert.sources import open_source

SHOWN = 12  # names of a list that the text repeats


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A checkpoint's family, parts, dtypes, metadata, and what is odd about it (nothing, in a released file)."""

    path: str
    format: str
    layout: str
    family: str | None
    prediction: str | None
    ema: bool
    tensors: int
    bytes: int
    parts: dict[str, dict[str, Any]]
    metadata: dict[str, str]
    licences: list[str]
    odd: list[str]
    kind: str | None = None  # of a file that is no whole model: what it is, and what to do
    cards: tuple[str, ...] = ()
    tokenizer: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a JSON-ready dictionary."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """Returns the report as lines for a terminal."""
        lines = [
            f"{self.path}",
            f"  format      {self.format}, {self.layout} layout, {self.tensors} tensors, {self.bytes / 2**30:.2f} GiB",
            *([f"  kind        {self.kind}"] if self.kind else []),
            f"  family      {self.family or 'not recognised'}",
            f"  predicts    {self.prediction or 'not said'}",
            f"  averages    {'yes (model_ema.), used unless asked otherwise' if self.ema else 'no'}",
        ]
        for name, part in self.parts.items():
            dtypes = ", ".join(f"{count} {dtype}" for dtype, count in part["dtypes"].items())
            lines.append(f"  {name:<11} {part['tensors']} tensors, {part['elements']:,} numbers ({dtypes})")
        for key, value in self.metadata.items():
            lines.append(f"  metadata    {printable(key)} = {printable(value)}")
        lines += [f"  licence     {name}" for name in self.licences]
        lines += [f"  card        {name}" for name in self.cards]
        lines += [f"  tokenizer   {self.tokenizer}"] if self.tokenizer is not None else []
        odd = [line for line in self.odd if line != self.kind]
        lines += [f"  odd         {line}" for line in odd] or ["  odd         nothing"]
        return "\n".join(lines)


def inspect(path: str | os.PathLike[str], variant: str | None = None) -> Inspection:
    """Returns what a checkpoint of any layout holds. Raises CheckpointError if it cannot be read at all."""
    try:
        source = open_source(path, variant)
    except OtherKindError as error:
        said = f"it is {error.what}; {error.advice}"
        form = "folder" if os.path.isdir(path) else "file"
        size = 0 if form == "folder" else os.path.getsize(path)
        nothing: dict[str, Any] = {
            "family": None, "prediction": None, "ema": False, "tensors": 0, "parts": {}, "metadata": {}, "licences": [],
            "cards": [], "tokenizer": None,
        }  # fmt: skip
        return Inspection(str(path), form, "no known", bytes=size, odd=[said], kind=said, **nothing)
    shapes, dtypes = dict(source.tensors.shapes), dict(source.tensors.dtypes)
    odd: list[str] = []
    family = said = None
    kind = kind_of_folder(source.configs)
    ema = choose_ema(source, "auto")
    owners: dict[str, str] = {}
    try:
        config, origin, decision = describe(source, None, stated(source))
        family = f"{config.name} (by {origin})"
        if decision is not None:
            said = f"{decision.prediction} (by {decision.origin})"
        elif prediction.is_ambiguous(config):
            said = None
            odd.append("nothing says whether it predicts epsilon or v: loading asks the network, or takes prediction=")
        else:
            said = f"{config.schedule.prediction} (by the family)"
        if source.tokenizer is not None:
            try:
                check_tokens(source.tokenizer, config.text, CheckpointError)
            except CheckpointError as error:
                odd.append(str(error))
        found = match(shapes, config, source.layout, ema=ema, spelled=source.spelled, equal=source.equal)
        owners = {name: tables.PARTS[entry.part] for entry, name in found.names.items()}
        owners |= dict.fromkeys(found.other_set, "other UNet")
        owners |= dict.fromkeys((name for name in found.extras if name not in found.unknown), "beside")
        kind = kind_of_tensors(shapes) or (UNET_ALONE if found.missing_parts[:2] == ("vae", "text") else None)
        usual = {"noise_stats"} if source.layout == "ldm" else set()  # single files hold none
        odd += [f"it has no {tables.PARTS[part]}" for part in found.missing_parts if part not in usual]
        odd += _some(found.problems)
        if not found.problems:
            odd += _some(f"{printable(source.spelled(name))} {list(shapes[name])} is unknown" for name in found.unknown)
        odd += _unusual(config, shapes, dtypes, found.names)
    except (CheckpointError, ConfigError) as error:
        odd.append(str(error).removeprefix(f"{source.path}: "))
        kind = kind or kind_of_tensors(shapes)
    if source.extra is not None:
        shapes |= source.extra.shapes
        dtypes |= source.extra.dtypes
        owners |= dict.fromkeys(source.extra, "beside")
    parts: dict[str, dict[str, Any]] = {}
    for name, shape in shapes.items():
        part = parts.setdefault(owners.get(name, "unknown"), {"tensors": 0, "elements": 0, "dtypes": Counter()})
        part["tensors"] += 1
        part["elements"] += math.prod(shape)
        part["dtypes"][dtypes[name].name] += 1
    for part in parts.values():
        part["dtypes"] = dict(part["dtypes"].most_common())
    order = [*tables.PARTS.values(), "other UNet", "beside", "unknown"]
    return Inspection(
        path=str(path),
        format="folder" if os.path.isdir(path) else getattr(source.tensors, "format", "tensors"),
        layout=source.layout,
        family=family,
        prediction=said,
        ema=ema,
        tensors=len(shapes),
        bytes=sum(math.prod(shapes[name]) * dtypes[name].itemsize for name in shapes),
        parts={name: parts[name] for name in order if name in parts},
        metadata=dict(source.metadata),
        licences=sorted(source.licences),
        cards=tuple(sorted(source.cards)),
        tokenizer=None if source.tokenizer is None else f"its own, of {source.tokenizer.vocab_size} tokens",
        odd=odd,
        kind=None if kind is None else str(kind),
    )


def _some(lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    return lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more such"] if len(lines) > SHOWN else [])


def _unusual(config: Any, shapes: Any, dtypes: Any, names: Any) -> list[str]:
    lines = []
    kinds = Counter(dtypes[name].name for name in names.values())
    if len(kinds) > 1:
        lines.append("its parameters have several types: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    reshaped = [name for entry, name in names.items() if entry.accepts(shapes[name]) and shapes[name] != entry.shape]
    if reshaped:
        lines.append(f"{len(reshaped)} projections are stored as the other generation stores them ({reshaped[0]}, ...)")
    respelled = [name for entry, name in names.items() if name not in (entry.name, keys.ema_name(entry.name))]
    if respelled:
        lines.append(f"{len(respelled)} tensors have another tool's names ({printable(respelled[0])}, ...)")
    for name, dtype in dtypes.items():
        if name.endswith("embeddings.position_ids") and dtype.kind != "i":
            lines.append(f"{name} is {dtype.name}: a merging tool has turned positions into fractions (not used here)")
    return lines
