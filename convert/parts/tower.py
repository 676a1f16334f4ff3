"""Reads an image tower from a separate file."""

import dataclasses
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from sdjax.config import VisionConfig
from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import LazyTensor, float_type
from sdjax.convert.describe.vision_config import vision_from_transformers
from sdjax.convert.parts.lone import Place, part_leaves, place_of, read_whole
from sdjax.typing import Params

RELEASED = (  # CLIP ViT-L/14, ViT-H/14 and ViT-bigG/14: known by width, blocks and patches
    VisionConfig(),
    VisionConfig(width=1280, layers=32, heads=16, projection=1024, activation="gelu"),
    VisionConfig(width=1664, layers=48, heads=16, projection=1280, activation="gelu", mlp_width=8192),
)


def load_vision(
    source: CheckpointLike, config: VisionConfig | None = None, dtype: DTypeLike | None = None
) -> tuple[VisionConfig, Params]:
    """Returns a CLIP image tower alone, description and parameters, from any file or folder that holds one.

    `config` is needed only if nothing beside the tower describes it and it is no released one (`RELEASED`). Raises
    CheckpointError as `load`, ValueError for an unknown dtype.
    """
    kind = float_type(dtype)
    config, leaves = image_tower(source, kind, config)
    return config, read_whole(leaves, kind, "vision")


def image_tower(
    source: CheckpointLike, dtype: np.dtype | None, config: VisionConfig | None = None
) -> tuple[VisionConfig, dict[str, LazyTensor]]:
    """Returns the image tower of a file or folder: from a whole model of any layout, or one stored alone.

    Alone are OpenAI's and OpenCLIP's own files and transformers' folders of a CLIPVisionModelWithProjection or
    CLIPModel. `config` describes it where no JSON file does. Raises CheckpointError.
    """
    checkpoint = open_checkpoint(source)
    place = place_of(checkpoint, "vision")
    if config is None:
        config = _described(checkpoint, place)
    return config, part_leaves(checkpoint, place, "vision", config, dtype)


def _described(checkpoint: Checkpoint, place: Place) -> VisionConfig:
    file = "config.json" if place.before else "image_encoder/config.json"
    if place.layout == "diffusers" and file in checkpoint.configs:
        return vision_from_transformers(checkpoint.configs[file], file)
    if place.layout == "native" and checkpoint.native:
        own = checkpoint.native_config().vision
        if own is not None:
            return own
    names = _NAMES["clip" if place.layout == "ldm" else "transformers"]
    patches = next((s for name, s in checkpoint.shapes.items() if name.endswith(names.patches)), ())
    places = next((s for name, s in checkpoint.shapes.items() if name.endswith(names.positions)), ())
    layers = {found[1] for found in map(names.layer.search, checkpoint.shapes) if found}
    for one in RELEASED:
        if (one.width, one.patch_size) == patches[:1] + patches[3:] and one.layers == len(layers):
            side = one.patch_size * round(max(places[0] - 1, 0) ** 0.5) if places else one.image_size
            return dataclasses.replace(one, image_size=side)
    raise checkpoint.error("nothing beside its image tower says how it is built; give its description by config=")


class _Names(NamedTuple):
    """What ends the names of the patches' kernel and of the positions, and what finds the number of a block."""

    patches: str
    positions: str
    layer: re.Pattern[str]


_NAMES = {
    "clip": _Names("visual.conv1.weight", "visual.positional_embedding", re.compile(r"visual.*resblocks\.(\d+)\.")),
    "transformers": _Names(
        "embeddings.patch_embedding.weight", "vision_model.embeddings.position_embedding.weight",
        re.compile(r"vision_model\.encoder\.layers\.(\d+)\."),
    ),
}  # fmt: skip
