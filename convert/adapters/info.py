"""What is told of an adapter: its kinds, ranks, targets, and what its metadata says of the training."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sdjax.convert.adapters.kinds import Change
from sdjax.convert.describe.distilled import few_step_of
from sdjax.convert.errors import printable
from sdjax.few_step import recipe_of

MOST_TAGS = 20  # that are listed
LARGEST_TEXT = 2**23  # characters of metadata that are parsed


@dataclasses.dataclass(frozen=True)
class AdapterInfo:
    """Facts about an adapter.

    Attributes:
        kinds: the number of parameters changed by each kind, such as {"LoRA": 192}.
        ranks: the ranks that occur, rising.
        alphas: the alphas that occur, rising; empty if the file has none.
        parts: the number of parameters changed in each network, {"unet": 128, "text": 64}.
        base_model: the model that it was trained on, as its metadata says; "" if it does not.
        trigger: words that its author gives for its use.
        tags: the most frequent tags of its training captions, with their counts.
        title: its name, as its metadata says.
        hashes: the short hashes by which Civitai finds its file, {"AutoV2": ..., "AutoV3": ...}; none without a file.
        few_step: how models with it are sampled in a few steps (`sdjax.few_step`); "" if it is no distillation.
    """

    kinds: Mapping[str, int]
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    parts: Mapping[str, int]
    base_model: str = ""
    trigger: str = ""
    tags: tuple[tuple[str, int], ...] = ()
    title: str = ""
    hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    few_step: str = ""

    def lines(self) -> list[str]:
        """Returns the facts as lines for a terminal."""
        kinds = ", ".join(f"{name} of {count} parameters" for name, count in self.kinds.items())
        parts = ", ".join(f"{count} of the {_TITLES[name]}" for name, count in self.parts.items())
        facts = {
            "kind": kinds, "rank": ", ".join(map(str, self.ranks)), "alpha": ", ".join(f"{a:g}" for a in self.alphas),
            "changes": parts, "title": self.title, "base model": self.base_model, "trigger words": self.trigger,
            "tags": ", ".join(f"{tag} ({count})" for tag, count in self.tags),
            "hashes": ", ".join(f"{name} {value}" for name, value in self.hashes.items()),
            "few steps": f"{recipe_of(self.few_step).title}: {recipe_of(self.few_step)}" if self.few_step else "",
        }  # fmt: skip
        return [f"{name}: {text}" for name, text in facts.items() if text]


_TITLES = {"unet": "UNet", "text": "text encoder"}


def info_of(
    changes: Sequence[Change], alphas: Sequence[float], metadata: Mapping[str, str], path: pathlib.Path | None = None
) -> AdapterInfo:
    """Returns what is told of an adapter with these changes. Metadata that cannot be understood is left out."""
    return AdapterInfo(
        dict(collections.Counter(change.kind for change in changes)),
        tuple(sorted({change.rank for change in changes if change.rank is not None})),
        tuple(sorted(set(alphas))),
        dict(collections.Counter(change.parameter.part for change in changes)),
        _first(metadata, "ss_sd_model_name", "ss_base_model_version", "modelspec.architecture", "sd_version"),
        _first(metadata, "modelspec.trigger_phrase", "ss_trigger_words", "trigger_words"),
        _tags(metadata.get("ss_tag_frequency", "")),
        _first(metadata, "modelspec.title", "ss_output_name"),
        few_step=few_step_of(metadata, path) or "",
    )


def _first(metadata: Mapping[str, str], *keys: str) -> str:
    return next((printable(metadata[key]) for key in keys if metadata.get(key)), "")


def _tags(text: str) -> tuple[tuple[str, int], ...]:
    """Returns the most frequent tags of kohya's ss_tag_frequency: {folder: {tag: count}}."""
    counts: collections.Counter[str] = collections.Counter()
    folders = parsed(text)
    for tags in folders.values() if isinstance(folders, Mapping) else ():
        for tag, count in tags.items() if isinstance(tags, Mapping) else ():
            if type(count) is int and 0 < count < 2**31:
                counts[printable(tag.strip())] += count
    return tuple(counts.most_common(MOST_TAGS))


def parsed(text: str) -> Any:
    """Returns the value of JSON in metadata, None if it is none or too long."""
    if len(text) > LARGEST_TEXT:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
