"""Hints for ControlNets and T2I-Adapters, made from pictures by the preprocessors of `sdjax.preprocessors`."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from sdjax import pictures
from sdjax.checks.arguments import shown, whole
from sdjax.convert.checkpoint import CheckpointLike
from sdjax.convert.parts.annotators import LoadedAnnotator, load_annotator
from sdjax.pictures.hints import PLAIN, filters
from sdjax.pictures.opening import PictureSource
from sdjax.preprocessors import ANNOTATORS, PREPROCESSORS, checked_options
from sdjax.tasks.annotators import NETWORK_HINTS

LARGEST = 2048  # pixels of a hint's shorter side
MOST_SEEN = 2**23  # pixels that a network looks at: its maps take some gigabytes then
LONGEST = 8  # times its shorter side: how long a picture may be


AnnotatorLike = CheckpointLike | LoadedAnnotator


def make_hint(
    image: PictureSource,
    preprocessor: str,
    *,
    annotators: AnnotatorLike | Sequence[AnnotatorLike] = (),
    resolution: int | None = None,
    **options: float,
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the hint of a picture, by a preprocessor such as "canny" (`sdjax.preprocessors.PREPROCESSORS` has all).

    `image` is a path, a file's bytes, a Pillow image or uint8 [h, w, 3]. It is resized first: its shorter side to
    `resolution` pixels, and both sides to multiples of 64, as other tools do with 512. With None it keeps its size.
    The hint has the size at which it is made: make it in the size of the picture that is to be made, because thin lines
    vanish when they shrink.

    `annotators` are the networks that the preprocessor needs: paths, or what `sdjax.convert.load_annotator` returns.

    Raises ValueError for unknown preprocessors and options, values out of range, missing and unneeded annotators, and
    if `image` is not a picture; CheckpointError if a file is no annotator.
    """
    settings = checked_options(preprocessor, options)
    side = None if resolution is None else whole("resolution", resolution, 64, LARGEST)
    pixels = pictures.open_picture(image).pixels
    if side is not None:
        check_shape(*pixels.shape[:2])
        pixels = filters.resize_shorter(pixels, side)
    networks = load_annotators(preprocessor, annotators)
    if preprocessor in PLAIN:
        return PLAIN[preprocessor](pixels, **settings)
    height, width = pixels.shape[:2]
    if height * width > MOST_SEEN:
        raise ValueError(
            f"{preprocessor} looks at {MOST_SEEN} pixels at most; got a picture of {width} x {height}: give a "
            "(smaller) resolution"
        )
    return NETWORK_HINTS[preprocessor](networks, pixels, **settings)


def load_annotators(
    preprocessor: str, annotators: AnnotatorLike | Sequence[AnnotatorLike]
) -> dict[str, LoadedAnnotator]:
    """Returns the networks that a preprocessor needs, by kind. Paths are read.

    Raises ValueError for missing ones, ones that it does not need and two of a kind; CheckpointError as
    `sdjax.convert.load_annotator`.
    """
    given: list[AnnotatorLike]
    if isinstance(annotators, LoadedAnnotator | str | os.PathLike | Mapping):
        given = [annotators]
    elif isinstance(annotators, Sequence):
        given = list(annotators)
    else:
        raise ValueError(f"annotators are files or loaded annotators; got {shown(annotators)}")
    needs = PREPROCESSORS[preprocessor].needs
    if given and not needs:
        raise ValueError(f"{preprocessor} needs no annotator: leave it out")
    if len(given) < len(needs):
        wanted = "; ".join(f"{what} ({files})" for what, files in (ANNOTATORS[kind] for kind in needs))
        raise ValueError(f"{preprocessor} needs annotators: {wanted}; got {len(given)}")
    loaded: dict[str, LoadedAnnotator] = {}
    for one in given:
        network = one if isinstance(one, LoadedAnnotator) else load_annotator(one)
        if network.kind not in needs:
            wanted = " and ".join(ANNOTATORS[kind][0] for kind in needs)
            raise ValueError(f"{preprocessor} needs {wanted}; {ANNOTATORS[network.kind][0]} is not needed")
        if network.kind in loaded:
            raise ValueError(f"{ANNOTATORS[network.kind][0]} is given twice: give it once")
        loaded[network.kind] = network
    return loaded


def check_shape(height: int, width: int) -> None:
    """Raises ValueError for a picture that is too long for its shorter side to be resized."""
    if max(height, width) > LONGEST * min(height, width):
        raise ValueError(
            f"a picture is at most {LONGEST} times as long as wide for a hint at a resolution; got {width} x {height}"
        )
