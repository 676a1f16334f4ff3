"""Pictures and masks that a task is given: opened, checked, brought to a size that the networks take, and put back."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from sdjax import pictures
from sdjax.checks.arguments import whole
from sdjax.config import ModelConfig
from sdjax.tasks.resolve import SIDES, check_size

MULTIPLE = 64  # of the sides of a picture given: both releases' UNets halve a latent, an eighth of it, three times
SMALLEST = 128  # side of a picture padded for depth to image or upscaling, as in Stability's demos of both
WHITE = 128  # from this level on a mask is white: half of 255, rounded up

Picture = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]
Expand = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


def open_pictures(image: Any) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Returns the pictures of one or a sequence of: path, bytes of a file, Pillow image, uint8 [h, w, 3].

    An array [b, h, w, c] is a sequence. Raises ValueError for what is no picture (`sdjax.pictures.open_picture`).
    """
    return [_opened(pictures.open_picture, one, "picture") for one in several(image, 3)]


def open_masks(mask: Any, sizes: Sequence[tuple[int, int]]) -> list[Mask]:
    """Returns one mask for each of these (height, width), true where it is white, from one for all or one each.

    A mask is a path, bytes of a file, Pillow image, bool or uint8 [h, w] (white from 128 on); an array [b, h, w] is a
    sequence. Raises ValueError where the numbers or sizes do not fit, and for what is no mask.
    """
    opened = [_opened(pictures.open_mask, one, "mask") >= WHITE for one in several(mask, 2)]
    opened = one_each("mask", opened, len(sizes))
    for one, (height, width) in zip(opened, sizes):
        if one.shape != (height, width):
            raise ValueError(
                f"a mask is as large as its picture; got a mask of {one.shape[1]} x {one.shape[0]} for a picture of "
                f"{width} x {height}"
            )
    return opened


def several(given: Any, axes: int) -> list[Any]:
    """Returns what was given, one thing or a sequence of them, as a sequence.

    An array is one if it has so many `axes`, a sequence with one more; of maps, which have two, a last axis of length 1
    is dropped. Arrays of other libraries, JAX's and PyTorch's, become NumPy's.
    """
    if not hasattr(given, "ndim"):
        return list(given) if isinstance(given, (list, tuple)) else [given]
    array = np.asarray(given)
    if axes == 2 and array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    return list(array) if array.ndim > axes else [array]


def _opened(open_one: Callable[..., Any], one: Any, name: str) -> np.ndarray:
    """Returns a file's pixels, with a warning of what was decided in opening it."""
    try:
        opened = open_one(one)
    except FileNotFoundError:
        raise ValueError(f"no file is at {str(one)!r}, which should be a {name} (it comes before the prompt)") from None
    for notice in opened.notices:
        warnings.warn(f"{name} {one if isinstance(one, (str, os.PathLike)) else 'given'}: {notice}", stacklevel=4)
    return opened.pixels


def one_each(name: str, items: list, count: int) -> list:
    """Returns one item for each of `count` pictures. Raises ValueError unless there is one for all, or one each."""
    if len(items) not in (1, count):
        raise ValueError(f"one {name}, or one for each of the {count} pictures; got {len(items)}")
    return items if len(items) == count else items * count


def pad(pixels: np.ndarray) -> np.ndarray:
    """Returns an array [h, w, c] with its last row and column repeated, to multiples of 64 and at least 128 x 128."""
    return pictures.pad_to(pixels, MULTIPLE, least=SMALLEST)


def working_size(
    config: ModelConfig, size: tuple[int, int], height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """Returns the (height, width) at which image to image works on a picture of this size.

    Both sides are rounded down to multiples of 64, as Stability's script does, but to 64 at least; a picture larger
    than 2048 is shrunk to fit first. `height` and `width` say otherwise, each for itself; see `check_size`.
    """
    shrink = min(1, SIDES[1] / max(size))
    h, w = (max(1, round(side * shrink)) for side in size)
    fitting = pictures.round_size(h, w, MULTIPLE)
    if height is None and width is None:
        return fitting
    return check_size(config, *(own if side is None else side for own, side in zip(fitting, (height, width))))


class Frame(NamedTuple):
    """A picture with its mask, and the part of it that is worked on: cut out, enlarged and padded."""

    picture: Picture
    mask: Mask
    box: pictures.Box  # the part
    size: tuple[int, int]  # height and width of the part as it is worked on, before padding
    pixels: Picture  # the part
    repaint: Mask  # the mask of the part


def make_frame(picture: Picture, mask: Mask, *, side: int | None = None, padding: int = 32) -> Frame:
    """Returns the whole picture to work on; with `side`, the part around the mask, its long side enlarged to `side`.

    `padding` is how many pixels around the mask belong to the part. It is padded at its right and bottom edges, by
    repeating them, to multiples of 64; nothing is shrunk. Raises ValueError where it is larger than 2048 then.
    """
    box = pictures.Box(0, 0, mask.shape[1], mask.shape[0])
    if side is not None:  # of a mask that is black everywhere any part will do
        box = pictures.Box(0, 0, *(min(side, s) for s in reversed(mask.shape)))
        box = pictures.crop_around(mask, padding, MULTIPLE) if mask.any() else box
    pixels, repaint = picture[box.slices], mask[box.slices]
    height, width = repaint.shape
    if side is not None and max(height, width) < side:
        longest = max(height, width)
        height, width = (round(s * side / longest) for s in (height, width))
        pixels = pictures.resize(pixels, height, width)
        repaint = pictures.resize(np.uint8(255) * repaint, height, width, "nearest") > 0
    size = (height, width)
    check_workable(size)
    return Frame(picture, mask, box, size, pictures.pad_to(pixels, MULTIPLE), pictures.pad_to(repaint, MULTIPLE))


def check_workable(size: tuple[int, int]) -> None:
    """Raises ValueError for a (height, width) that is too large to be inpainted."""
    if max(size) > SIDES[1]:
        raise ValueError(
            f"at most {SIDES[1]} x {SIDES[1]} pixels can be inpainted; got {size[1]} x {size[0]}: shrink the picture, "
            "or work on the part around the mask only (only_masked)"
        )


def check_margins(**margins: float) -> None:
    """Raises ValueError, naming the margin, for one that is no whole number of pixels from 0 up, or is too wide."""
    for name, margin in margins.items():
        widest = pictures.MAX_FEATHER if name == "feather" else None
        whole(name, margin, 0, widest, unit=" of pixels")


def put_back(frame: Frame, made: Picture, *, composite: bool = True, feather: int = 0) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns the picture with what was made of its part in its place.

    `composite` takes what lies outside the mask from the picture itself, byte for byte; `feather` is the width in
    pixels over which the two are mixed there.
    """
    made = pictures.resize(made[: frame.size[0], : frame.size[1]], frame.box.height, frame.box.width)
    new = pictures.paste(frame.picture, made, frame.box)
    return pictures.composite(new, frame.picture, frame.mask, feather) if composite else new


def check_expand(expand: Sequence[int]) -> Expand:
    """Returns the four numbers. Raises ValueError unless they are whole, none negative and one of them positive."""
    several = [] if isinstance(expand, str) or not np.ndim(expand) else expand
    try:
        sides = tuple(whole("expand", side, 0, SIDES[1]) for side in several)
    except ValueError:
        sides = ()
    if len(sides) != 4 or not any(sides):
        raise ValueError(
            f"expand is left, top, right, bottom: four numbers of pixels from 0 to {SIDES[1]}, not all 0; got {expand}"
        )
    return sides


def repainted_latents(repaint: Mask, factor: int) -> Bool[np.ndarray, "h2 w2"]:
    """Returns which entries of a latent show a pixel that is repainted."""
    h, w = repaint.shape
    return np.asarray(repaint.reshape(h // factor, factor, w // factor, factor).any((1, 3)))
