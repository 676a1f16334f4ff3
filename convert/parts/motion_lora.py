"""LoRAs for motion modules, such as v2_lora_ZoomIn.ckpt: how the camera moves.

AnimateDiff's files have `...attention_blocks.0.processor.to_q_lora.down.weight` and `.up.weight`; diffusers and PEFT
write `...attn1.to_q.lora.down.weight` and `...attn1.to_q.lora_A.weight`. They have no alpha.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdjax.convert.checkpoint import CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import is_finite, is_floating
from sdjax.convert.errors import CheckpointError, listed, printable
from sdjax.convert.parts.motion import MODULE, LoadedMotion, canonical, path_of

_FACTOR = re.compile(
    r"(?P<layer>.+\.attn[12])\.(?:processor\.)?(?P<name>to_[qkv]|to_out)(?:\.0)?"
    r"(?:_lora\.|\.lora\.|\.lora_)(?P<piece>down|up|A|B)(?:\.default)?\.weight"
)


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedMotionLora:
    """A LoRA for motion modules: the factors (down, up) of each layer, by the layer's path, and the file's name."""

    factors: Mapping[str, tuple[np.ndarray, np.ndarray]]
    name: str = "motion LoRA"

    def lines(self) -> list[str]:
        """Returns its facts as lines."""
        ranks = sorted({down.shape[0] for down, _ in self.factors.values()})
        version = "v2" if any(path.startswith("mid_block/") for path in self.factors) else "v1 or v3"
        return [
            f"motion LoRA for AnimateDiff {version}",
            f"{len(self.factors)} layers, rank {' '.join(map(str, ranks))}",
        ]


def load_motion_lora(source: CheckpointLike, *, name: str = "") -> LoadedMotionLora:
    """Returns the LoRA for motion modules in a file or a mapping. Raises CheckpointError, naming what does not fit."""
    checkpoint = open_checkpoint(source)
    if not any(_FACTOR.fullmatch(canonical(key)) for key in checkpoint.tensors):
        raise checkpoint.error("it is no motion LoRA: none of its tensors is named ...processor.to_q_lora.down.weight")
    found: dict[str, dict[str, np.ndarray]] = {}
    problems = []
    for key, tensor in checkpoint.tensors.items():
        match = _FACTOR.fullmatch(canonical(key))
        if match is None or not MODULE.fullmatch(match["layer"]):
            problems.append(f"{printable(tensor.name)} is no tensor of a motion LoRA")
            continue
        array = np.array(tensor.read())
        if array.ndim != 2 or not is_floating(array.dtype) or not is_finite(array):
            problems.append(f"{printable(tensor.name)} {list(array.shape)} is no matrix of finite numbers")
            continue
        leaf = "to_out.0" if match["name"] == "to_out" else match["name"]
        piece = {"A": "down", "B": "up"}.get(match["piece"], match["piece"])
        found.setdefault(path_of(f"{match['layer']}.{leaf}"), {})[piece] = array.astype(np.float32)
    factors = {}
    for path, pieces in found.items():
        if set(pieces) != {"down", "up"} or pieces["down"].shape[0] != pieces["up"].shape[1]:
            problems.append(f"{printable(path)} needs two factors, down [r, inputs] and up [outputs, r]")
        else:
            factors[path] = pieces["down"], pieces["up"]
    if problems:
        raise checkpoint.error(f"it is no motion LoRA: {listed(problems)}")
    return LoadedMotionLora(factors, name or (checkpoint.path.stem if checkpoint.path is not None else "motion LoRA"))


def with_motion_loras(motion: LoadedMotion, loras: Sequence[tuple[LoadedMotionLora, float]]) -> LoadedMotion:
    """Returns the motion modules with LoRAs merged in, each with its weight: kernel + weight up down, in float32.

    Raises CheckpointError if a LoRA has a layer that the modules do not have, or one of another size.
    """
    params: Any = motion.params
    for lora, weight in loras:
        problems = []
        for path, (down, up) in lora.factors.items():
            kernel = _at(params, f"{path}/kernel")
            if kernel is None or kernel.shape != (down.shape[1], up.shape[0]):
                own = "no such layer" if kernel is None else f"one of {kernel.shape[0]} to {kernel.shape[1]}"
                problems.append(f"{path} takes {down.shape[1]} to {up.shape[0]}, and the modules have {own}")
                continue
            merged = np.asarray(kernel, np.float32) + np.float32(weight) * (up @ down).T
            params = _replaced(params, f"{path}/kernel".split("/"), merged.astype(kernel.dtype))
        if problems:
            raise CheckpointError(
                f"the motion LoRA {lora.name} does not fit the motion modules {motion.name}, {motion.config.version}: "
                f"{listed(problems)}"
            )
    return dataclasses.replace(motion, params=params)


def _at(tree: Any, path: str) -> Any:
    """Returns the leaf of a nested tree at a path; None if there is none."""
    found = functools.reduce(
        lambda node, part: node.get(part) if isinstance(node, Mapping) else None, path.split("/"), tree
    )
    return None if isinstance(found, Mapping) else found


def _replaced(tree: Mapping[str, Any], path: Sequence[str], leaf: np.ndarray) -> dict[str, Any]:
    """Returns the tree with the leaf at a path replaced. The other leaves are the same objects."""
    first, *rest = path
    return {**tree, first: _replaced(tree[first], rest, leaf) if rest else leaf}
