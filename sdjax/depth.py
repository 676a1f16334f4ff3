"""Depth to image: pictures with the shapes of another one, seen by a network that is told how far everything is.

Source: Stability-AI/stablediffusion, scripts/gradio/depth2img.py and ldm/data/util.py (AddMiDaS); T47 to T49.
"""

import numpy as np

from sdjax.resize import resize

CONSTANT = 4e-6  # relative spread up to which a map has one depth: what float32 makes of a flat one when it is resized


def prepare_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns depth [b, h, w, 1] as the UNet sees it: bicubic to `size`, then each picture's own from -1 to 1.

    2 (d - min) / (max - min) - 1, after resizing (T48). A map of one depth only is -1 everywhere: what training's
    formula, with 0.001 more below the fraction, makes of it, where the reference's sampling divides 0 by 0.
    """
    depth = resize(np.asarray(depth, np.float32), size, method="bicubic")
    low, high = depth.min((1, 2, 3), keepdims=True), depth.max((1, 2, 3), keepdims=True)
    spread = high - low
    flat = spread <= CONSTANT * np.maximum(np.abs(low), np.abs(high))
    return np.where(flat, np.float32(-1), 2 * (depth - low) / np.where(flat, 1, spread) - 1).astype(np.float32)
