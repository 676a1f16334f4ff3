"""Finds the parts of pictures that a detector knows, such as faces."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from sdjax import pictures
from sdjax.checks.arguments import number, shown
from sdjax.convert.parts.detector import LoadedDetector, load_detector
from sdjax.nn.detector import STEP, Detector, DetectorConfig
from sdjax.tasks.extra_files import read_once
from sdjax.typing import Params

SIDE = 640  # the long side of a picture as the detector sees it
GREY = 114  # the level of the border
OVERLAP = 0.7  # boxes that share more than this of their union are one object


def find(
    detector: str | os.PathLike[str] | LoadedDetector, picture: np.ndarray, confidence: float
) -> list[Bool[np.ndarray, "h w"]]:
    """Returns the masks of the boxes that a detector finds in a picture, uint8 [h, w, 3], the surest first.

    Raises ValueError for a confidence outside of 0 to 1, CheckpointError for a file that holds no detector.
    """
    confidence = number("confidence", confidence, 0, 1)
    if isinstance(detector, str | os.PathLike):
        detector = _read(os.fspath(detector))
    if not isinstance(detector, LoadedDetector):
        raise ValueError(f"a detector is a file or what load_detector returns; got {shown(detector)}")
    height, width = picture.shape[:2]
    masks = []
    for box in boxes_of(detector, picture, confidence):
        left, top = np.floor(box[:2]).astype(int)
        right, bottom = np.ceil(box[2:]).astype(int)
        mask = np.zeros((height, width), bool)
        mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
        if mask.any():
            masks.append(mask)
    return masks


def boxes_of(detector: LoadedDetector, picture: np.ndarray, confidence: float) -> Float[np.ndarray, "n 4"]:
    """Returns the boxes (left, top, right, bottom), in pixels of the picture, the surest first.

    The picture's long side becomes 640 pixels, and a grey border makes both sides multiples of 32. Of boxes that share
    more than 0.7 of their union only the surest is kept. Source: ultralytics/data/augment.py:LetterBox,
    ultralytics/utils/nms.py.
    """
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    high, wide = (max(1, round(side * scale)) for side in (height, width))
    above, before = -high % STEP // 2, -wide % STEP // 2
    seen = np.full((high + -high % STEP, wide + -wide % STEP, 3), GREY, np.uint8)
    seen[above : above + high, before : before + wide] = pictures.resize(picture, high, wide, "bilinear")
    boxes, shares = (np.asarray(one[0]) for one in _run(detector.config, detector.params, jnp.asarray(seen[None])))
    sure = shares.max(-1)
    order = np.argsort(-sure, kind="stable")
    boxes = boxes[order[sure[order] >= confidence]]
    kept: list[np.ndarray] = []
    for box in boxes:
        if all(_shared(box, other) <= OVERLAP for other in kept):
            kept.append(box)
    return (np.reshape(kept, (-1, 4)) - [before, above, before, above]) / scale


@read_once(2)
def _read(path: str) -> LoadedDetector:
    return load_detector(path)


@functools.partial(jax.jit, static_argnums=0)
def _run(config: DetectorConfig, params: Params, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    out: tuple[jax.Array, jax.Array] = Detector(config).apply({"params": params}, seen / 255)  # type: ignore[assignment]
    return out


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the share of two boxes' union that both have."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inner = float(np.prod(np.maximum(sides, 0)))
    return inner / max(float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - inner, 1e-9)
