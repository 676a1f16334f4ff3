"""What users give as motion modules: a file, or a `MotionUse` with LoRAs and the division into windows."""

import dataclasses
import os
from collections.abc import Sequence
from typing import TypeAlias

import jax

from sdjax.checks.arguments import flag, is_sequence, number, shown, whole
from sdjax.checks.notes import note
from sdjax.config import ModelConfig
from sdjax.convert import LoadedMotion, LoadedMotionLora, load_motion, load_motion_lora, with_motion_loras
from sdjax.pipeline.model import Pipeline
from sdjax.tasks.adapters import split_weights
from sdjax.tasks.extra_files import read_once
from sdjax.typing import Params

WINDOW, OVERLAP = 16, 4  # frames: what the released modules were trained with, and what other tools share

MotionLoraLike: TypeAlias = LoadedMotionLora | str | os.PathLike[str] | tuple[LoadedMotionLora | str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class MotionUse:
    """Motion modules, a file or what `sdjax.convert.load_motion` returns, and how a clip is made with them.

    `loras` are motion LoRAs, "FILE" or "FILE:WEIGHT", loaded ones, or pairs of one of these and a weight. The modules
    see `frame_window` frames at a time. A longer clip has several windows, whose neighbours share at least
    `frame_overlap` frames.
    With `free_noise`, the frames behind the first window get the first frames' noise in another order, so that a long
    clip stays alike (Qiu et al. 2023, arXiv 2310.15169).

    Raises ValueError for values out of range.
    """

    motion: LoadedMotion | str | os.PathLike[str]
    loras: Sequence[MotionLoraLike] = ()
    frame_window: int = WINDOW
    frame_overlap: int = OVERLAP
    free_noise: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.motion, LoadedMotion | str | os.PathLike):
            raise ValueError(f"motion is a file or what load_motion returns; got {shown(self.motion)}")
        if not is_sequence(self.loras):
            raise ValueError(f"the LoRAs of motion modules are a list; got {shown(self.loras)}")
        window = whole("frame_window", self.frame_window, 1)
        whole("frame_overlap", self.frame_overlap, 0, window - 1, context=", less than frame_window")
        flag("free_noise", self.free_noise)

    @property
    def loaded(self) -> LoadedMotion:
        """The motion modules. Raises TypeError before they are read."""
        if not isinstance(self.motion, LoadedMotion):
            raise TypeError(f"the motion modules {shown(self.motion)} are not read yet")
        return self.motion


MotionLike: TypeAlias = MotionUse | LoadedMotion | str | os.PathLike[str]


def read_motion(given: MotionLike, pipe: Pipeline) -> MotionUse:
    """Returns motion modules for a model, read, with their LoRAs merged in, in the type that the model computes in.

    Raises ValueError for anything else and for a window that is too long for the modules, and
    `sdjax.convert.CheckpointError` for files that cannot be used.
    """
    use = given if isinstance(given, MotionUse) else MotionUse(given)
    motion = use.motion if isinstance(use.motion, LoadedMotion) else read_file(os.fspath(use.motion), pipe.config)
    reason = motion.config.misfit(pipe.config.unet)
    if reason is not None:
        raise ValueError(f"the motion modules {motion.name} do not fit this model: {reason}")
    if use.frame_window > motion.config.positions:
        raise ValueError(
            f"frame_window is at most {motion.config.positions} for these motion modules, {motion.config.version}; got "
            f"{use.frame_window}"
        )
    for notice in motion.notices:
        note(notice)
    motion = with_motion_loras(motion, [_read_lora(one) for one in use.loras])
    params: Params = jax.tree.map(lambda leaf: leaf.astype(pipe.dtype), motion.params)
    return dataclasses.replace(use, motion=dataclasses.replace(motion, params=params), loras=())


def _read_lora(given: MotionLoraLike) -> tuple[LoadedMotionLora, float]:
    what, weight = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if weight is None and isinstance(what, str | os.PathLike):
        what, weights = split_weights(os.fspath(what))
        if weights.text is not None:
            raise ValueError(f"a motion LoRA is FILE or FILE:WEIGHT; got {shown(given)}")
        weight = weights.unet
    weight = number("a motion LoRA's weight", 1.0 if weight is None else weight)
    if isinstance(what, str | os.PathLike):
        what = read_lora_file(os.fspath(what))
    if not isinstance(what, LoadedMotionLora):
        raise ValueError(f"a motion LoRA is FILE, FILE:WEIGHT or what load_motion_lora returns; got {shown(given)}")
    return what, weight


@read_once(1)
def read_file(path: str, config: ModelConfig) -> LoadedMotion:
    """Returns the motion modules in a file. It is read once as long as it does not change."""
    return load_motion(path, config.unet)


@read_once(8)
def read_lora_file(path: str) -> LoadedMotionLora:
    """Returns the motion LoRA in a file. It is read once as long as it does not change."""
    return load_motion_lora(path)
