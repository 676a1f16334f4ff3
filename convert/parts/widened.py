"""Reads differences to a UNet whose first convolution takes further channels, such as IC-Light's files.

The weights of the further channels are added to zeros. Source: lllyasviel/IC-Light, gradio_demo.py and
gradio_demo_bg.py.
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
from sdjax.convert.parts.from_unet import total
from sdjax.convert.parts.lone import leaves_in, read_whole
from sdjax.typing import Params

# Where the first convolution lies: its name, what stands before all names in the file, and in the layout's table
_UNET = naming.LDM_PREFIXES["unet"]
_PLACES: tuple[tuple[Layout, str, str, str], ...] = (
    ("diffusers", "conv_in.weight", "", "unet/"),
    ("diffusers", "unet/conv_in.weight", "unet/", "unet/"),
    ("ldm", f"{_UNET}input_blocks.0.0.weight", _UNET, _UNET),
    ("ldm", "input_blocks.0.0.weight", "", _UNET),
    ("ldm", "diffusion_model.input_blocks.0.0.weight", "diffusion_model.", _UNET),
)
# What the further channels are, by their number in latents, and the guidance scale of IC-Light's two demos
_BESIDE: dict[int, tuple[str, float]] = {1: ("foreground", 2.0), 2: ("foreground+background", 7.0)}


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedWidened:
    """A model whose UNet takes further channels: its description, its parameters, and the file's name."""

    config: ModelConfig
    params: Params
    name: str = "difference"


@dataclasses.dataclass(frozen=True, eq=False)
class FoundWidened:
    """Differences in a file, not read: the description of the model that they make, and the changes by path."""

    config: ModelConfig
    leaves: Mapping[str, LazyTensor]
    name: str

    def added(self, params: Params, dtype: DTypeLike | None = None) -> LoadedWidened:
        """Returns the model made of a model's parameters. See `load_widened`."""
        kind = float_type(dtype)
        whole = {path: _added(path, leaf, params, kind) for path, leaf in self.leaves.items()}
        return LoadedWidened(self.config, {**params, "unet": read_whole(whole, kind, "unet")}, self.name)


def load_widened(
    source: CheckpointLike, model: ModelConfig, params: Params, *, dtype: DTypeLike | None = None
) -> LoadedWidened:
    """Returns a model with the differences in a file added to its UNet, whose first convolution they widen.

    As many further channels as those of one or two latents are IC-Light's (`ModelConfig.beside`). Sums are float32 and
    rounded once, to `dtype` or to the types of `params`, which stay as they are. Raises CheckpointError, naming every
    tensor that is missing, unknown or of another shape.
    """
    return find_widened(source, model).added(params, dtype)


def find_widened(source: CheckpointLike, model: ModelConfig) -> FoundWidened:
    """Returns the differences in a file without reading its numbers. Raises CheckpointError."""
    checkpoint = open_checkpoint(source)
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
    leaves = leaves_in(checkpoint, named, part_table("unet", unet, layout), what, None, complete=True)
    more, rest = divmod(shape[1] - model.vae.latent_channels, model.vae.latent_channels)
    beside, scale = _BESIDE.get(more if rest == 0 else 0, (None, model.guidance_scale))
    config = dataclasses.replace(model, unet=unet, beside=beside, guidance_scale=scale)
    return FoundWidened(config, leaves, "difference" if checkpoint.path is None else checkpoint.path.stem)


def _added(path: str, change: LazyTensor, params: Params, dtype: np.dtype | None) -> LazyTensor:
    """Returns a parameter with its change added."""
    leaf: Params | np.ndarray = params
    for name in path.split("/"):
        assert isinstance(leaf, Mapping)
        leaf = leaf[name]
    base = np.asarray(leaf)
    return total(change.name, change.shape, lambda: base, change.read).cast(dtype or base.dtype)
