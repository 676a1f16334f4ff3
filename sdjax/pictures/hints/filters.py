"""Filters of arrays that hints are made with: blurring, differences, thinning and resizing, as OpenCV defines them.

Pictures are [h, w] or [h, w, c]. Results agree with OpenCV's up to rounding, because people's ControlNets were trained
on what OpenCV made.
"""

import functools
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import UInt8

from sdjax.pictures import ndimage

if TYPE_CHECKING:
    from scipy import sparse

Method = Literal["area", "linear", "cubic", "lanczos"]

CUBIC = -0.75  # OpenCV's parameter a of the cubic kernel
LOBES = 4  # of OpenCV's Lanczos kernel
LINES = (  # the neighbours along the four directions through a pixel
    np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]], bool),
    np.array([[0, 1, 0], [0, 1, 0], [0, 1, 0]], bool),
    np.eye(3, dtype=bool),
    np.eye(3, dtype=bool)[::-1],
)


def gaussian_blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Returns the array blurred by a Gaussian, in its own dtype: uint8 (rounded) or float32. Borders are mirrored.

    The kernel reaches 3 sigma for uint8 and 4 sigma for float32, and its sum is 1. Source: cv2.GaussianBlur with
    ksize (0, 0).
    """
    reach = 3 if pixels.dtype == np.uint8 else 4
    taps = round(2 * reach * sigma + 1) | 1
    offsets = np.arange(taps) - taps // 2
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    out = pixels.astype(np.float32)
    for axis in (0, 1):
        out = ndimage.correlate1d(out, kernel, axis=axis, mode="mirror")
    return np.rint(out).clip(0, 255).astype(np.uint8) if pixels.dtype == np.uint8 else out


def sobel(pixels: np.ndarray, *, border: str = "mirror") -> tuple[np.ndarray, np.ndarray]:
    """Returns differences along columns and rows, dx and dy, of the array's shape: Sobel's 3x3 kernels.

    Integers give int32, floats float32. `border` is "mirror" (OpenCV's cv2.Sobel) or "nearest" (in cv2.Canny).
    """
    x = pixels.astype(np.float32 if pixels.dtype.kind == "f" else np.int32)
    difference, smooth = [-1, 0, 1], [1, 2, 1]

    def along(first: int, second: int) -> np.ndarray:
        out = ndimage.correlate1d(x, difference, axis=first, mode=border)
        return ndimage.correlate1d(out, smooth, axis=second, mode=border)

    return along(1, 0), along(0, 1)


def thin(grey: UInt8[np.ndarray, "h w"], threshold: float, sigma: float) -> UInt8[np.ndarray, "h w"]:
    """Returns 255 on the ridges of a blurred map above `threshold`, 0 elsewhere.

    A ridge is a pixel that is at least as bright as both neighbours along one of four directions. Source: `nms`,
    controlnet_aux/util.py.
    """
    x = gaussian_blur(grey.astype(np.float32), sigma)
    ridge = np.zeros(x.shape, bool)
    for line in LINES:
        ridge |= ndimage.maximum_filter(x, footprint=line, mode="constant", cval=-np.inf) == x
    return np.where(ridge & (x > threshold), 255, 0).astype(np.uint8)


def resize(array: np.ndarray, height: int, width: int, method: Method) -> np.ndarray:
    """Returns [height, width] or [height, width, c] in the array's dtype: uint8 (rounded) or a float.

    "area" averages what a pixel covers, and is "linear" along a side that grows. The others take 2, 4 and 8 neighbours,
    and skip pixels when they shrink. Border pixels are repeated. Source: cv2.resize.
    """
    if array.shape[:2] == (height, width):
        return array.copy()
    out = array.astype(np.float32 if array.dtype == np.uint8 else array.dtype)
    for side in (height, width):  # columns, then rows: each turn puts the other axis first
        matrix = _matrix(len(out), side, method).astype(out.dtype)
        out = (matrix @ out.reshape(len(out), -1)).reshape(side, *out.shape[1:]).swapaxes(0, 1)
    if array.dtype == np.uint8:
        out = np.rint(out).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(out)


def resize_shorter(pixels: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns the picture with its shorter side near `side`, both sides rounded to multiples of 64.

    Pictures shrink by "area" and grow by "lanczos". Source: `resize_image`, controlnet_aux/util.py.
    """
    scale = side / min(pixels.shape[:2])
    height, width = (max(round(length * scale / 64), 1) * 64 for length in pixels.shape[:2])
    return resize(pixels, height, width, "lanczos" if scale > 1 else "area")


@functools.lru_cache(maxsize=32)
def _matrix(old: int, new: int, method: Method) -> "sparse.csr_array":
    """Returns the weights [new, old] of the old pixels along one side for each new one."""
    if method == "area" and new <= old:
        edges = np.arange(new + 1) * (old / new)
        places = np.floor(edges[:-1, None]) + np.arange(int(np.ceil(old / new)) + 1)
        weights = np.minimum(places + 1, edges[1:, None]) - np.maximum(places, edges[:-1, None])
        weights = np.maximum(weights, 0)
    else:
        kernel, reach = _KERNELS["linear" if method == "area" else method]
        centres = (np.arange(new)[:, None] + 0.5) * (old / new) - 0.5
        places = np.floor(centres) + np.arange(1 - reach, reach + 1)
        weights = kernel(centres - places)
    weights /= weights.sum(1, keepdims=True)
    rows = np.repeat(np.arange(new), places.shape[1])
    columns = np.clip(places, 0, old - 1).astype(int).ravel()
    from scipy import sparse  # here, as it takes long to import

    return sparse.csr_array((weights.ravel(), (rows, columns)), shape=(new, old))  # repeated places are added


def _linear(t: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(t), 0)


def _cubic(t: np.ndarray) -> np.ndarray:
    t = np.abs(t)
    near = ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1
    far = ((CUBIC * t - 5 * CUBIC) * t + 8 * CUBIC) * t - 4 * CUBIC
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def _lanczos(t: np.ndarray) -> np.ndarray:
    return np.where(np.abs(t) < LOBES, np.sinc(t) * np.sinc(t / LOBES), 0)


_KERNELS = {"linear": (_linear, 1), "cubic": (_cubic, 2), "lanczos": (_lanczos, LOBES)}
