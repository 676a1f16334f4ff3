"""Fills a masked part of a picture with the colours around it."""

import numpy as np


def filled(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the picture, uint8 [h, w, 3], with the part where the mask [h, w] is true filled smoothly.

    Means of known pixels are pulled to smaller and smaller pictures, and what is unknown is pushed back from there
    (Gortler et al. 1996, "The lumigraph", section 3.4: pull-push). A picture that is all mask comes back as it is.
    """
    if mask.all() or not mask.any():
        return picture
    known = (~mask)[..., None].astype(np.float32)
    colours = _pulled(picture.astype(np.float32) * known, known)
    return np.where(mask[..., None], np.clip(np.rint(colours), 0, 255), picture).astype(np.uint8)


def _pulled(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns colours where `weights` has any, and those of the half-sized picture elsewhere."""
    height, width = weights.shape[:2]
    own = sums / np.maximum(weights, 1e-6)
    if height == width == 1:
        return own
    smaller = [_halved(one) for one in (sums, weights)]
    scale = np.maximum(smaller[1], 1.0)  # a weight is at most 1
    below = _pulled(smaller[0] / scale, smaller[1] / scale)
    grown = below.repeat(2, 0).repeat(2, 1)[:height, :width]
    return weights * own + (1 - weights) * grown


def _halved(array: np.ndarray) -> np.ndarray:
    """Returns the sums of 2 x 2 entries; a missing row or column counts as zeros."""
    height, width = array.shape[:2]
    padded = np.pad(array, ((0, height % 2), (0, width % 2), (0, 0)))
    return padded.reshape(-(-height // 2), 2, -(-width // 2), 2, -1).sum((1, 3))
