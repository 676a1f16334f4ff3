"""Converts samples to uint8 sRGB pixels or grey, and turns pictures upright. Works in bands, to limit memory."""

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image as PillowImage

from sdjax.pictures.samples import Samples

BAND = 2**20  # pixels worked on at once
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what Pillow and the reference mean by grey
TURNS = {
    2: "mirrored", 3: "turned by 180 degrees", 4: "mirrored upside down", 5: "transposed",
    6: "turned by 90 degrees clockwise", 7: "transposed along the other diagonal",
    8: "turned by 90 degrees counterclockwise",
}  # fmt: skip


def bands(height: int, width: int) -> Iterator[slice]:
    """Yields slices of rows, each of about BAND pixels."""
    rows = max(1, BAND // width)
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Returns a copy of an array [h, w, ...], turned by its EXIF orientation. Source: EXIF 2.32, tag 0x0112."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)  # 5: row 0 is the left side
    down, across = {2: (0, 1), 3: (1, 1), 4: (1, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}.get(orientation, (0, 0))
    array = array[::-1] if down else array
    array = array[:, ::-1] if across else array
    return np.array(array, order="C")


def to_eight_bits(array: np.ndarray) -> np.ndarray:
    """Returns uint8 of uint8 or uint16: round(v / 257), so that 65535 is 255."""
    if array.dtype == np.uint8:
        return array
    out = np.empty(array.shape, np.uint8)
    for rows in bands(*array.shape[:2]):
        out[rows] = (array[rows].astype(np.uint32) + 128) // 257
    return out


def to_rgb(samples: Samples) -> tuple[np.ndarray, list[str]]:
    """Returns sRGB colours [h, w, 3] or grey [h, w, 1] in the samples' dtype, and notices. Ignores transparency.

    CMYK without a profile is (255 - C) (255 - K) / 255. Samples with a usable profile become uint8 RGB.
    """
    colour, notices = samples.colour, []
    if samples.profile is not None:
        converted, notice = _convert(colour, samples.profile)
        if notice:
            notices.append(notice)
        if converted is not None:
            return converted, notices
    if colour.shape[-1] == 4:
        out = np.empty((*colour.shape[:2], 3), np.uint8)
        for rows in bands(*colour.shape[:2]):
            light = 255 - colour[rows].astype(np.uint16)
            out[rows] = (light[..., :3] * light[..., 3:] + 127) // 255
        return out, [*notices, "CMYK converted without a profile"]
    return colour, notices


def lay_on(rgb: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Returns uint8 [h, w, 3]: alpha rgb + (1 - alpha) background, rounded once. `rgb` may be grey.

    It mixes stored (gamma-encoded) values, as browsers and editors do. So the result is what the author saw.
    """
    if alpha.dtype != rgb.dtype:
        alpha = to_eight_bits(alpha)
        rgb = to_eight_bits(rgb)
    top = int(np.iinfo(rgb.dtype).max)
    unit = top // 255  # 1 or 257
    exact: type[np.number] = np.uint16 if unit == 1 else np.float64  # sums of up to 255 * 255 + 127, and 65535 * 65535
    below: np.ndarray = np.array(background, exact) * exact(unit)
    out = np.empty((*rgb.shape[:2], 3), np.uint8)
    for rows in bands(*rgb.shape[:2]):
        cover: np.ndarray = alpha[rows, :, None].astype(exact)
        mixed = rgb[rows] * cover + below * (exact(top) - cover)
        out[rows] = (mixed + 127) // 255 if unit == 1 else np.rint(mixed / (top * unit))
    return out


def grey(colour: np.ndarray) -> np.ndarray:
    """Returns float32 [h, w], in the input's units: grey unchanged, or the luma of RGB [h, w, 3]."""
    if colour.shape[-1] == 1:
        return colour[..., 0].astype(np.float32)
    out = np.empty(colour.shape[:2], np.float32)
    for rows in bands(*colour.shape[:2]):
        band = colour[rows]
        if np.array_equal(band[..., 0], band[..., 1]) and np.array_equal(band[..., 1], band[..., 2]):
            out[rows] = band[..., 0]
        else:
            out[rows] = band.astype(np.float32) @ np.array(LUMA, np.float32)
    return out


def is_grey(colour: np.ndarray, where: np.ndarray | None = None) -> bool:
    """Returns whether the channels agree to 1/16 where `where` is not 0 (JPEG's chroma is not exact)."""
    if colour.shape[-1] == 1:
        return True
    tolerance = int(np.iinfo(colour.dtype).max) // 16
    for rows in bands(*colour.shape[:2]):
        r, g, b = (colour[rows, :, i] for i in range(3))
        spread = np.maximum(np.maximum(r, g), b) - np.minimum(np.minimum(r, g), b)
        if (spread if where is None else spread[where[rows] > 0]).max(initial=0) > tolerance:
            return False
    return True


def is_one_colour(colour: np.ndarray, where: np.ndarray) -> bool:
    """Returns whether uint8 [h, w, c] has one colour, to 1/16, where `where` is not 0."""
    low, high = np.full(colour.shape[-1], 255), np.zeros(colour.shape[-1], int)
    for rows in bands(*colour.shape[:2]):
        seen = colour[rows][where[rows] > 0]
        low, high = np.minimum(low, seen.min(0, initial=255)), np.maximum(high, seen.max(0, initial=0))
        if (high - low).max() > 15:
            return False
    return True


def _convert(colour: np.ndarray, profile: bytes) -> tuple[np.ndarray | None, str]:
    """Returns uint8 sRGB [h, w, 3] (None if the colours do not change) and a notice ("" for none)."""
    mode, space = {1: ("L", b"GRAY"), 3: ("RGB", b"RGB "), 4: ("CMYK", b"CMYK")}[colour.shape[-1]]
    if len(profile) < 132 or profile[36:40] != b"acsp":
        return None, "damaged colour profile ignored"
    if profile[16:20] != space:
        return None, "colour profile of another kind of colour ignored"
    try:
        from PIL import ImageCms  # Pillow may have been built without Little CMS
    except ImportError:
        return None, "colour profile ignored, as this Pillow cannot convert colours"
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    if mode == "L":  # a table too coarse for the dark levels otherwise: 10 levels off with a linear profile
        flags |= ImageCms.Flags.NOOPTIMIZE
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC, flags,
        )  # fmt: skip

        def apply(pixels: np.ndarray) -> np.ndarray:
            picture = PillowImage.fromarray(pixels[..., 0] if mode == "L" else pixels, mode)
            return np.asarray(ImageCms.applyTransform(picture, transform))

        if mode != "CMYK" and _is_identity(apply, colour.shape[-1]):
            return None, ""  # sRGB itself: not to be rounded once more
        colour = to_eight_bits(colour)
        out = np.empty((*colour.shape[:2], 3), np.uint8)
        for rows in bands(*colour.shape[:2]):
            out[rows] = apply(colour[rows])
    except Exception:  # Little CMS refuses a profile in many ways
        return None, "damaged colour profile ignored"
    return out, "colours converted to sRGB by the profile in the file"


def _is_identity(apply: Callable[[np.ndarray], np.ndarray], channels: int) -> bool:
    """Returns whether a conversion changes a grid of test colours by at most one level."""
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(*[steps] * channels, indexing="ij"), -1).reshape(1, -1, channels)
    return int(np.abs(apply(lattice).astype(np.int16) - lattice).max()) <= 1
