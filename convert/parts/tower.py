"""Reads an image tower from a separate file."""

import numpy as np
from numpy.typing import DTypeLike

from sdjax.config import VisionConfig
from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import LazyTensor, float_type
from sdjax.convert.describe.vision_config import vision_from_transformers
from sdjax.convert.parts.lone import Place, part_leaves, place_of, read_whole
from sdjax.typing import Params


def load_vision(
    source: CheckpointLike, config: VisionConfig | None = None, dtype: DTypeLike | None = None
) -> tuple[VisionConfig, Params]:
    """Returns a CLIP image tower alone, description and parameters, from any file or folder that holds one.

    `config` is needed where nothing beside the tower describes it: of OpenCLIP's file, say. Raises CheckpointError as
    `load`, ValueError for an unknown dtype.
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
    raise checkpoint.error("nothing beside its image tower says how it is built; give its description by config=")
