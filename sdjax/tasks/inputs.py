"""Input pictures and masks of tasks: opens and checks them, fits them to the networks, and puts the result back."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Array, Bool, UInt8

from sdjax import pictures
from sdjax.checks.arguments import is_sequence, whole
from sdjax.config import ModelConfig
from sdjax.pictures.opening import PictureSource
from sdjax.tasks.request import Request
from sdjax.tasks.resolve import SIDES, WIDEST, check_size

MULTIPLE = 64  # input pictures' sides are multiples of this: the latent has 1/8 of the side, and UNets halve it 3 times
SMALLEST = 128  # smallest padded side for depth to image and upscaling, as in Stability's demos of both
WHITE = 128  # this level of a mask and higher ones are white: half of 255, rounded up

Picture = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]
Pictures = PictureSource | Array | Sequence[PictureSource | Array]  # one, or several; an array may be several too
Expand = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


def open_pictures(image: Pictures) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Returns a list of pictures. `image` is a path, a file's bytes, a Pillow image or uint8 [h, w, 3], or a sequence.

    An array [b, h, w, c] is a sequence. Raises ValueError if one is not a picture (`sdjax.pictures.open_picture`).
    """
    return [_opened(pictures.open_picture, one, "picture") for one in several(image, 3)]


def open_masks(mask: Pictures, sizes: Sequence[tuple[int, int]]) -> list[Mask]:
    """Returns one mask for each picture, true where it is white. `sizes` are the pictures' (height, width).

    `mask` is a path, a file's bytes, a Pillow image, bool or uint8 [h, w] (128 and above is white): one for all, or a
    sequence of one each. An array [b, h, w] is a sequence. Raises ValueError if numbers or sizes do not match, or if
    one is not a mask.
    """
    opened = [_opened(pictures.open_mask, one, "mask") >= WHITE for one in several(mask, 2)]
    opened = one_each("mask", opened, len(sizes))
    for one, (height, width) in zip(opened, sizes):
        if one.shape != (height, width):
            raise ValueError(
                f"a mask must have its picture's size; got a mask of {one.shape[1]} x {one.shape[0]} for a picture of "
                f"{width} x {height}"
            )
    return opened


def several(given: Pictures, axes: int) -> list[PictureSource]:
    """Returns one picture or a sequence of pictures as a list.

    An array with `axes` axes is one picture; with one more it is a sequence. For maps (2 axes) a last axis of length 1
    is dropped. Arrays of JAX and PyTorch become NumPy arrays.
    """
    if not hasattr(given, "ndim"):
        return list(given) if isinstance(given, (list, tuple)) else [cast(PictureSource, given)]
    array = np.asarray(given)
    if axes == 2 and array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    return list(array) if array.ndim > axes else [array]


def _opened(open_one: Callable[..., Any], one: Any, name: str) -> np.ndarray:
    """Returns the pixels, with a warning for every change that opening made."""
    try:
        opened = open_one(one)
    except FileNotFoundError:
        raise ValueError(f"there is no {name} file {str(one)!r} (the {name} comes before the prompt)") from None
    for notice in opened.notices:
        warnings.warn(f"{name} {one if isinstance(one, (str, os.PathLike)) else 'given'}: {notice}", stacklevel=4)
    return opened.pixels


def one_each(name: str, items: list, count: int) -> list:
    """Returns one item for each of `count` pictures. Raises ValueError unless there are 1 or `count` items."""
    if len(items) not in (1, count):
        raise ValueError(f"give one {name}, or one for each of the {count} pictures; got {len(items)}")
    return items if len(items) == count else items * count


def pad(pixels: np.ndarray) -> np.ndarray:
    """Returns [h, w, c] padded to multiples of 64, at least 128 x 128, by repeating the last row and column."""
    return pictures.pad_to(pixels, MULTIPLE, least=SMALLEST)


def check_seamless(
    requests: Sequence[Request], sizes: Sequence[tuple[int, ...]], inner: Sequence[tuple[int, ...]]
) -> None:
    """Raises ValueError if a seamless picture of `sizes` (height, width) is padded or cut to its size in `inner`."""
    for request, size, own in zip(requests, sizes, inner, strict=True):
        for axis, side, worked in zip("yx", size, own):
            if axis in (request.seamless or "") and side != worked:
                raise ValueError(
                    f"seamless along {axis} needs a whole picture whose side is a multiple of {MULTIPLE}; this one is "
                    f"{size[1]} x {size[0]}, and {own[1]} x {own[0]} is drawn: resize it first, or leave seamless out"
                )


def working_size(
    config: ModelConfig, size: tuple[int, int], height: int | None = None, width: int | None = None, *,
    windowed: bool = False,
) -> tuple[int, int]:  # fmt: skip
    """Returns the (height, width) at which image to image works on a picture of this size.

    Both sides are rounded down to multiples of 64, as in Stability's script, but not below 64. A picture larger than
    2048, or 8192 if it is made in windows, is first shrunk to fit. `height` and `width` replace these sides; see
    `check_size`.
    """
    shrink = min(1, (WIDEST if windowed else SIDES[1]) / max(size))
    h, w = (max(1, round(side * shrink)) for side in size)
    fitting = pictures.round_size(h, w, MULTIPLE)
    if height is None and width is None:
        return fitting
    sides = (own if side is None else side for own, side in zip(fitting, (height, width)))
    return check_size(config, *sides, windowed=windowed)


def working_sizes(
    config: ModelConfig, given: Sequence[Picture], height: Any, width: Any, *, windowed: bool
) -> list[tuple[int, int]]:
    """Returns the (height, width) at which image to image works on each picture (`working_size`).

    `height` and `width` are None, one for all pictures, or one for each.
    """
    heights, widths = (
        one_each(name, list(side) if is_sequence(side) else [side], len(given))
        for name, side in (("height", height), ("width", width))
    )
    return [working_size(config, one.shape[:2], h, w, windowed=windowed) for one, h, w in zip(given, heights, widths)]


class Frame(NamedTuple):
    """A picture with its mask, and the part to repaint in: cut out, enlarged and padded."""

    picture: Picture
    mask: Mask
    box: pictures.Box  # position of the part in the picture
    size: tuple[int, int]  # height and width of the enlarged part, before padding
    pixels: Picture  # the part, enlarged and padded
    repaint: Mask  # the mask of the part, enlarged and padded


def make_frame(
    picture: Picture, mask: Mask, *, side: int | None = None, padding: int = 32, square: bool = False
) -> Frame:
    """Returns the frame of the whole picture, or with `side` of the part around the mask.

    The long side of the part is enlarged to `side`; nothing is shrunk. The part includes `padding` pixels around the
    mask, and it is `square` if asked for and the picture is large enough. It is then padded to multiples of 64 by
    repeating its right and bottom edges. Raises ValueError if the result is larger than 2048.
    """
    box = pictures.Box(0, 0, mask.shape[1], mask.shape[0])
    if side is not None:  # an all-black mask may use any part
        box = pictures.Box(0, 0, *(min(side, s) for s in reversed(mask.shape)))
        box = pictures.crop_around(mask, padding, 1 if square else MULTIPLE) if mask.any() else box
    if square and mask.any():
        box = pictures.crop_around(mask, padding, max(box.height, box.width))
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


def part_of(frame: Frame, pixels: np.ndarray) -> np.ndarray:
    """Returns the part of a picture or mask of the whole picture's size that the frame cuts out, as it has it."""
    return pictures.pad_to(pictures.resize(pixels[frame.box.slices], *frame.size), MULTIPLE)


def check_workable(size: tuple[int, int]) -> None:
    """Raises ValueError for a (height, width) that is too large to be inpainted."""
    if max(size) > SIDES[1]:
        raise ValueError(
            f"at most {SIDES[1]} x {SIDES[1]} pixels can be inpainted; got {size[1]} x {size[0]}: shrink the picture, "
            "or repaint only the part around the mask (only_masked)"
        )


def check_margins(**margins: float) -> None:
    """Raises ValueError, naming the margin, unless each is a whole number of pixels, not negative and not too wide."""
    for name, margin in margins.items():
        widest = pictures.MAX_FEATHER if name == "feather" else None
        whole(name, margin, 0, widest, unit=" of pixels")


def put_back(frame: Frame, made: Picture, *, composite: bool = True, feather: int = 0) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns the picture with the repainted part `made` put back.

    `composite` copies the pixels outside the mask from the picture, byte for byte. `feather` is the width in pixels of
    the transition between old and new.
    """
    made = pictures.resize(made[: frame.size[0], : frame.size[1]], frame.box.height, frame.box.width)
    new = pictures.paste(frame.picture, made, frame.box)
    return pictures.composite(new, frame.picture, frame.mask, feather) if composite else new


def check_expand(expand: Sequence[int]) -> Expand:
    """Returns the four numbers. Raises ValueError unless they are whole and not negative, and one is positive."""
    several = [] if isinstance(expand, str) or not np.ndim(expand) else expand
    try:
        sides = tuple(whole("expand", side, 0, SIDES[1]) for side in several)
    except ValueError:
        sides = ()
    if len(sides) != 4 or not any(sides):
        raise ValueError(
            f"expand must be (left, top, right, bottom): four numbers of pixels from 0 to {SIDES[1]}, not all 0; "
            f"got {expand}"
        )
    return sides


def repainted_latents(repaint: Mask, factor: int) -> Bool[np.ndarray, "h2 w2"]:
    """Returns which entries of a latent show a pixel that is repainted."""
    h, w = repaint.shape
    return np.asarray(repaint.reshape(h // factor, factor, w // factor, factor).any((1, 3)))
