"""Reads ControlNets: lllyasviel's files, whole models that hold one, diffusers' folders, differences, control-LoRAs."""

import dataclasses
import os
import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from numpy.typing import DTypeLike

from sdjax import configs
from sdjax.config import ConfigError, ModelConfig, UNetConfig
from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import LazyTensor, float_type
from sdjax.convert.describe.other_kinds import kind_of_folder, kind_of_tensors
from sdjax.convert.names.control import MARKS, POOLED, controlnet_table
from sdjax.convert.names.naming import Layout
from sdjax.convert.names.tables import Table
from sdjax.convert.parts.from_unet import Source, from_unet
from sdjax.convert.parts.lone import leaves_in, read_whole
from sdjax.nn.controlnet import HINT_WIDTHS, ControlNetConfig, of_unet
from sdjax.typing import Params

_LDM = re.compile(r"(.*?)(?:input_hint_block|zero_convs|middle_block_out)\.")
_DIFFUSERS = re.compile(r"(.*?)(?:controlnet_cond_embedding|controlnet_down_blocks|controlnet_mid_block)\.")
_SHUFFLE = re.compile(r"(?i)(?<![a-z])shuffle(?![a-z])")
MAX_YAML = 2**16
KINDS: Mapping[str, Source] = {"lora_controlnet": "lora", "difference": "difference"}  # by the mark in the file
WORDS: Mapping[Source, str] = {
    "whole": "a ControlNet", "difference": "a ControlNet as a difference to the model's UNet",
    "lora": "a control-LoRA, which makes a ControlNet of the model's UNet",
}  # fmt: skip


FAMILIES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}  # by the width of the context


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedControlNet:
    """A ControlNet: description, parameters, name (the file's without its ending), and how the file holds it."""

    config: ControlNetConfig
    params: Params
    name: str = "ControlNet"
    source: Source = "whole"


@dataclasses.dataclass(frozen=True, eq=False)
class FoundControlNet:
    """A ControlNet in a file, not read: its description, and its tensors by the names of the table."""

    checkpoint: Checkpoint
    config: ControlNetConfig
    table: Table
    tensors: Mapping[str, LazyTensor]
    source: Source

    def lines(self) -> list[str]:
        """Returns its facts as lines."""
        width = self.config.unet.context_dim
        pooled = ", averaged over the picture (as shuffle is)" if self.config.pooled else ""
        return [
            f"{WORDS[self.source]}{pooled}",
            f"for {FAMILIES.get(width, 'models')}, whose contexts have {width} numbers",
            f"hints of {self.config.hint_channels} channels",
        ]

    def leaves(self, unet: Params | None, dtype: np.dtype | None) -> dict[str, LazyTensor]:
        """Returns the parameters by path. Raises CheckpointError, naming every difference."""
        tensors = self.tensors
        if self.source != "whole" and unet is not None:
            tensors = from_unet(self.source, tensors, self.table, unet, self.checkpoint.error)
        what = f"the ControlNet of a UNet of {'/'.join(map(str, self.config.unet.channels))} channels"
        return leaves_in(self.checkpoint, tensors, self.table, what, dtype, complete=True)


def load_controlnet(
    source: CheckpointLike,
    model: ModelConfig | None = None,
    unet: Params | None = None,
    *,
    pooled: bool | None = None,
    dtype: DTypeLike | None = None,
) -> LoadedControlNet:
    """Returns the ControlNet in a file or folder.

    `model`: the description of the model that it is for; None: Stable Diffusion 1 or 2, by the tensors. `unet`: the
    parameters of that model's UNet, from which control-LoRAs and differences are completed. `pooled`: whether its
    residuals are averaged over the picture; None: as a config.json or YAML file beside it says, else if the file is
    named shuffle. Nothing in a file is executed. Raises CheckpointError, naming the tensors, ValueError for an unknown
    dtype.
    """
    kind = float_type(dtype)
    found = find_controlnet(source, model, pooled=pooled)
    if found.source != "whole" and unet is None:
        raise found.checkpoint.error(f"it is {WORDS[found.source]}: give the parameters of that UNet by unet=")
    params = read_whole(found.leaves(unet, kind), kind, "controlnet")
    path = found.checkpoint.path
    return LoadedControlNet(found.config, params, "ControlNet" if path is None else path.stem, found.source)


def find_controlnet(
    source: CheckpointLike, model: ModelConfig | None = None, *, pooled: bool | None = None
) -> FoundControlNet:
    """Returns the ControlNet in a file or folder without reading its numbers. Raises CheckpointError."""
    checkpoint = open_checkpoint(source)
    tensors = {tensor.name: tensor for tensor in checkpoint.tensors.values()}  # as the file spells them
    layout, prefix = _place(checkpoint, tensors)
    mine = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix) or name in MARKS}
    shapes = {name.removeprefix(prefix): tensor.shape for name, tensor in mine.items()}
    marks = [kind for mark, kind in KINDS.items() if mark in shapes]
    described = checkpoint.configs.get(f"{prefix}config.json", {})
    try:
        config = _described(shapes, layout, described, model)
    except ConfigError as error:
        raise checkpoint.error(str(error)) from error
    if pooled is None:
        pooled = _is_pooled(checkpoint.path, {**checkpoint.metadata, **described})
    config = dataclasses.replace(config, pooled=pooled)
    table = controlnet_table(config, layout, prefix)
    return FoundControlNet(checkpoint, config, table, mine, marks[0] if marks else "whole")


def _place(checkpoint: Checkpoint, names: Mapping[str, Any]) -> tuple[Layout, str]:
    """Returns the layout and what stands before the names. Raises CheckpointError if there is no ControlNet."""
    patterns: Sequence[tuple[Layout, re.Pattern[str]]] = (("ldm", _LDM), ("diffusers", _DIFFUSERS))
    places: Counter[tuple[Layout, str]] = Counter()
    for layout, pattern in patterns:
        places.update((layout, match[1]) for match in map(pattern.match, names) if match)
    if places:
        return places.most_common(1)[0][0]
    kind = kind_of_folder(checkpoint.configs) or kind_of_tensors(checkpoint.shapes)
    known = "" if kind is None else f" (it is {kind.what})"
    raise checkpoint.error(f"it holds no ControlNet{known}: name a file with control_model. or controlnet_ tensors")


def _described(
    shapes: Mapping[str, tuple[int, ...]], layout: Layout, described: Mapping[str, Any], model: ModelConfig | None
) -> ControlNetConfig:
    """Returns the description. Raises ConfigError if the ControlNet is for another model."""
    ldm = layout == "ldm"

    def size(name: str, rank: int, axis: int) -> int | None:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) == rank else None

    width = size("time_embed.2.bias" if ldm else "time_embedding.linear_2.bias", 1, 0)
    widths = {s[1] for name, s in shapes.items() if name.endswith("attn2.to_k.weight") and len(s) == 2}
    widths |= {s[1] for name, s in shapes.items() if name.endswith("attn2.to_k.down") and len(s) == 2}
    context = widths.pop() if len(widths) == 1 else None
    unet = _released(None if width is None else width // 4, context) if model is None else model.unet
    for number, ours, what in (
        (None if width is None else width // 4, unet.channels[0], "channels"),
        (context, unet.context_dim, "numbers a token"),
    ):
        if number not in (None, ours):
            raise ConfigError(
                f"this ControlNet is for models with {number} {what}, and the model has {ours}: ControlNets for Stable "
                "Diffusion 1 and 2 (and XL) do not fit each other's models"
            )
    base = of_unet(unet)
    inputs = size("input_blocks.0.0.weight" if ldm else "conv_in.weight", 4, 1) or base.unet.in_channels
    first = "input_hint_block.{}.weight" if ldm else "controlnet_cond_embedding.{}.weight"
    numbers = ("0", "4", "8", "12") if ldm else ("conv_in", "blocks.1", "blocks.3", "blocks.5")
    factor = 8 if model is None else model.vae.factor
    usual = HINT_WIDTHS[: factor.bit_length()]
    known = [size(first.format(n), 4, 0) or wide for n, wide in zip(numbers, usual)]
    return ControlNetConfig(
        dataclasses.replace(base.unet, in_channels=inputs),
        hint_channels=size(first.format(numbers[0]), 4, 1) or 3,
        hint_widths=tuple(known),
        blue_first=described.get("controlnet_conditioning_channel_order") == "bgr",
    )


def _released(width: int | None, context: int | None) -> UNetConfig:
    for name in "sd1", "sd2_base":
        unet = configs.get(name).unet
        if width in (None, unet.channels[0]) and context in (None, unet.context_dim):
            return unet
    raise ConfigError(
        f"this ControlNet is for a model with {width} channels and contexts of {context} numbers, neither Stable "
        "Diffusion 1 nor 2: give the description of that model by model="
    )


def _is_pooled(path: pathlib.Path | None, described: Mapping[str, Any]) -> bool:
    """Returns whether residuals are averaged: as the files beside say, else by the name."""
    if POOLED in described:
        return described[POOLED] in (True, "true")
    if path is None:
        return False
    said = _in_yaml(path.with_suffix(".yaml"))
    return said if said is not None else _SHUFFLE.search(path.name) is not None


def _in_yaml(path: pathlib.Path) -> bool | None:
    """Returns `global_average_pooling` of a ControlNet's YAML file; None if it says nothing."""
    try:
        if not path.is_file() or os.path.getsize(path) > MAX_YAML:
            return None
        node: Any = yaml.safe_load(path.read_bytes())
        for key in "model", "params", "global_average_pooling":
            node = node.get(key) if isinstance(node, Mapping) else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return node if isinstance(node, bool) else None
