"""Reads detectors of YOLOv8's family: weights alone, or the whole pickled modules that are given out."""

import dataclasses
import os
import re
from typing import Any

import jax.numpy as jnp

from sdjax.convert.checkpoint import Checkpoint, open_checkpoint
from sdjax.convert.containers.local_models import local_path
from sdjax.convert.containers.pickled_modules import read_modules
from sdjax.convert.errors import CheckpointError
from sdjax.convert.parts.networks import network_params, prefix_of
from sdjax.nn.detector import DetectorConfig
from sdjax.nn.networks import NETWORKS
from sdjax.typing import Params

_STAGES = (2, 4, 6, 8, 12, 15, 18, 21)  # the numbers of the layers with repeated blocks
_UNUSED = r"22\.(dfl|cv4|proto)\..+|.+\.num_batches_tracked"  # constants; the masks of -seg models, key points of -pose
MAX_REPEATS, MAX_CLASSES = 64, 10_000


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedDetector:
    """A detector: its description, its parameters, and the file's name."""

    config: DetectorConfig
    params: Params
    name: str


def load_detector(path: str | os.PathLike[str]) -> LoadedDetector:
    """Returns the detector in a file: YOLOv8, YOLOv8-seg or YOLOv8-pose of any size, .pt or .safetensors.

    A `.pt` may hold the module as a whole, as ultralytics writes it. It is read as data, and nothing in it is run.
    Raises CheckpointError for other files, naming missing, unknown and misshapen tensors.
    """
    place = local_path(path)
    try:
        checkpoint = open_checkpoint(place)
    except CheckpointError as error:
        if "ultralytics" not in str(error) and "YOLO" not in str(error):
            raise
        checkpoint = open_checkpoint(read_modules(place))
    prefix = prefix_of(checkpoint, *((p, "22.cv3.0.2.weight") for p in ("model.", "model.model.", "")))
    if prefix is None:
        raise checkpoint.error(
            "it holds no detector of YOLOv8's family (no tensor is named model.22.cv3.0.2.weight): name such a file, "
            "as face_yolov8n.pt, or give boxes or masks"
        )
    config = _described(checkpoint, prefix)
    params = network_params(
        checkpoint, NETWORKS["detector"].shapes(config), prefix, "a detector of YOLOv8's family",
        dtype=jnp.dtype("float32"), unused=_UNUSED,
    )  # fmt: skip
    return LoadedDetector(config, params, place.name)


def _described(checkpoint: Checkpoint, prefix: str) -> DetectorConfig:
    """Returns the description that the tensors' shapes give."""
    shapes = {name.removeprefix(prefix): one.shape for name, one in checkpoint.tensors.items()}

    def outputs(name: str) -> int:
        shape = shapes.get(name, ())
        if len(shape) != 4 or not 1 <= shape[0] <= MAX_CLASSES:
            raise checkpoint.error(f"its tensor {prefix}{name} is missing or no kernel of a convolution")
        return shape[0]

    widths = tuple(outputs(f"{i}.conv.weight") for i in (0, 1, 3, 5, 7))
    head = tuple(outputs(f"{i}.cv2.conv.weight") for i in _STAGES[4:])
    repeats = []
    for stage in _STAGES:
        found = [re.match(rf"{stage}\.m\.(\d{{1,3}})\.", name) for name in shapes]
        repeats.append(min(MAX_REPEATS, 1 + max((int(one[1]) for one in found if one), default=-1)))
    sizes: Any = widths, head, tuple(repeats), outputs("22.cv3.0.2.weight")
    return DetectorConfig(*sizes)
