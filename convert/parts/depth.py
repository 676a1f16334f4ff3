"""Reads a depth network from a separate file."""

import numpy as np
from numpy.typing import DTypeLike

from sdjax.config import DepthConfig
from sdjax.convert.checkpoint import CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import LazyTensor, float_type
from sdjax.convert.describe.dpt_config import depth_from_transformers
from sdjax.convert.parts.lone import part_leaves, place_of, read_whole
from sdjax.typing import Params


def load_depth(source: CheckpointLike, dtype: DTypeLike | None = None) -> tuple[DepthConfig, Params]:
    """Returns a depth network alone, description and parameters, from any file or folder that holds one.

    Raises CheckpointError as `load`, ValueError for an unknown dtype.
    """
    kind = float_type(dtype)
    config, leaves = depth_network(source, kind)
    return config, read_whole(leaves, kind, "depth")


def depth_network(source: CheckpointLike, dtype: np.dtype | None) -> tuple[DepthConfig, dict[str, LazyTensor]]:
    """Returns the depth network of a file or folder: from a whole model of any layout, or one stored alone.

    Alone are MiDaS's own dpt_hybrid file and a folder of transformers' DPTForDepthEstimation. Raises CheckpointError.
    """
    checkpoint = open_checkpoint(source)
    place = place_of(checkpoint, "depth")
    config: DepthConfig | None = DepthConfig()
    if place.layout == "native" and checkpoint.native:
        config = checkpoint.native_config().depth
    elif place.layout == "diffusers":
        file = "config.json" if place.before else "depth_estimator/config.json"
        config = depth_from_transformers(checkpoint.configs.get(file, {}))
    if config is None:
        raise checkpoint.error("it was given for its depth network, which is not DPT-Hybrid, the one that sdjax has")
    return config, part_leaves(checkpoint, place, "depth", config, dtype)
