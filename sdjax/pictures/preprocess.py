"""Prepares pictures for CLIP's image towers, in the two dialects that unCLIP tools use.

Source: Stability-AI/stablediffusion, ldm/modules/encoders/modules.py (FrozenOpenCLIPImageEmbedder.preprocess) with
kornia 0.6.0's resize and gaussian_blur2d; transformers' CLIPImageProcessor, and openai/CLIP's `_transform`, on Pillow.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from sdjax import pictures
from sdjax.nn.layers.interpolation import taps

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
ELONGATED = 16  # at this ratio of sides or more, a picture's ends are cut off before resizing and cropping

Picture = UInt8[np.ndarray, "h w 3"]
Pixels = Float[np.ndarray, "size size 3"]


def ldm(picture: Picture, size: int) -> Pixels:
    """Returns the picture squeezed to a square: blurred if a side shrinks, then resized (bicubic, corners aligned).

    The blur is Gaussian with sigma = max(side / size, 1) along each side, over int(4 sigma) pixels, rounded up to an
    odd number. The picture is reflected at its borders. Bicubic has a = -0.75. Nothing is clipped or rounded.
    """
    x = picture.astype(np.float32) / np.float32(127.5) - 1  # resized in [-1, 1], as the reference does
    rows, columns = ldm_matrix(picture.shape[0], picture.shape[1], size)
    x = np.einsum("ih,hwc->iwc", rows, x, optimize=True)
    x = np.einsum("jw,iwc->ijc", columns, x, optimize=True)
    return (x + 1) / 2


def ldm_matrix(
    height: int, width: int, size: int
) -> tuple[Float[np.ndarray, "size height"], Float[np.ndarray, "size width"]]:
    """Returns the effect of `ldm` on a picture's columns and on its rows, as matrices."""
    blurred = max(height, width) > size
    return _squeeze(height, size, blurred=blurred), _squeeze(width, size, blurred=blurred)


def _squeeze(side: int, size: int, *, blurred: bool) -> Float[np.ndarray, "size side"]:
    """Returns blur and resizing along one side as one matrix. This is exact, because both are linear."""
    places, weights = taps(side, size, "bicubic", True)  # [size, 4] both
    if blurred:
        sigma = max(side / size, 1)
        reach = int(4 * sigma) // 2
        offsets = np.arange(-reach, reach + 1)
        bell = np.exp(-0.5 * (offsets / sigma) ** 2)
        places = _reflected(places[..., None] + offsets, side)  # [size, 4, taps]
        weights = weights[..., None] * (bell / bell.sum())
    matrix = np.zeros((size, side))
    np.add.at(matrix, (np.arange(size).reshape(-1, *(1,) * (places.ndim - 1)), places), weights)
    return matrix.astype(np.float32)


def _reflected(places: np.ndarray, side: int) -> np.ndarray:
    """Returns places outside 0 ... side - 1 mirrored at the first and last pixel, several times if needed."""
    if side == 1:
        return np.zeros_like(places)
    places = np.abs(places) % (2 * side - 2)
    return np.where(places < side, places, 2 * side - 2 - places)


def huggingface(picture: Picture, size: int) -> Pixels:
    """Returns the middle of the picture, after its shorter side is resized to `size` (Pillow's bicubic, uint8)."""
    picture = shortened(picture, size)
    top, left = ((side - size) // 2 for side in picture.shape[:2])
    return picture[top : top + size, left : left + size].astype(np.float32) / np.float32(255)


def openai(picture: Picture, size: int) -> Pixels:
    """Returns the same as `huggingface`, but an odd number of pixels left over is divided as torchvision does.

    Source: openai/CLIP, clip.py (_transform), and open_clip's, with torchvision's CenterCrop.
    """
    picture = shortened(picture, size)
    top, left = (round((side - size) / 2) for side in picture.shape[:2])  # halves to the even number
    return picture[top : top + size, left : left + size].astype(np.float32) / np.float32(255)


def shortened(picture: Picture, size: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns the picture with its shorter side resized to `size` (Pillow's bicubic, uint8), and without far ends."""
    h, w = picture.shape[:2]
    short, longest = min(h, w), max(h, w)
    if longest > ELONGATED * short:
        start = (longest - ELONGATED * short) // 2
        ends = slice(start, start + ELONGATED * short)
        picture = picture[ends] if h > w else picture[:, ends]
        h, w = picture.shape[:2]
        longest = max(h, w)
    large = size * longest // short
    h, w = (size, large) if h <= w else (large, size)
    return pictures.resize(picture, h, w, "bicubic")


DIALECTS: dict[str, Callable[[Picture, int], Pixels]] = {"ldm": ldm, "huggingface": huggingface}


def clip_pixels(
    given: UInt8[np.ndarray, "b h w 3"] | Sequence[UInt8[np.ndarray, "_ _ 3"]], size: int = 224, *, dialect: str = "ldm"
) -> Float[np.ndarray, "b size size 3"]:
    """Returns pictures as CLIP's input, float32, normalised by CLIP's mean and standard deviation of each colour.

    `dialect` "ldm" squeezes the whole picture into the square, as in Stability's code, with which unCLIP was trained.
    "huggingface" crops the middle, as in diffusers, transformers and OpenAI's code. Raises ValueError for others.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"a dialect of preparing pictures is one of {', '.join(DIALECTS)}; got {dialect!r}")
    return np.stack([(DIALECTS[dialect](picture, size) - MEAN) / STD for picture in given])
