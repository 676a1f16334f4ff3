"""Hints of lines, without weights: white lines on black, uint8 [h, w, 3], from a picture uint8 [h, w, 3].

Sources: cv2.Canny; controlnet_aux/lineart_standard; sd-webui-controlnet's `scribble_xdog`. The gradient's soft edges
are sdjax's own, for people without the files of HED.
"""

import numpy as np
from jaxtyping import Int, UInt8

from sdjax.pictures import ndimage
from sdjax.pictures.hints.filters import gaussian_blur, sobel, thin

Picture = UInt8[np.ndarray, "h w 3"]
Grey = UInt8[np.ndarray, "h w"]

TAN_22, SHIFT = 13573, 15  # tan(22.5 degrees) as a whole number of 2^-15, as OpenCV compares directions
PEN = 3.0  # pixels: the blur that makes a scribble of a thin line
FAINT = 4  # levels of the blurred line that are still drawn
PERCENTILE = 99.0  # of the gradient, which is drawn white


def to_rgb(grey: Grey) -> Picture:
    """Returns a grey picture [h, w] in three channels."""
    return np.repeat(grey[..., None], 3, axis=-1)


def canny(pixels: Picture, *, low_threshold: float, high_threshold: float) -> Picture:
    """Returns Canny's edges: lines one pixel wide where the gradient is above `high_threshold`, followed to `low`.

    The gradient is |dx| + |dy| by Sobel's kernels, of the channel where it is largest. Source: cv2.Canny with an
    aperture of 3 and without L2gradient.
    """
    low, high = (int(np.floor(value)) for value in sorted((low_threshold, high_threshold)))
    dx, dy = sobel(pixels, border="nearest")
    size = np.abs(dx) + np.abs(dy)
    channel = size.argmax(-1)[..., None]
    dx, dy, size = (np.take_along_axis(a, channel, -1)[..., 0] for a in (dx, dy, size))
    edges = _is_ridge(dx, dy, size) & (size > low)
    parts, _ = ndimage.label(edges, np.ones((3, 3)))
    strong = np.unique(parts[edges & (size > high)])
    return to_rgb(np.where(np.isin(parts, strong[strong > 0]), 255, 0).astype(np.uint8))


def _is_ridge(dx: Int[np.ndarray, "h w"], dy: Int[np.ndarray, "h w"], size: Int[np.ndarray, "h w"]) -> np.ndarray:
    """Returns where the gradient is largest along its own direction, which is rounded to one of four."""
    x, y = np.abs(dx).astype(np.int64), np.abs(dy).astype(np.int64) << SHIFT
    flat = y < x * TAN_22
    steep = y > x * TAN_22 + (x << (SHIFT + 1))
    around = np.pad(size, 1)
    h, w = size.shape

    def shifted(down: int, right: int) -> np.ndarray:
        return around[1 + down : 1 + down + h, 1 + right : 1 + right + w]

    falling = (dx ^ dy) < 0  # the gradient points up right or down left
    before = np.where(falling, shifted(-1, 1), shifted(-1, -1))
    after = np.where(falling, shifted(1, -1), shifted(1, 1))
    across = (size > before) & (size > after)
    across = np.where(flat, (size > shifted(0, -1)) & (size >= shifted(0, 1)), across)
    return np.where(steep & ~flat, (size > shifted(-1, 0)) & (size >= shifted(1, 0)), across)


def softedge_gradient(pixels: Picture, *, sigma: float) -> Picture:
    """Returns the length of the gradient of the blurred picture: wide soft edges.

    The gradient is of the channel where it is longest. Its 99th percentile is white, or, in flat pictures, a step of 16
    levels.
    """
    dx, dy = sobel(gaussian_blur(pixels.astype(np.float32), sigma))
    length = np.hypot(dx, dy).max(-1)
    step = 16 * 4 / (np.sqrt(2 * np.pi) * max(sigma, 0.5))  # a step of 16 levels, blurred, through a kernel of gain 8/2
    white = max(float(np.percentile(length, PERCENTILE)), step)
    return to_rgb((length * np.float32(255 / white)).clip(0, 255).astype(np.uint8))


def scribble_gradient(pixels: Picture, *, sigma: float, threshold: float) -> Picture:
    """Returns a scribble: the soft edges of the gradient above `threshold`, thinned and drawn with a thick pen."""
    return to_rgb(scribble_of(softedge_gradient(pixels, sigma=sigma)[..., 0], threshold))


def scribble_of(soft: Grey, threshold: float) -> Grey:
    """Returns the scribble of soft edges: ridges above `threshold`, drawn some pixels wide, 255 on 0.

    Source: HEDdetector with scribble=True, controlnet_aux/hed.
    """
    return np.where(gaussian_blur(thin(soft, threshold, PEN), PEN) > FAINT, 255, 0).astype(np.uint8)


def scribble_xdog(pixels: Picture, *, threshold: float) -> Picture:
    """Returns a scribble by a difference of Gaussians (sigma 0.5 and 5): white where twice it is above `threshold`."""
    x = pixels.astype(np.float32)
    darker = (gaussian_blur(x, 5.0) - gaussian_blur(x, 0.5)).min(-1)
    lines = 255 - (255 - darker).clip(0, 255).astype(np.uint8).astype(np.int32)
    return to_rgb(np.where(2 * lines > threshold, 255, 0).astype(np.uint8))


def lineart_standard(pixels: Picture, *, sigma: float, threshold: float) -> Picture:
    """Returns dark lines of the picture as white on black: what is darker than its blurred surroundings.

    Differences above `threshold` levels set the scale: their median, at least 16, is drawn at 127. Source:
    controlnet_aux/lineart_standard.
    """
    x = pixels.astype(np.float32)
    darker = (gaussian_blur(x, sigma) - x).min(-1).clip(0, 255)
    clear = darker[darker > threshold]
    scale = max(16.0, float(np.median(clear)) if clear.size else 0.0)
    return to_rgb((darker / np.float32(scale) * 127).clip(0, 255).astype(np.uint8))
