"""Safety checkers from diffusers' folders, or from a file of their own."""

import re

import numpy as np
from numpy.typing import DTypeLike

from sdjax.config import ConfigError, VisionConfig
from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import float_type
from sdjax.convert.describe.vision_config import vision_from_transformers
from sdjax.convert.parts.networks import network_params, prefix_of
from sdjax.nn.networks import NETWORKS
from sdjax.typing import Params

_FLAT = re.compile(r"^vision_model\.(?!vision_model\.)")  # transformers has one level less from 5.0 on
_UNUSED = r"vision_model\.vision_model\.embeddings\.position_ids"


def load_safety_checker(source: CheckpointLike, dtype: DTypeLike | None = None) -> tuple[VisionConfig, Params]:
    """Returns a safety checker, description of its image tower and parameters.

    `source` is a pipeline's folder, its safety_checker folder, or a file of its tensors. A file without a config.json
    beside it is of the released size, CLIP ViT-L/14. Raises CheckpointError as `load`, ValueError for an unknown dtype.
    """
    kind, checkpoint = float_type(dtype), open_checkpoint(source)
    prefix = prefix_of(checkpoint, ("safety_checker/", "concept_embeds"), ("", "concept_embeds"))
    if prefix is None:
        raise checkpoint.error("it holds no safety checker: none of its tensors is named concept_embeds")
    name = f"{prefix}config.json"
    file = checkpoint.files.get(name)
    try:
        config = VisionConfig() if file is None else vision_from_transformers(file, name)
    except ConfigError as error:
        raise checkpoint.error(str(error)) from error
    return config, safety_params(checkpoint, config, prefix, kind)


def safety_params(
    source: Checkpoint | CheckpointLike, config: VisionConfig, prefix: str = "", dtype: np.dtype | None = None
) -> Params:
    """Returns the parameters of a safety checker of this size from the tensors that begin with `prefix`.

    Raises CheckpointError.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    shapes = NETWORKS["safety"].shapes(config)
    canonical = lambda name: _FLAT.sub("vision_model.vision_model.", name)  # noqa: E731
    return network_params(
        checkpoint, shapes, prefix, "a safety checker", dtype=dtype, canonical=canonical, unused=_UNUSED
    )
