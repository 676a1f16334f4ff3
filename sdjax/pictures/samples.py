"""The content of a picture file, and the limits that are checked before decoding."""

import struct
from typing import NamedTuple

import numpy as np

MAX_PIXELS = 40_000_000
MAX_BYTES = 256 * 2**20  # of a file
MAX_PROFILE = 4 * 2**20  # bytes of an ICC profile; those of printing presses take 0.5 to 3 MB
MAX_CHUNKS = 200_000  # of a file, in any format


class PictureError(ValueError):
    """A picture is refused. The message says why in one sentence."""


class Samples(NamedTuple):
    """The content of a picture file. `colour` [h, w, c] has 1 (grey), 3 (RGB) or 4 (CMYK, 0 is no ink) channels.

    Values are uint8 or uint16 over their whole range; from Pillow images also float32. `alpha` [h, w] has the same
    dtype; colours are not premultiplied. `orientation` is EXIF's, 1 to 8, not applied yet.
    """

    colour: np.ndarray
    alpha: np.ndarray | None = None
    profile: bytes | None = None
    orientation: int = 1
    notices: tuple[str, ...] = ()


def check_side(width: int, height: int) -> None:
    """Raises PictureError unless the picture has pixels, and at most MAX_PIXELS of them."""
    if width < 1 or height < 1:
        raise PictureError(f"the picture has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"the picture has {width} x {height} pixels, and at most {MAX_PIXELS // 10**6} million are read"
        )


def orientation(exif: bytes) -> int:
    """Returns entry 0x0112 of an EXIF block's first directory, or 1 (upright) if it is missing or invalid."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    if start + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for at in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, number = struct.unpack_from(f"{order}HHI", exif, at)
        if tag == 0x0112:
            formats = {1: "B", 3: "H", 4: "I"}
            value = struct.unpack_from(order + formats[kind], exif, at + 8)[0] if kind in formats and number == 1 else 1
            return value if 1 <= value <= 8 else 1
    return 1


def trailing(data: bytes, end: int) -> list[str]:
    extra = len(data) - end
    return [f"{extra} byte{'s' * (extra > 1)} after the end of the picture ignored"] if extra > 0 else []
