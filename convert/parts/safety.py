"""Safety checkers from diffusers' folders, or from a file of their own."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import ConfigError, VisionConfig
from sdjax.convert.describe.vision_config import vision_from_transformers
from sdjax.convert.parts.networks import file_of, network_params, place_of
from sdjax.convert.sources import Source, open_source
from sdjax.nn.safety import SafetyChecker

_FLAT = re.compile(r"^vision_model\.(?!vision_model\.)")  # transformers has one level less from 5.0 on
_UNUSED = re.compile(r"vision_model\.vision_model\.embeddings\.position_ids")


def safety_checker(source: Any, kind: np.dtype | None) -> tuple[VisionConfig, dict[str, Any]]:
    """Returns the safety checker of a pipeline's folder, of its safety_checker folder, or of a file of its tensors.

    A file without a config.json beside it is of the released size, CLIP ViT-L/14. Raises CheckpointError.
    """
    source = open_source(source)
    prefix = place_of(source, ("safety_checker/", "concept_embeds"), ("", "concept_embeds"))
    if prefix is None:
        raise source.error("it holds no safety checker: none of its tensors is named concept_embeds")
    name = f"{prefix}config.json"
    file = file_of(source, name)
    try:
        config = VisionConfig() if file is None else vision_from_transformers(file, name)
    except ConfigError as error:
        raise source.error(str(error)) from error
    return config, safety_params(source, config, prefix, kind)


def safety_params(source: Any, config: VisionConfig, prefix: str = "", kind: np.dtype | None = None) -> dict[str, Any]:
    """Returns the parameters of a safety checker of this size from the tensors that begin with `prefix`.

    Raises CheckpointError.
    """
    source = source if isinstance(source, Source) else open_source(source)
    pixels = jnp.zeros([1, config.image_size, config.image_size, 3])
    shapes = jax.eval_shape(lambda: SafetyChecker(config).init(jax.random.key(0), pixels))["params"]
    canonical = lambda name: _FLAT.sub("vision_model.vision_model.", name)  # noqa: E731
    return network_params(source, shapes, prefix, "a safety checker", kind=kind, canonical=canonical, unused=_UNUSED)
