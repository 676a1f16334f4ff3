"""Enlarges pictures by an upscaler of the ESRGAN family: no prompt, no noise, the same result every time."""

import os
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8

from sdjax import pictures
from sdjax.checks.arguments import number, shown
from sdjax.checks.hints import explains_arguments
from sdjax.convert.parts.esrgan import LoadedESRGAN, load_esrgan
from sdjax.pictures.image import to_uint8
from sdjax.pipeline.enlarging import TILE, enlarge_image
from sdjax.tasks import inputs
from sdjax.tasks.extra_files import read_once
from sdjax.tasks.results import Pictures, joined

MOST_RUNS = 3  # of an upscaler for one picture, as in A1111
MOST_PIXELS = 2**28  # of a result: 16384 x 16384
LARGEST = 16.0  # times

Upscaler: TypeAlias = LoadedESRGAN | str | os.PathLike[str]
Picture = UInt8[np.ndarray, "h w 3"]
NewPicture = UInt8[np.ndarray, "h2 w2 3"]


@explains_arguments(task=False)
def enlarge(
    upscaler: Upscaler,
    image: inputs.Pictures,
    *,
    times: float | None = None,
    tile: int = TILE,
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> Pictures:
    """Returns the pictures enlarged, uint8 [b, h, w, 3], or a list of [h, w, 3] if sizes differ.

    `upscaler`: a file of ESRGAN, Real-ESRGAN or the compact network, or what `sdjax.convert.load_esrgan` returns.
    `image`: a path, a file's bytes, a Pillow image or uint8 [h, w, 3], or a sequence of them. `times`: how many times
    as high and wide, from 1 to 16; None is what the upscaler was made for. For another number the upscaler runs until
    the picture is large enough, up to three times, and the result is shrunk (or enlarged) by Lanczos's filter, as in
    A1111. `tile`: the side in pixels of the parts that are computed at once. It changes memory, not the result.
    `progress(done, total)` counts parts of one run.

    Raises ValueError for arguments out of range, a result of more than 2**28 pixels and what is no picture,
    `sdjax.convert.CheckpointError` for a file that is no upscaler.
    """
    loaded = read_upscaler(upscaler)
    made = [
        enlarge_to(loaded, one, size_of(loaded, one, times), tile=tile, dtype=dtype, progress=progress)
        for one in inputs.open_pictures(image)
    ]
    return joined(made)


def read_upscaler(given: Upscaler) -> LoadedESRGAN:
    """Returns the upscaler of a file, which is read once as long as it does not change.

    Raises ValueError for a value of another kind, `sdjax.convert.CheckpointError` for a file that is none.
    """
    if isinstance(given, str | os.PathLike):
        return _read(os.fspath(given))
    if not isinstance(given, LoadedESRGAN):
        raise ValueError(f"an upscaler is a file or what sdjax.convert.load_esrgan returns; got {shown(given)}")
    return given


@read_once(2)
def _read(path: str) -> LoadedESRGAN:
    return load_esrgan(path)


def size_of(loaded: LoadedESRGAN, picture: Picture, times: float | None) -> tuple[int, int]:
    """Returns the (height, width) of a picture enlarged. Raises ValueError if it is too large."""
    factor = loaded.config.times if times is None else number("times", times, 1, LARGEST)
    height, width = (round(side * factor) for side in picture.shape[:2])
    if height * width > MOST_PIXELS:
        raise ValueError(
            f"the result would have {width} x {height} pixels; at most {MOST_PIXELS} are made: enlarge less, or parts "
            "of the picture"
        )
    return height, width


def enlarge_to(
    loaded: LoadedESRGAN,
    picture: Picture,
    size: tuple[int, int],
    *,
    seamless: str | None = None,
    tile: int = TILE,
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> NewPicture:
    """Returns a picture at this (height, width).

    The upscaler runs at least once, and until the picture is as large, up to three times. Then Lanczos's filter gives
    it the size. A picture that is seamless along "x" or "y" is continued over these edges, so it stays seamless.
    """
    for run in range(MOST_RUNS):
        enough = all(side >= wanted for side, wanted in zip(picture.shape, size))
        if run and (enough or loaded.config.times == 1):
            break
        picture = _enlarged(loaded, picture, seamless or "", tile, dtype, progress)
    return pictures.resize(picture, *size, "lanczos")


def _enlarged(
    loaded: LoadedESRGAN, picture: Picture, seamless: str, tile: int, dtype: str,
    progress: Callable[[int, int], None] | None,
) -> NewPicture:  # fmt: skip
    times, margin = loaded.config.times, loaded.config.margin
    top, left = (min(margin, side) if axis in seamless else 0 for axis, side in zip("yx", picture.shape))
    padded = np.pad(picture, ((top, top), (left, left), (0, 0)), mode="wrap")
    image = padded.astype(np.float32) / np.float32(255)
    made = to_uint8(enlarge_image(loaded, image, tile=tile, dtype=dtype, progress=progress) * 2 - 1, rounding="nearest")
    h, w = (times * side for side in picture.shape[:2])
    return made[times * top : times * top + h, times * left : times * left + w]
