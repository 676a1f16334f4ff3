"""Hints for ControlNets and T2I-Adapters, made from pictures by the preprocessors of `sdjax.preprocessors`."""

import numpy as np
from jaxtyping import UInt8

from sdjax import pictures
from sdjax.checks.arguments import whole
from sdjax.pictures.hints import PLAIN, filters
from sdjax.pictures.opening import PictureSource
from sdjax.preprocessors import checked_options

LARGEST = 4096  # pixels of a hint's shorter side
LONGEST = 8  # times its shorter side: how long a picture may be


def make_hint(
    image: PictureSource, preprocessor: str, *, resolution: int | None = None, **options: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the hint of a picture, by a preprocessor such as "canny" (`sdjax.preprocessors.PREPROCESSORS` has all).

    `image` is a path, a file's bytes, a Pillow image or uint8 [h, w, 3]. It is resized first: its shorter side to
    `resolution` pixels, and both sides to multiples of 64, as other tools do with 512. With None it keeps its size.
    The hint has the size at which it is made: make it in the size of the picture that is to be made, because thin lines
    vanish when they shrink.

    Raises ValueError for unknown preprocessors and options, values out of range, and if `image` is not a picture.
    """
    settings = checked_options(preprocessor, options)
    pixels = pictures.open_picture(image).pixels
    if resolution is not None:
        side = whole("resolution", resolution, 64, LARGEST)
        check_shape(*pixels.shape[:2])
        pixels = filters.resize_shorter(pixels, side)
    return PLAIN[preprocessor](pixels, **settings)


def check_shape(height: int, width: int) -> None:
    """Raises ValueError for a picture that is too long for its shorter side to be resized."""
    if max(height, width) > LONGEST * min(height, width):
        raise ValueError(
            f"a picture is at most {LONGEST} times as long as wide for a hint at a resolution; got {width} x {height}"
        )
