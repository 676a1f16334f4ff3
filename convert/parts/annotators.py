"""Annotators from their released files: the networks that find edges, depth, lines and poses for hints."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.errors import listed, printable
from sdjax.convert.names.naming import torch_name
from sdjax.convert.names.tables import parameters_of
from sdjax.convert.parts.depth import load_depth
from sdjax.convert.parts.lone import PLACES
from sdjax.convert.parts.networks import network_params
from sdjax.nn.annotators.hed import HEDConfig
from sdjax.nn.annotators.lineart import LineartConfig
from sdjax.nn.annotators.pose import PoseConfig
from sdjax.nn.networks import NETWORKS
from sdjax.preprocessors import ANNOTATORS
from sdjax.typing import Params

Shapes = Mapping[str, tuple[int, ...]]
FACE = 71  # maps of facenet.pth: 70 points and the background. hand_pose_model.pth has 22
_MODULES = re.compile(r"^model\d(_\d)?\.(?=M?conv)")  # before OpenPose's names, where its PyTorch modules were saved


@dataclasses.dataclass(frozen=True)
class LoadedAnnotator:
    """A network of `sdjax.preprocessors.ANNOTATORS`: its kind there, its description and its parameters."""

    kind: str
    config: Any
    params: Params


def load_annotator(source: CheckpointLike) -> LoadedAnnotator:
    """Returns an annotator, float32, from its released file; its kind is found from the names of the tensors.

    These are ControlNetHED.pth, body_pose_model.pth, hand_pose_model.pth, facenet.pth, sk_model.pth and sk_model2.pth,
    also as .safetensors, and any file that `load_depth` reads. Raises CheckpointError, naming every missing, unknown
    and misshapen tensor, for anything else.
    """
    checkpoint = open_checkpoint(source)
    names = {_MODULES.sub("", name): name for name in checkpoint.tensors}
    shapes = {short: checkpoint.tensors[name].shape for short, name in names.items()}
    for sign, network, describe in _NETWORKS:
        if sign in shapes:
            config, kind = describe(shapes)
            return LoadedAnnotator(kind, config, _params(checkpoint, network, config, kind))
    if any(name.startswith(place.begins) for name in checkpoint.tensors for place in PLACES["depth"]):
        config, params = load_depth(source, "float32")
        return LoadedAnnotator("depth", config, params)
    known = "; ".join(f"{what} ({files})" for what, files in ANNOTATORS.values())
    raise checkpoint.error(f"it holds no annotator that sdjax has. These are {known}")


def _params(checkpoint: Checkpoint, network: str, config: Any, kind: str) -> Params:
    """Returns the parameters. Raises CheckpointError, also for tensors that the network does not have."""

    def canonical(name: str) -> str:
        return _MODULES.sub("", name)

    shapes = NETWORKS[network].shapes(config)
    what = f"{ANNOTATORS[kind][0]} that is described"
    params = network_params(checkpoint, shapes, "", what, dtype=np.dtype("float32"), canonical=canonical)
    known = {torch_name(parameter.path.partition("/")[2]) for parameter in parameters_of("network", shapes)}
    unknown = [f"{printable(name)} is unknown" for name in checkpoint.tensors if canonical(name) not in known]
    if unknown:
        raise checkpoint.error(f"it holds more than {ANNOTATORS[kind][0]}: {listed(unknown)}")
    return params


def _first(shapes: Shapes, name: str, axis: int = 0) -> int:
    """Returns the length of a tensor's axis, 1 if it has none: the table of shapes refuses the file then."""
    shape = shapes.get(name, ())
    return max(shape[axis], 1) if len(shape) > axis else 1


def _hed(shapes: Shapes) -> tuple[HEDConfig, str]:
    return HEDConfig(tuple(_first(shapes, f"block{i}.convs.0.weight") for i in range(1, 6))), "hed"


def _lineart(shapes: Shapes) -> tuple[LineartConfig, str]:
    blocks = {match[1] for name in shapes if (match := re.match(r"model2\.(\d{1,2})\.conv_block\.", name))}
    return LineartConfig(_first(shapes, "model0.1.weight"), len(blocks)), "lineart"


def _pose(shapes: Shapes, *, endings: tuple[str, ...], hidden: str) -> tuple[PoseConfig, str]:
    maps = tuple(_first(shapes, f"Mconv7_stage6{ending}.weight") for ending in endings)
    widths = tuple(_first(shapes, f"conv{level}_1.weight") for level in range(1, 5))
    features = _first(shapes, f"Mconv1_stage2{endings[0]}.weight")
    kind = "body" if len(maps) == 2 else "face" if maps == (FACE,) else "hand"
    return PoseConfig(maps, widths, features, _first(shapes, f"{hidden}.weight")), kind


def _body(shapes: Shapes) -> tuple[PoseConfig, str]:
    return _pose(shapes, endings=("_L1", "_L2"), hidden="conv5_4_CPM_L1")


def _hand_or_face(shapes: Shapes) -> tuple[PoseConfig, str]:
    return _pose(shapes, endings=("",), hidden="conv6_1_CPM")


# A tensor that shows each network, the network's name in sdjax.nn.parts, and what describes it from all shapes
_NETWORKS: tuple[tuple[str, str, Callable[[Shapes], tuple[Any, str]]], ...] = (
    ("block1.convs.0.weight", "hed", _hed),
    ("model0.1.weight", "lineart", _lineart),
    ("Mconv1_stage2_L1.weight", "pose", _body),
    ("Mconv1_stage2.weight", "pose", _hand_or_face),
)
