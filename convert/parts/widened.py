"""Reads differences to a UNet whose first convolution takes further channels, such as IC-Light's files.

The weights of the further channels are added to zeros. Source: lllyasviel/IC-Light, gradio_demo.py.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike

from sdjax.config import ModelConfig
from sdjax.convert.checkpoint import CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import LazyTensor, float_type
from sdjax.convert.describe.other_kinds import kind_of_folder, kind_of_tensors
from sdjax.convert.names import naming
from sdjax.convert.names.naming import Layout
from sdjax.convert.names.tables import part_table
from sdjax.convert.parts.lone import leaves_in, read_whole
from sdjax.typing import Params

_FIRST = "conv_in/kernel"
# Where the first convolution lies: its name, what stands before all names in the file, and in the layout's table
_UNET = naming.LDM_PREFIXES["unet"]
_PLACES: tuple[tuple[Layout, str, str, str], ...] = (
    ("diffusers", "conv_in.weight", "", "unet/"),
    ("diffusers", "unet/conv_in.weight", "unet/", "unet/"),
    ("ldm", f"{_UNET}input_blocks.0.0.weight", _UNET, _UNET),
    ("ldm", "input_blocks.0.0.weight", "", _UNET),
)


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedWidened:
    """A model whose UNet takes further channels: its description, its parameters, and the file's name."""

    config: ModelConfig
    params: Params
    name: str = "difference"


def load_widened(
    source: CheckpointLike, model: ModelConfig, params: Params, *, dtype: DTypeLike | None = None
) -> LoadedWidened:
    """Returns a model with the differences in a file added to its UNet, whose first convolution they widen.

    Sums are float32 and rounded once, to `dtype` or to the types of `params`, which stay as they are. Raises
    CheckpointError, naming every tensor that is missing, unknown or of another shape.
    """
    kind, checkpoint = float_type(dtype), open_checkpoint(source)
    tensors = {tensor.name: tensor for tensor in checkpoint.tensors.values()}
    place = next((place for place in _PLACES if place[1] in tensors), None)
    shape = () if place is None else tensors[place[1]].shape
    if place is None or len(shape) != 4 or shape[1] <= model.unet.in_channels:
        found = kind_of_folder(checkpoint.configs) or kind_of_tensors(checkpoint.shapes)
        known = "" if found is None else f" (it is {found.what})"
        raise checkpoint.error(
            f"it was given for differences to a UNet of {model.unet.in_channels} channels, and holds none with a first "
            f"convolution of more channels{known}"
        )
    layout, _, before, begins = place
    unet = dataclasses.replace(model.unet, in_channels=shape[1])
    named = {begins + name.removeprefix(before): tensor for name, tensor in tensors.items()}
    what = f"differences to the UNet of {model.name}, with {shape[1]} channels"
    table = part_table("unet", unet, layout)
    leaves = leaves_in(checkpoint, named, table, what, None, complete=True)
    whole = {path: _added(path, leaf, params, kind) for path, leaf in leaves.items()}
    changed = {**params, "unet": read_whole(whole, kind, "unet")}
    name = "difference" if checkpoint.path is None else checkpoint.path.stem
    return LoadedWidened(dataclasses.replace(model, unet=unet), changed, name)


def _added(path: str, change: LazyTensor, params: Params, dtype: np.dtype | None) -> LazyTensor:
    """Returns a parameter with its change added; the first convolution's with zeros for its further channels."""
    leaf: Params | np.ndarray = params
    for name in path.split("/"):
        assert isinstance(leaf, Mapping)
        leaf = leaf[name]
    base = np.asarray(leaf)

    def read() -> np.ndarray:
        total = change.read().astype(np.float32)
        if path.endswith(_FIRST):
            total[:, :, : base.shape[2]] += base.astype(np.float32)
        else:
            total += base.astype(np.float32)
        return total

    return LazyTensor(change.shape, np.dtype(np.float32), read, name=change.name).cast(dtype or base.dtype)
