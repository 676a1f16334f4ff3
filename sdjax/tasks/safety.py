"""The safety checker: it flags pictures, gives their scores, and replaces flagged pictures by a notice.

It is off by default. Source: CompVis/stable-diffusion, scripts/txt2img.py (check_safety).
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import DTypeLike

from sdjax import pictures
from sdjax.checks.arguments import dtype_name
from sdjax.checks.hints import Explained, explains_arguments
from sdjax.config import VisionConfig
from sdjax.nn import safety
from sdjax.nn.jax_settings import pinned
from sdjax.pictures import preprocess
from sdjax.pipeline import placement
from sdjax.pipeline.model import cast, summary
from sdjax.typing import Image, Params, Pixels

FOLDER = "safety_checker"  # its folder inside a diffusers folder

Picture = UInt8[np.ndarray, "_ _ 3"]


class Verdict(NamedTuple):
    """The flags of pictures, and their scores. A score above 0 is above the threshold of its concept."""

    flags: Bool[np.ndarray, "b"]
    concepts: Float[np.ndarray, "b 17"]
    special: Float[np.ndarray, "b 3"]


@functools.partial(jax.jit, static_argnums=0)
def _score(static: tuple[VisionConfig, str], params: Params, pixels: Image) -> safety.Scores:
    config, dtype = static
    scores: Any = safety.SafetyScorer(config, jnp.dtype(dtype)).apply({"params": params}, pixels)
    return scores


@dataclasses.dataclass(frozen=True, eq=False)
class SafetyChecker(metaclass=Explained):
    """A safety checker ready to use: its image tower's description, parameters and compute dtype."""

    config: VisionConfig
    params: Params
    dtype: str = "float32"
    source: str = ""
    _placed: placement.Placed = dataclasses.field(default_factory=placement.Placed, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))

    def __repr__(self) -> str:
        return summary(self, "of pictures")

    @classmethod
    @explains_arguments(task=False)
    @pinned()
    def load(cls, path: str | os.PathLike[str], *, dtype: DTypeLike | None = None) -> "SafetyChecker":
        """Returns the safety checker of a pipeline's folder, a safety_checker folder, a file or a hub repository.

        Raises sdjax.convert.CheckpointError if there is none, ValueError for an unknown dtype.
        """
        from sdjax import convert
        from sdjax.loading.hub import resolve

        dtype = placement.default_dtype() if dtype is None else dtype_name(dtype)
        config, params = convert.load_safety_checker(resolve(path), dtype)
        return cls(config, cast(params, dtype), dtype, str(path))

    @pinned()
    def check(self, given: Pixels | Sequence[Picture]) -> Verdict:
        """Returns the verdict on pictures of any sizes. One compiled program handles any number of them."""
        if not len(given):
            return Verdict(np.zeros(0, bool), np.zeros((0, safety.CONCEPTS)), np.zeros((0, safety.SPECIAL)))
        pixels = preprocess.clip_pixels(given, self.config.image_size, dialect="huggingface")
        params = self._placed.on_default_device(self.params)
        scores = [_score((self.config, self.dtype), params, one[None]) for one in pixels]
        whole = jax.tree.map(lambda *parts: np.concatenate(parts), *scores)
        return Verdict(whole.flags, whole.concepts, whole.special)

    def censor(self, given: Pixels | Sequence[Picture]) -> tuple[list[Picture], Verdict]:
        """Returns the pictures with every flagged one replaced by a notice of its size, and the verdict."""
        verdict = self.check(given)
        shown = [pictures.notice(*one.shape[:2]) if flag else one for one, flag in zip(given, verdict.flags)]
        return shown, verdict


def beside(path: str | os.PathLike[str]) -> pathlib.Path | None:
    """Returns the safety checker's folder inside a diffusers folder, or None if there is none."""
    folder = pathlib.Path(path) / FOLDER
    return folder if folder.is_dir() else None
