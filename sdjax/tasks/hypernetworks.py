"""The hypernetworks of pictures: by file, or by tags `<hypernet:name:0.5>` in the prompt from a folder."""

import dataclasses
import os
from collections.abc import Sequence
from typing import TypeAlias

from sdjax.adapters.hypernetwork import Hypernetwork
from sdjax.checks.arguments import number, shown
from sdjax.config import ModelConfig
from sdjax.convert.adapters.hypernetwork import LoadedHypernetwork, load_hypernetwork
from sdjax.prompts.extra_networks import read_tags
from sdjax.prompts.tag_spans import Span, check_span, spans_in_prompt
from sdjax.tasks.adapter_files import find_file
from sdjax.tasks.adapters import split_weights
from sdjax.tasks.extra_files import check_once, read_once

TAGS = ("hypernet",)


@dataclasses.dataclass(frozen=True, eq=False)
class HypernetworkUse:
    """A hypernetwork and its strength. `name` is for messages.

    It works from the share `start` of the steps to the share `end`, both from 0 to 1. Raises ValueError unless
    0 <= start < end <= 1.
    """

    network: Hypernetwork
    strength: float = 1.0
    name: str = "hypernetwork"
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_span("a hypernetwork", self.start, self.end)

    @property
    def span(self) -> Span:
        """The share of the steps from and to which it works."""
        return self.start, self.end


HypernetworkLike: TypeAlias = (
    HypernetworkUse | LoadedHypernetwork | str | os.PathLike[str] | tuple[LoadedHypernetwork | str, float]
)


def read_hypernetwork(given: HypernetworkLike, config: ModelConfig) -> HypernetworkUse:
    """Returns a hypernetwork with its strength for a model of this description.

    `given` is a HypernetworkUse; a file, "FILE" or "FILE:STRENGTH"; what `sdjax.convert.load_hypernetwork` returns; or
    a pair of one of these and a strength. Raises ValueError for anything else, `sdjax.convert.CheckpointError` for a
    file that cannot be used.
    """
    if isinstance(given, HypernetworkUse):
        return given
    what, strength = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if strength is None and isinstance(what, str | os.PathLike):
        what, weights = split_weights(os.fspath(what))
        if weights.text is not None:
            raise ValueError(f"a hypernetwork is FILE or FILE:STRENGTH; got {shown(given)}")
        strength = weights.unet
    strength = number("a hypernetwork's strength", 1.0 if strength is None else strength)
    if isinstance(what, str | os.PathLike):
        what = read_file(os.fspath(what), config)
    if not isinstance(what, LoadedHypernetwork):
        raise ValueError(f"a hypernetwork is FILE, FILE:STRENGTH or what load_hypernetwork returns; got {shown(given)}")
    return HypernetworkUse(what.network, strength, what.name)


@read_once(4)
def read_file(path: str, config: ModelConfig) -> LoadedHypernetwork:
    """Returns the hypernetwork in a file. It is read once as long as it does not change."""
    return load_hypernetwork(path, config)


def hypernetworks_in_prompt(
    prompt: str, folder: str | None, config: ModelConfig, steps: int = 1
) -> tuple[str, tuple[HypernetworkUse, ...]]:
    """Returns the prompt without its tags `<hypernet:NAME:STRENGTH>`, and the hypernetworks that they name.

    NAME is the name of a file in `folder` or below it, without its ending. Of `steps` steps a tag works in those in
    which `[from:to:when]` leaves it in the text. Without a folder tags stay in the prompt. Raises ValueError for names
    that are not there and for arguments that cannot be followed.
    """
    if folder is None or "<" not in prompt:
        return prompt, ()
    found = read_tags(prompt, TAGS)
    uses = []
    for tag, span in zip(found.tags, spans_in_prompt(prompt, found.tags, steps)):
        if len(tag.args) > 1 or tag.options:
            raise ValueError(f"<{tag.kind}:{tag.name}> has more than a strength: write <hypernet:{tag.name}:0.5>")
        loaded = read_file(str(find_file(folder, tag.name)), config)
        uses.append(HypernetworkUse(loaded.network, tag.number(0, 1.0), loaded.name, *span))
    return (found.text.strip() if found.tags else prompt), tuple(uses)


def check_uses(uses: Sequence[HypernetworkUse]) -> None:
    """Raises ValueError if a picture uses a hypernetwork twice at the same steps."""
    check_once("hypernetwork", [(id(use.network), use.name, use.span) for use in uses])
