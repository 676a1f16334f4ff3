"""Reports what a checkpoint holds, without reading its weights."""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sdjax import configs
from sdjax.config import ConfigError, ModelConfig
from sdjax.convert.adapters.inspecting import lines_of
from sdjax.convert.checkpoint import open_checkpoint
from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.describe import prediction
from sdjax.convert.describe.choices import choose_ema, describe, stated
from sdjax.convert.describe.other_kinds import UNET_ALONE, kind_of_folder, kind_of_tensors
from sdjax.convert.describe.tokens import check_tokens
from sdjax.convert.errors import CheckpointError, OtherKindError, printable
from sdjax.convert.merge.recipe import RECIPE_KEY, read_recipe
from sdjax.convert.names import naming, tables
from sdjax.convert.names.matching import Match, match

SHOWN = 12  # names of a list that the text repeats


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A checkpoint's family, parts, dtypes and metadata, and anything unusual (nothing in a released file)."""

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
    kind: str | None = None  # kind and advice, for a file that is not a whole model
    cards: tuple[str, ...] = ()
    tokenizer: str | None = None
    few_step: str | None = None  # how a distilled model is sampled, in words
    merge: tuple[str, ...] = ()  # the recipe of a merged model, in words
    adapter: tuple[str, ...] = ()  # facts, for the file of an adapter, an embedding or a hypernetwork

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
            *([f"  few steps   {self.few_step}"] if self.few_step else []),
            f"  averages    {'yes (model_ema.), used unless asked otherwise' if self.ema else 'no'}",
        ]
        lines += [f"  adapter     {line}" for line in self.adapter]
        for name, part in self.parts.items():
            dtypes = ", ".join(f"{count} {dtype}" for dtype, count in part["dtypes"].items())
            lines.append(f"  {name:<11} {part['tensors']} tensors, {part['elements']:,} numbers ({dtypes})")
        lines += [f"  merge       {line}" for line in self.merge]
        for key, value in self.metadata.items():
            if key == RECIPE_KEY and self.merge:
                continue
            lines.append(f"  metadata    {printable(key)} = {printable(value)}")
        lines += [f"  licence     {name}" for name in self.licences]
        lines += [f"  card        {name}" for name in self.cards]
        lines += [f"  tokenizer   {self.tokenizer}"] if self.tokenizer is not None else []
        odd = [line for line in self.odd if line != self.kind]
        lines += [f"  odd         {line}" for line in odd] or ["  odd         nothing"]
        return "\n".join(lines)


def inspect(path: str | os.PathLike[str], variant: str | None = None) -> Inspection:
    """Returns the report of a checkpoint of any layout. Raises CheckpointError if it cannot be read at all."""
    try:
        checkpoint = open_checkpoint(path, variant)
    except OtherKindError as error:
        return _of_other_kind(path, error)
    shapes = checkpoint.shapes
    odd: list[str] = []
    family: str | None = None
    few_step: str | None = None
    said: str | None = None
    kind = kind_of_folder(checkpoint.configs)
    ema = choose_ema(checkpoint, "auto")
    owners: dict[str, str] = {}
    try:
        description = describe(checkpoint, None, stated(checkpoint))
        config, decision = description.config, description.decision
        family = f"{config.name}{_variant(config)} (by {description.origin})"
        few_step = None if config.recipe is None else f"{config.recipe.title}: {config.recipe}"
        if decision is not None:
            said = f"{decision.prediction} (by {decision.origin})"
        elif prediction.is_ambiguous(config):
            odd.append("nothing says whether it predicts epsilon or v: loading asks the network, or takes prediction=")
        else:
            said = f"{config.schedule.prediction} (by the family)"
        if checkpoint.tokenizer is not None:
            try:
                check_tokens(checkpoint.tokenizer, config.text, CheckpointError)
            except CheckpointError as error:
                odd.append(str(error))
        found = match(checkpoint.tensors, tables.model_table(config, checkpoint.layout), ema=ema)
        owners = {name: tables.PARTS[entry.part] for entry, name in found.names.items()}
        owners |= dict.fromkeys(found.other_set, "other UNet")
        owners |= dict.fromkeys((name for name in found.extras if name not in found.unknown), "beside")
        kind = kind_of_tensors(shapes) or (UNET_ALONE if found.missing_parts[:2] == ("vae", "text") else None)
        usual = {"noise_stats"} if checkpoint.layout == "ldm" else set()  # single files hold none
        odd += [f"it has no {tables.PARTS[part]}" for part in found.missing_parts if part not in usual]
        odd += _some(found.problems)
        if not found.problems:
            unknown = (checkpoint.tensors[name] for name in found.unknown)
            odd += _some(f"{printable(one.name)} {list(one.shape)} is unknown" for one in unknown)
        odd += _unusual(checkpoint.tensors, found)
    except (CheckpointError, ConfigError) as error:
        odd.append(str(error).removeprefix(f"{checkpoint.path}: "))
        kind = kind or kind_of_tensors(shapes)
    owners |= dict.fromkeys(checkpoint.extra, "beside")
    tensors = {**checkpoint.tensors, **checkpoint.extra}
    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        part = parts.setdefault(owners.get(name, "unknown"), {"tensors": 0, "elements": 0, "dtypes": Counter()})
        part["tensors"] += 1
        part["elements"] += math.prod(tensor.shape)
        part["dtypes"][tensor.type_name] += 1
    for part in parts.values():
        part["dtypes"] = dict(part["dtypes"].most_common())
    merge: tuple[str, ...] = ()
    try:
        recipe = read_recipe(checkpoint.metadata)
        merge = tuple(recipe.lines()) if recipe is not None else ()
    except CheckpointError as error:
        recipe = None
        odd.append(str(error))
    order = [*tables.PARTS.values(), "other UNet", "beside", "unknown"]
    return Inspection(
        path=str(path),
        format="folder" if os.path.isdir(path) else checkpoint.format,
        layout=checkpoint.layout,
        family=family,
        prediction=said,
        ema=ema,
        tensors=len(tensors),
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
        parts={name: parts[name] for name in order if name in parts},
        metadata=dict(checkpoint.metadata),
        licences=sorted(checkpoint.licences),
        cards=tuple(sorted(checkpoint.cards)),
        tokenizer=None if checkpoint.tokenizer is None else f"its own, of {checkpoint.tokenizer.vocab_size} tokens",
        odd=odd,
        kind=None if kind is None else str(kind),
        few_step=few_step,
        merge=merge,
        adapter=tuple(lines_of(path, kind)),
    )


def _variant(config: ModelConfig) -> str:
    """Returns in what the UNet differs from the release of this name."""
    if config.name not in configs.NAMES:
        return ""
    own, released = config.unet, configs.get(config.name).unet
    scale = ", which takes the guidance scale as an input" if own.guidance_dim else ""
    smaller = dataclasses.replace(own, guidance_dim=None) != released
    return (", with a smaller UNet" if smaller else "") + scale


def _of_other_kind(path: str | os.PathLike[str], error: OtherKindError) -> Inspection:
    """Returns the report of a file or folder that is not a checkpoint."""
    said = f"it is {error.what}; {error.advice}"
    form = "folder" if os.path.isdir(path) else "file"
    size = 0 if form == "folder" else os.path.getsize(path)
    nothing: dict[str, Any] = {
        "family": None, "prediction": None, "ema": False, "tensors": 0, "parts": {}, "metadata": {}, "licences": [],
        "cards": [], "tokenizer": None,
    }  # fmt: skip
    return Inspection(str(path), form, "no known", bytes=size, odd=[said], kind=said, **nothing)


def _some(lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    return lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more such"] if len(lines) > SHOWN else [])


def _unusual(tensors: Mapping[str, LazyTensor], found: Match) -> list[str]:
    """Returns notes on traces of merging and converting tools in a whole model."""
    lines, used = [], {entry: tensors[name] for entry, name in found.names.items()}
    kinds = Counter(tensor.type_name for tensor in used.values())
    if len(kinds) > 1:
        lines.append("its parameters have several types: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    reshaped = [
        name for entry, name in found.names.items()
        if entry.accepts(used[entry].shape) and used[entry].shape != entry.shape
    ]  # fmt: skip
    if reshaped:
        lines.append(f"{len(reshaped)} projections are stored as the other generation stores them ({reshaped[0]}, ...)")
    respelled = [name for entry, name in found.names.items() if name not in (entry.name, naming.ema_name(entry.name))]
    if respelled:
        lines.append(f"{len(respelled)} tensors have another tool's names ({printable(respelled[0])}, ...)")
    for name, tensor in tensors.items():
        if name.endswith("embeddings.position_ids") and tensor.dtype.kind != "i":
            kind = tensor.dtype.name
            lines.append(f"{name} is {kind}: a merging tool has turned positions into fractions (not used here)")
    return lines
