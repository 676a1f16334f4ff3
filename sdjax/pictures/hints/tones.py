"""Hints that keep a picture's colours or tones, without weights: uint8 [h, w, 3] from uint8 [h, w, 3].

Sources: the preprocessors of sd-webui-controlnet of the same names, which call OpenCV; controlnet_aux/shuffle.
"""

import numpy as np
from jaxtyping import Float, UInt8

from sdjax.pictures import ndimage
from sdjax.pictures.hints.edges import to_rgb
from sdjax.pictures.hints.filters import gaussian_blur, resize

Picture = UInt8[np.ndarray, "h w 3"]

CELL = 64  # pixels of a square of the colour grid
MASKED = -1.0  # in the hint of an inpainting ControlNet, whose other values are 0 to 1
_LUMINANCE = np.array([0.212671, 0.715160, 0.072169], np.float32)  # Y of linear sRGB, D65


def invert(pixels: Picture) -> Picture:
    """Returns 255 - p: a drawing in dark lines on white as one in white lines on black."""
    return 255 - pixels


def threshold(pixels: Picture, *, threshold: float) -> Picture:
    """Returns white where all three channels are above `threshold`, black elsewhere."""
    return to_rgb(np.where(pixels.min(-1) > threshold, 255, 0).astype(np.uint8))


def blur_gaussian(pixels: Picture, *, sigma: float) -> Picture:
    """Returns the picture blurred by a Gaussian of `sigma` pixels."""
    return gaussian_blur(pixels, sigma)


def tile_resample(pixels: Picture, *, down_sampling_rate: float) -> Picture:
    """Returns the picture without its details: shrunk by this rate and enlarged again. Rate 1 changes nothing."""
    h, w = pixels.shape[:2]
    rows, columns = (max(int(side / down_sampling_rate), 1) for side in (h, w))
    return resize(resize(pixels, rows, columns, "area"), h, w, "lanczos")


def shuffle(pixels: Picture, *, seed: int, cell: int) -> Picture:
    """Returns the picture's colours and textures in disorder: each pixel is taken from a smoothly random place.

    The random places are cubic interpolations of uniform numbers `cell` pixels apart, stretched over the whole picture.
    The same seed gives the same disorder as controlnet_aux after numpy.random.seed(seed).
    """
    h, w = pixels.shape[:2]
    numbers = np.random.RandomState(seed)
    x = _noise(numbers, h, w, cell) * (w - 1)
    y = _noise(numbers, h, w, cell) * (h - 1)
    channels = [ndimage.map_coordinates(pixels[..., c].astype(np.float32), (y, x), order=1) for c in range(3)]
    return np.rint(np.stack(channels, -1)).clip(0, 255).astype(np.uint8)


def _noise(numbers: np.random.RandomState, h: int, w: int, cell: int) -> Float[np.ndarray, "h w"]:
    """Returns smooth noise from 0 to 1. Source: `make_noise_disk`, controlnet_aux/util.py."""
    coarse = numbers.uniform(size=(h // cell + 2, w // cell + 2))
    fine = resize(coarse, h + 2 * cell, w + 2 * cell, "cubic")[cell : cell + h, cell : cell + w]
    fine -= fine.min()
    return fine / max(fine.max(), np.finfo(np.float64).tiny)


def recolor_luminance(pixels: Picture, *, gamma_correction: float) -> Picture:
    """Returns the picture in grey: CIE L* from 0 to 255, to the power `gamma_correction`."""
    x = pixels.astype(np.float32) / 255
    linear = np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    y = linear @ _LUMINANCE
    lightness = np.where(y > 0.008856, 1.16 * np.cbrt(y) - 0.16, 9.033 * y)
    return _corrected(np.rint(lightness * 255) / 255, gamma_correction)


def recolor_intensity(pixels: Picture, *, gamma_correction: float) -> Picture:
    """Returns the picture in grey: its largest channel (V of HSV), to the power `gamma_correction`."""
    return _corrected(pixels.max(-1).astype(np.float32) / 255, gamma_correction)


def _corrected(grey: np.ndarray, gamma: float) -> Picture:
    return to_rgb((grey.astype(np.float32) ** np.float32(gamma) * 255).clip(0, 255).astype(np.uint8))


def color_grid(pixels: Picture) -> Picture:
    """Returns the picture in squares of 64 pixels, each of one colour: the hint of T2I-Adapter's colour type."""
    h, w = pixels.shape[:2]
    coarse = resize(pixels, max(h // CELL, 1), max(w // CELL, 1), "cubic")
    rows, columns = (np.arange(new) * old // new for new, old in zip((h, w), coarse.shape))
    return coarse[rows][:, columns]


def inpaint_hint(pixels: Picture, mask: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """Returns the hint of an inpainting ControlNet, float32: p / 255, and -1 where the mask is 128 or more.

    It is no uint8 picture, because -1 is no level. Raises ValueError for a mask of another size or dtype.
    """
    if mask.dtype != np.uint8 or mask.shape != pixels.shape[:2]:
        raise ValueError(f"a mask is uint8 {pixels.shape[:2]} for this picture; got {mask.dtype} {mask.shape}")
    return np.where(mask[..., None] > 127, np.float32(MASKED), pixels.astype(np.float32) / 255)
