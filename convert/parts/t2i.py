"""Reads T2I-Adapters, full and light ones, in their original and in diffusers' layout."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike

from sdjax.config import ConfigError, ModelConfig
from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import LazyTensor, float_type
from sdjax.convert.describe.other_kinds import kind_of_folder, kind_of_tensors
from sdjax.convert.names.control import t2i_table
from sdjax.convert.names.naming import Layout
from sdjax.convert.names.tables import Table
from sdjax.convert.parts.lone import leaves_in, read_whole
from sdjax.nn.t2i import FACTOR, T2IConfig
from sdjax.typing import Params

_BODY = re.compile(r"(.*?)body\.(\d+)\.(?:(in_conv|out_conv)|(?:(resnets|body)\.(\d+)\.)?block[12])\.")
LEVELS = 4  # of a UNet of Stable Diffusion
MOST = 16


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedT2I:
    """A T2I-Adapter: description, parameters, and the file's name without its ending."""

    config: T2IConfig
    params: Params
    name: str = "T2I-Adapter"


@dataclasses.dataclass(frozen=True, eq=False)
class FoundT2I:
    """A T2I-Adapter in a file, not read."""

    checkpoint: Checkpoint
    config: T2IConfig
    table: Table
    tensors: Mapping[str, LazyTensor]

    def lines(self) -> list[str]:
        """Returns its facts as lines."""
        kind = "light" if self.config.light else "full"
        hint = "grey hints" if self.config.hint_channels == 1 else f"hints of {self.config.hint_channels} channels"
        return [f"a {kind} T2I-Adapter for UNets of {'/'.join(map(str, self.config.channels))} channels", hint]

    def leaves(self, dtype: np.dtype | None) -> dict[str, LazyTensor]:
        """Returns the parameters by path. Raises CheckpointError, naming every difference."""
        what = f"a T2I-Adapter of {'/'.join(map(str, self.config.channels))} channels"
        return leaves_in(self.checkpoint, self.tensors, self.table, what, dtype, complete=True)


def load_t2i(source: CheckpointLike, model: ModelConfig | None = None, *, dtype: DTypeLike | None = None) -> LoadedT2I:
    """Returns the T2I-Adapter in a file or folder. `model` is the description of the model that it is for.

    Nothing in a file is executed. Raises CheckpointError, naming the tensors, ValueError for an unknown dtype.
    """
    kind = float_type(dtype)
    found = find_t2i(source, model)
    path = found.checkpoint.path
    name = "T2I-Adapter" if path is None else path.stem
    return LoadedT2I(found.config, read_whole(found.leaves(kind), kind, "t2i"), name)


def find_t2i(source: CheckpointLike, model: ModelConfig | None = None) -> FoundT2I:
    """Returns the T2I-Adapter in a file or folder without reading its numbers. Raises CheckpointError."""
    checkpoint = open_checkpoint(source)
    tensors = {tensor.name: tensor for tensor in checkpoint.tensors.values()}
    blocks = [match for match in map(_BODY.match, tensors) if match]
    if not blocks:
        kind = kind_of_folder(checkpoint.configs) or kind_of_tensors(checkpoint.shapes)
        known = "" if kind is None else f" (it is {kind.what})"
        raise checkpoint.error(f"it holds no T2I-Adapter{known}: none of its tensors is named body.0.block1.weight")
    prefix = Counter(match[1] for match in blocks).most_common(1)[0][0]
    shapes = {name.removeprefix(prefix): tensor.shape for name, tensor in tensors.items()}
    layout: Layout = "diffusers" if any(match[4] == "resnets" for match in blocks) else "ldm"
    try:
        config = _described(shapes, [match for match in blocks if match[1] == prefix], layout)
        if model is not None and config.channels != model.unet.channels:
            raise ConfigError(
                f"this T2I-Adapter is for UNets of {'/'.join(map(str, config.channels))} channels, and the model's has "
                f"{'/'.join(map(str, model.unet.channels))}"
            )
    except ConfigError as error:
        raise checkpoint.error(str(error)) from error
    return FoundT2I(checkpoint, config, t2i_table(config, layout, prefix), tensors)


def _described(
    shapes: Mapping[str, tuple[int, ...]], blocks: list[re.Match[str]], layout: Layout
) -> T2IConfig:  # fmt: skip
    """Returns the description that names and shapes give. Raises ConfigError if they give none."""
    light = any(match[3] == "out_conv" for match in blocks)
    count = 1 + max(int(match[2]) for match in blocks)
    inner = 1 + max((int(match[5]) for match in blocks if match[5]), default=0)
    flat = layout == "ldm" and not light  # the blocks of all levels are numbered through
    levels = LEVELS if flat and count % LEVELS == 0 else count
    each = count // LEVELS if flat else inner
    if levels > MOST or each > MOST or each < 1:
        raise ConfigError(f"a T2I-Adapter has four levels of a few blocks; this one has {count} of {inner}")
    starts = [level * each if flat else level for level in range(levels)]
    last = f".{'resnets.0.' if layout == 'diffusers' else 'body.0.' if light else ''}block1.bias"
    seen = [shapes.get(f"body.{n}.out_conv.bias" if light else f"body.{n}{last}", ()) for n in starts]
    widths = [shapes.get(f"body.{n}{last}", ()) for n in starts] if light else []
    first = shapes.get("body.0.in_conv.weight" if light else "conv_in.weight", ())
    if any(len(shape) != 1 for shape in (*seen, *widths)) or len(first) < 2 or first[1] % FACTOR**2:
        raise ConfigError("its tensors do not say how wide the levels of this T2I-Adapter are")
    return T2IConfig(
        hint_channels=first[1] // FACTOR**2,
        channels=tuple(shape[0] for shape in seen),
        num_res_blocks=each,
        widths=tuple(shape[0] for shape in widths),
        keeps_rest=layout == "diffusers",
    )
