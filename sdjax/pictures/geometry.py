"""Sizes, boxes and masks of pictures as arrays: resizing, padding, cropping, pasting, blending, enlarging the canvas.

Arrays are [h, w] or [h, w, c]; sizes are (height, width), in pixels. ValueError for arguments out of range.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image as PillowImage

from sdjax.pictures.samples import check_side

MAX_FEATHER = 1024  # pixels
METHODS = {
    "lanczos": PillowImage.Resampling.LANCZOS,
    "bicubic": PillowImage.Resampling.BICUBIC,
    "bilinear": PillowImage.Resampling.BILINEAR,
    "nearest": PillowImage.Resampling.NEAREST,
    "area": PillowImage.Resampling.BOX,
}


class Box(NamedTuple):
    """Part of a picture: columns left to right and rows top to bottom, ends excluded, in Pillow's order."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """The index of the box in an array: `pixels[box.slices]` is the crop."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def round_size(height: int, width: int, multiple: int = 64) -> tuple[int, int]:
    """Returns both sides rounded down to multiples, at least `multiple`. Source: load_img, scripts/img2img.py."""
    if height < 1 or width < 1 or multiple < 1:
        raise ValueError(f"sides and multiples are at least 1; got {height} x {width} and {multiple}")
    return max(height // multiple, 1) * multiple, max(width // multiple, 1) * multiple


def resize(pixels: np.ndarray, height: int, width: int, method: str = "lanczos") -> np.ndarray:
    """Returns uint8 or float32 [height, width] or [height, width, c] by Pillow's filter of that name.

    "lanczos" (a = 3), "bicubic" (a = -0.5) and "bilinear" use wider filters for shrinking, against aliasing. "area" is
    the mean of the covered pixels, "nearest" the pixel at the centre. Channels never mix, alpha included. The same size
    returns a copy.
    """
    if method not in METHODS:
        raise ValueError(f"a method is one of {', '.join(METHODS)}; got {method!r}")
    if pixels.dtype not in (np.uint8, np.float32) or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ValueError(f"uint8 or float32 [h, w] or [h, w, c] can be resized; got {pixels.dtype} {pixels.shape}")
    if height < 1 or width < 1:
        raise ValueError(f"sides are at least 1; got {height} x {width}")

    def one(array: np.ndarray) -> np.ndarray:
        picture = PillowImage.fromarray(np.ascontiguousarray(array))
        return np.array(picture.resize((width, height), METHODS[method]))

    if pixels.shape[:2] == (height, width):
        return pixels.copy()
    if pixels.ndim == 2 or (pixels.shape[-1] == 3 and pixels.dtype == np.uint8):
        return one(pixels)
    return np.stack([one(pixels[..., i]) for i in range(pixels.shape[-1])], -1)


def pad_to(pixels: np.ndarray, multiple: int, *, least: int = 1) -> np.ndarray:
    """Returns the array with its last row and column repeated until both sides are multiples, and at least `least`.

    `padded[:h, :w]` is the original array.
    """
    if multiple < 1 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ValueError(f"[h, w] or [h, w, c] is padded to a multiple of at least 1; got {pixels.shape}, {multiple}")
    edges = [(0, -max(side, least) % multiple + max(least - side, 0)) for side in pixels.shape[:2]]
    return np.pad(pixels, [*edges, (0, 0)][: pixels.ndim], mode="edge")


def composite(new: np.ndarray, old: np.ndarray, mask: np.ndarray, feather: int = 0) -> np.ndarray:
    """Returns uint8 [h, w, c]: round((m new + (255 - m) old) / 255). Where the mask m is 0, `old` does not change.

    With `feather` n the mask fades in over n pixels inside its edge: m is multiplied by min(1, d / (n + 1)), where d is
    the Euclidean distance to the nearest pixel outside the mask. The picture's border does not count as outside. The
    mask is uint8 [h, w] or bool.
    """
    mask = _checked_mask(mask)
    if new.dtype != np.uint8 or old.dtype != np.uint8 or new.shape != old.shape or new.shape[:2] != mask.shape:
        raise ValueError(
            f"two uint8 pictures and a mask of one size can be blended; got {new.dtype} {new.shape}, "
            f"{old.dtype} {old.shape} and {mask.shape}"
        )
    weight = _fade(mask, feather).astype(np.uint16)
    weight = weight.reshape(weight.shape + (1,) * (new.ndim - 2))
    out = old.copy()
    for row in np.flatnonzero(mask.any(1)):  # row by row: saves memory, and skips rows that do not change
        m = weight[row]
        out[row] = (m * new[row] + (255 - m) * old[row] + 127) // 255
    return out


def crop_around(mask: np.ndarray, padding: int, multiple: int, bounds: tuple[int, int] | None = None) -> Box:
    """Returns the smallest box around the nonzero part of a mask [h, w], plus `padding`, enlarged to `multiple`.

    The padding stops at the picture's edge. The growth to the multiple is shared by both sides, and the box is shifted
    inside the picture, whose (height, width) is that of the mask, or `bounds` if given. If the picture is smaller than
    the multiple, the box is its whole side (use `pad_to` then). Raises ValueError for an empty mask.
    """
    mask = _checked_mask(mask)
    bounds = mask.shape if bounds is None else bounds
    if padding < 0 or multiple < 1 or mask.shape != tuple(bounds):
        raise ValueError(
            f"a mask {mask.shape} of the bounds {bounds}, padding {padding} or multiple {multiple} is wrong"
        )
    if not mask.any():
        raise ValueError("the mask is empty: there is nothing to crop around")
    sides = []
    for axis, bound in enumerate(bounds):
        marked = np.flatnonzero(mask.any(1 - axis))
        start, end = max(int(marked[0]) - padding, 0), min(int(marked[-1]) + 1 + padding, bound)
        size = min(-(-(end - start) // multiple) * multiple, bound)
        start = min(max(start - (size - (end - start)) // 2, 0), bound - size)
        sides.append((start, start + size))
    (top, bottom), (left, right) = sides
    return Box(left, top, right, bottom)


def paste(pixels: np.ndarray, patch: np.ndarray, box: Box) -> np.ndarray:
    """Returns a copy of the picture with `patch` pasted into the box. The patch must have the box's size."""
    h, w = pixels.shape[:2]
    if not (0 <= box.top < box.bottom <= h and 0 <= box.left < box.right <= w):
        raise ValueError(f"{box} is not inside of a picture of {h} x {w}")
    if patch.shape != (box.height, box.width, *pixels.shape[2:]) or patch.dtype != pixels.dtype:
        raise ValueError(f"a patch {patch.dtype} {patch.shape} does not fill {box} of {pixels.dtype} {pixels.shape}")
    out = pixels.copy()
    out[box.slices] = patch
    return out


def expand(
    pixels: np.ndarray, left: int, top: int, right: int, bottom: int, *, overlap: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the picture extended by these numbers of pixels, its edges repeated, and the mask of the new part.

    The mask, uint8 [h, w], is 255 on the new part, and on `overlap` pixels of the old part along every side that grew.
    Raises ValueError for negative numbers, and PictureError if the result exceeds 40 million pixels.
    """
    if min(left, top, right, bottom, overlap) < 0:
        raise ValueError(f"a canvas grows by 0 or more pixels; got {left}, {top}, {right}, {bottom}, overlap {overlap}")
    h, w = pixels.shape[:2]
    check_side(left + w + right, top + h + bottom)
    edges = [(top, bottom), (left, right), (0, 0)][: pixels.ndim]
    canvas = np.pad(pixels, edges, mode="edge")
    mask = np.full(canvas.shape[:2], 255, np.uint8)
    inner = [(at + overlap * (at > 0), max(at + side - overlap * (more > 0), 0))
             for at, side, more in ((top, h, bottom), (left, w, right))]  # fmt: skip
    mask[inner[0][0] : inner[0][1], inner[1][0] : inner[1][1]] = 0
    return canvas, mask


def _checked_mask(mask: np.ndarray) -> np.ndarray:
    if mask.ndim != 2 or mask.dtype not in (np.uint8, bool):
        raise ValueError(f"a mask is uint8 or bool [h, w]; got {mask.dtype} {mask.shape}")
    return mask.astype(np.uint8) * 255 if mask.dtype == bool else mask


def _fade(mask: np.ndarray, feather: int) -> np.ndarray:
    """Returns the mask times min(1, d / (feather + 1)), d the distance of the nearest pixel that is 0."""
    if not 0 <= feather <= MAX_FEATHER:
        raise ValueError(f"a feather is 0 to {MAX_FEATHER} pixels wide; got {feather}")
    if feather == 0 or mask.all() or not mask.any():
        return mask
    distance = np.sqrt(_squared_distance(mask == 0, feather + 1))
    return np.rint(mask * np.minimum(distance / np.float32(feather + 1), 1)).astype(np.uint8)


def _squared_distance(outside: np.ndarray, reach: int) -> np.ndarray:
    """Returns float32 [h, w]: each pixel's squared distance to the nearest `outside` pixel, at most reach squared.

    It first computes distances along rows, then the minimum of (row distance)^2 + dy^2 over the rows within reach.
    """
    h, w = outside.shape
    at = np.arange(w, dtype=np.int32)
    before = np.maximum.accumulate(np.where(outside, at, -reach), axis=1)
    after = np.minimum.accumulate(np.where(outside, at, w + reach)[:, ::-1], axis=1)[:, ::-1]
    across = np.minimum(np.minimum(at - before, after - at), reach).astype(np.float32) ** 2
    out = across.copy()
    for dy in range(1, min(reach, h)):
        np.minimum(out[dy:], across[:-dy] + dy * dy, out=out[dy:])
        np.minimum(out[:-dy], across[dy:] + dy * dy, out=out[:-dy])
    return np.minimum(out, np.float32(reach) ** 2)
