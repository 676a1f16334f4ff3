"""Reads one part of a model from any file: from a whole model in any layout, or a part stored alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdjax.convert.checkpoint import Checkpoint
from sdjax.convert.containers.casting import Loss, better_type, losses_in_words
from sdjax.convert.containers.lazy import LazyTensor, read_tree
from sdjax.convert.describe.other_kinds import kind_of_folder, kind_of_tensors
from sdjax.convert.errors import CheckpointError, printable
from sdjax.convert.names import naming
from sdjax.convert.names.matching import match, refuse
from sdjax.convert.names.naming import Layout
from sdjax.convert.names.tables import PARTS, Table, part_table
from sdjax.typing import Params


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a part's tensors may lie: how their names begin, and what the layout's table has before these names.

    `shown_by` are the beginnings that tell that the part is there, `begins` those of all of its tensors.
    """

    layout: Layout
    begins: tuple[str, ...]
    before: str = ""
    shown_by: tuple[str, ...] = ()


_AUTOENCODER = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_LDM = naming.LDM_PREFIXES
PLACES: Mapping[str, tuple[Place, ...]] = {
    "vae": (
        Place("ldm", (_LDM["vae"],)),
        Place("ldm", _AUTOENCODER, _LDM["vae"], ("encoder.down.", "decoder.up.")),
        Place("diffusers", _AUTOENCODER, "vae/", ("encoder.down_blocks.", "decoder.up_blocks.")),
        Place("native", ("vae/",), shown_by=("vae/encoder/",)),
        Place("diffusers", ("vae/",)),
    ),
    "depth": (
        Place("native", ("depth/",)),
        Place("ldm", (_LDM["depth"],)),
        Place("ldm", ("pretrained.", "scratch."), _LDM["depth"]),
        Place("diffusers", ("depth_estimator/",)),
        Place("diffusers", ("dpt.", "neck.", "head."), "depth_estimator/"),
    ),
    "vision": (
        Place("native", ("vision/",)),
        Place("ldm", (f"{_LDM['vision']}visual.",)),
        Place("ldm", ("visual.",), _LDM["vision"]),
        Place("diffusers", ("image_encoder/",)),
        Place("diffusers", ("vision_model.", "visual_projection."), "image_encoder/"),
    ),
}
_LAYOUTS = {"vae": "ldm's or diffusers'", "depth": "MiDaS's or transformers'", "vision": "OpenCLIP's or transformers'"}


def place_of(checkpoint: Checkpoint, part: str) -> Place:
    """Returns the place of a part in a checkpoint. Raises CheckpointError, naming the file's kind, if it has none."""
    for place in PLACES[part]:
        if any(name.startswith(place.shown_by or place.begins) for name in checkpoint.tensors):
            return place
    kind = kind_of_folder(checkpoint.configs) or kind_of_tensors(checkpoint.shapes)
    known = "" if kind is None else f" (it is {kind.what})"
    raise checkpoint.error(
        f"it was given for its {PARTS[part]}, and holds none in {_LAYOUTS[part]} layout{known}: name a file or folder "
        "with one"
    )


def part_leaves(
    checkpoint: Checkpoint, place: Place, part: str, description: Any, dtype: np.dtype | None
) -> dict[str, LazyTensor]:
    """Returns the parameters of a part by path. Raises CheckpointError unless all that is described is there."""
    tensors = {
        place.before + name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(place.begins)
    }
    what = f"the {PARTS[part]} that is described"
    return leaves_in(checkpoint, tensors, part_table(part, description, place.layout), what, dtype)


def leaves_in(
    checkpoint: Checkpoint, tensors: Mapping[str, LazyTensor], table: Table, what: str, dtype: np.dtype | None, *,
    complete: bool = False,
) -> dict[str, LazyTensor]:  # fmt: skip
    """Returns a network's parameters by path out of some of a checkpoint's tensors.

    Raises CheckpointError, naming every difference, unless all of the table is there. `complete` says that the table
    has all tensors of such a file: unknown ones are differences too.
    """
    found = match(tensors, table)
    if complete and not found.problems:
        unknown = (f"{printable(name)} {list(tensors[name].shape)} is unknown" for name in found.unknown)
        found = dataclasses.replace(found, problems=tuple(unknown))
    refuse(found, what, checkpoint.error)
    return found.leaves(tensors, dtype)


def read_whole(leaves: Mapping[str, LazyTensor], dtype: np.dtype | None, part: str) -> Params:
    """Returns a network's parameters as a tree, read. Raises CheckpointError if the type cannot hold their numbers."""
    losses: dict[str, Loss] = {}
    tree = read_tree(leaves, losses)
    if losses and dtype is not None:
        raise CheckpointError(f"{losses_in_words(losses, dtype.name)}; {better_type(dtype.name)}")
    return tree[part]
