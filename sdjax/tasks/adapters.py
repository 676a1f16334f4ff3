"""The adapters of pictures: found by file or by tags in the prompt, applied to the UNet and to the text encoder."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from sdjax.adapters.combining import combine
from sdjax.adapters.delta import (
    Adapter,
    AdapterError,
    Delta,
    Difference,
    LowRank,
    NotLinear,
    Strength,
    difference_at,
    merge,
)
from sdjax.checks.arguments import number, shown
from sdjax.config import ModelConfig
from sdjax.convert.adapters.load import LoadedAdapter
from sdjax.nn.quantised.leaf import whole
from sdjax.prompts.extra_networks import Tag, read_tags
from sdjax.prompts.tag_spans import WHOLE, Span, check_span, spans_in_prompt
from sdjax.tasks.adapter_files import USUAL, Conventions, find_file, read_file
from sdjax.tasks.extra_files import check_once
from sdjax.typing import Params

TAGS = ("lora", "lyco")


@dataclasses.dataclass(frozen=True, eq=False)
class AdapterUse:
    """An adapter and its strength. `name` is for messages. `embeddings` are vectors of words that came with it.

    `start` and `end`, from 0 to 1: the UNet is changed from this share of the steps to that one. The text encoder is
    changed whatever they are, because prompts are encoded once. `few_step` is how pictures with it are sampled, if it
    is a distillation (`sdjax.few_step`). Raises ValueError unless 0 <= start < end <= 1.
    """

    adapter: Adapter
    strength: Strength = Strength()
    name: str = "adapter"
    start: float = 0.0
    end: float = 1.0
    embeddings: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    short_hash: str = ""  # of its file, as A1111 writes it beside a picture
    few_step: str = ""

    def __post_init__(self) -> None:
        check_span("an adapter", self.start, self.end)

    @property
    def span(self) -> Span:
        """The share of the steps from and to which it changes the UNet."""
        return self.start, self.end


Given: TypeAlias = LoadedAdapter | Adapter | str | os.PathLike[str]
AdapterLike: TypeAlias = AdapterUse | LoadedAdapter | str | os.PathLike[str] | tuple[Given, float | Strength]


def read_use(given: AdapterLike, config: ModelConfig, conventions: Conventions = USUAL) -> AdapterUse:
    """Returns an adapter with its strength for a model of this description.

    `given` is an AdapterUse; a file or folder, "FILE", "FILE:WEIGHT" or "FILE:WEIGHT:TEXT WEIGHT"; what
    `sdjax.convert.load_adapter` returns; or a pair of one of these and a weight or a Strength. Files are read with
    `conventions`. Raises ValueError for anything else, `sdjax.convert.CheckpointError` for a file that cannot be used.
    """
    what: Any = given
    strength = Strength()
    if isinstance(given, AdapterUse):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        what, weight = given
        strength = weight if isinstance(weight, Strength) else Strength(number("an adapter's weight", weight))
        if isinstance(what, Mapping):
            return AdapterUse(what, strength)
    elif isinstance(given, str | os.PathLike):
        what, strength = split_weights(os.fspath(given))
    if isinstance(what, str | os.PathLike):
        what = read_file(os.fspath(what), config, conventions)
    if not isinstance(what, LoadedAdapter):
        raise ValueError(
            f"an adapter is a file, what load_adapter returns, or a pair of it and a weight; got {shown(given)}"
        )
    return _use(what, strength)


def _use(loaded: LoadedAdapter, strength: Strength, span: Span = WHOLE) -> AdapterUse:
    return AdapterUse(
        loaded.adapter, strength, loaded.name, *span, loaded.embeddings, loaded.short_hash, loaded.info.few_step
    )


def split_weights(text: str) -> tuple[str, Strength]:
    """Returns the file and the strength of FILE[:WEIGHT[:TEXT WEIGHT]]. Raises ValueError for bad weights."""
    numbers: list[float] = []
    rest = text
    while len(numbers) < 2 and not os.path.exists(rest):
        head, colon, tail = rest.rpartition(":")
        if not colon:
            break
        try:
            numbers.insert(0, number("an adapter's weight", float(tail)))
        except ValueError:
            if not os.path.exists(head):
                break
            raise ValueError(f"an adapter is FILE, FILE:WEIGHT or FILE:WEIGHT:TEXT WEIGHT; got {shown(text)}") from None
        rest = head
    return rest, Strength(numbers[0] if numbers else 1.0, numbers[1] if len(numbers) > 1 else None)


def named_uses(
    names: str | None, folder: str | None, config: ModelConfig, conventions: Conventions = USUAL
) -> tuple[AdapterUse, ...]:
    """Returns the adapters of a text: NAME, NAME:WEIGHT or NAME:WEIGHT:TEXT WEIGHT, several joined by +.

    NAME is as in tags. Raises ValueError for names that are not there and for bad weights, and without a folder.
    """
    if not names:
        return ()
    if folder is None:
        raise ValueError("loras are names of files in lora_dir: give it too")
    uses = []
    for text in map(str.strip, names.split("+")):
        name, *weights = text.split(":")
        try:
            numbers = [number("an adapter's weight", float(one)) for one in weights]
        except ValueError:
            numbers = [0.0] * 3
        if len(numbers) > 2:
            raise ValueError(f"a LoRA is NAME, NAME:WEIGHT or NAME:WEIGHT:TEXT WEIGHT; got {shown(text)}")
        strength = Strength(numbers[0] if numbers else 1.0, numbers[1] if len(numbers) > 1 else None)
        uses.append(_use(read_file(str(find_file(folder, name)), config, conventions), strength))
    return tuple(uses)


def uses_in_prompt(
    prompt: str, folder: str | None, config: ModelConfig, steps: int = 1, conventions: Conventions = USUAL
) -> tuple[str, tuple[AdapterUse, ...]]:
    """Returns the prompt without its tags `<lora:name:weight>`, and the adapters that they name.

    A tag is `<lora:NAME>`, `<lora:NAME:WEIGHT>` or `<lora:NAME:TEXT WEIGHT:UNET WEIGHT>` as in A1111, also with
    `unet=`, `te=` and `lbw=` (17 or 26 weights of blocks with commas). NAME is the name of a file in `folder` or below
    it, without its ending. Of `steps` steps a tag works in those in which `[from:to:when]` leaves it in the text.
    Without a folder tags stay in the prompt. Raises ValueError for names that are not there and for arguments that
    cannot be followed.
    """
    if folder is None or "<" not in prompt:
        return prompt, ()
    found = read_tags(prompt, TAGS)
    uses = []
    for tag, span in zip(found.tags, spans_in_prompt(prompt, found.tags, steps)):
        loaded = read_file(str(find_file(folder, tag.name)), config, conventions)
        uses.append(_use(loaded, strength_of(tag), span))
    return (found.text.strip() if found.tags else prompt), tuple(uses)


def files_named(prompt: str, names: str | None, folder: str | None, config: ModelConfig) -> list[LoadedAdapter]:
    """Returns the adapters that tags in a prompt and a text as for `named_uses` name, without their strengths."""
    if folder is None:
        return []
    tagged = [tag.name for tag in read_tags(prompt, TAGS).tags]
    others = [one.strip().partition(":")[0] for one in (names or "").split("+") if one.strip()]
    return [read_file(str(find_file(folder, name)), config) for name in (*tagged, *others)]


def strength_of(tag: Tag) -> Strength:
    """Returns the strength that a tag asks for, as in A1111: the text encoder's weight stands before the UNet's.

    Without a weight of the UNet it is the text encoder's. Raises ValueError for arguments that are not known.
    """
    unknown = sorted(set(tag.options) - {"unet", "te", "lbw"})
    if unknown or len(tag.args) > 2:
        extra = f"{unknown[0]}=" if unknown else f"a third argument {shown(tag.args[2])}"
        raise ValueError(f"<{tag.kind}:{tag.name}> has {extra}; tags have one or two weights, unet=, te= and lbw=")
    own = {key: _number(tag, value) for key, value in tag.options.items() if key != "lbw"}
    text = own.get("te", tag.number(0, 1.0))
    unet = own.get("unet", tag.number(1, text))
    blocks = None
    if "lbw" in tag.options:
        blocks = tuple(_number(tag, one) for one in tag.options["lbw"].split(","))
    return Strength(unet, text, blocks)


def _number(tag: Tag, text: str) -> float:
    if not text.strip():
        raise ValueError(f"<{tag.kind}:{tag.name}> in the prompt has a weight without a number")
    return tag._replace(args=(text,)).number(0, 0.0)


def check_uses(uses: Sequence[AdapterUse]) -> None:
    """Raises ValueError if a picture uses an adapter twice at the same steps."""
    check_once("adapter", [(id(use.adapter), use.name, use.span) for use in uses])


def unet_adapter(uses: Sequence[AdapterUse], base: Params) -> dict[str, Delta]:
    """Returns the weighted sum of what adapters change in the UNet (`unet_changes`)."""
    return combine([(unet_changes(use, use.strength, base), 1.0) for use in uses]).adapter


def unet_changes(use: AdapterUse, strength: Strength, base: Params) -> dict[str, Delta]:
    """Returns what an adapter changes in the UNet, by the paths of leaves, as low-rank changes and differences.

    `strength` is in place of that of the use. `base` are the UNet's parameters. Raises AdapterError for a leaf that
    the UNet does not have.
    """
    leaves = flatten_dict(base, sep="/")
    out: dict[str, Delta] = {}
    for path, delta in use.adapter.items():
        part, _, rest = path.partition("/")
        weight = strength.of(path)
        if part != "unet" or weight == 0:
            continue
        if rest not in leaves:
            raise AdapterError(f"{use.name} changes {rest}, which this UNet does not have")
        if isinstance(delta, LowRank):
            out[rest] = LowRank(delta.down, delta.up, weight * delta.scale)
        else:
            out[rest] = Difference(difference_at(delta, jnp.asarray(whole(leaves[rest]), jnp.float32), weight))
    return out


def is_linear(adapter: Adapter) -> bool:
    """Returns whether all changes of the UNet at weight s are s times those at weight 1."""
    return not any(
        isinstance(delta, NotLinear) and getattr(delta, "convention", "") != "linear"
        for path, delta in adapter.items() if path.startswith("unet/")
    )  # fmt: skip


def text_params(uses: Sequence[AdapterUse], params: Params) -> Params:
    """Returns the text encoder's parameters with the adapters merged in."""
    own = [({path: delta for path, delta in use.adapter.items() if path.startswith("text/")}, use.strength)
           for use in uses]  # fmt: skip
    return merge({"text": params}, own)["text"]


def changes_text(uses: Sequence[AdapterUse]) -> bool:
    """Returns whether adapters change the text encoder."""
    return any(path.startswith("text/") and use.strength.of(path) for use in uses for path in use.adapter)
