"""Variations of starting noise: a mixture with another seed's noise, and noise of another picture size.

Source: AUTOMATIC1111's variation seed and "resize seed from" (modules/rng.py).
"""

import numpy as np
from jaxtyping import Float

CLOSE = 0.9995  # mean cosine above which the mixture is linear


def mix(
    noise: Float[np.ndarray, "c h w"], other: Float[np.ndarray, "c h w"], strength: float
) -> Float[np.ndarray, "c h w"]:
    """Returns noise on the arc from `noise` (strength 0) to `other` (strength 1).

    With a the angle between the two: sin((1 - s) a) / sin(a) noise + sin(s a) / sin(a) other. There is one angle for
    each channel and column, between vectors along the height. If the two are almost parallel on average, the result is
    s noise + (1 - s) other: the ends are exchanged, as in AUTOMATIC1111.
    """
    cosine = np.sum(_unit(noise) * _unit(other), axis=1, keepdims=True, dtype=np.float64)
    if cosine.mean() > CLOSE:
        return (strength * noise + (1 - strength) * other).astype(noise.dtype)
    angle = np.arccos(np.clip(cosine, -1, 1))
    sine = np.sin(angle)
    mixed = np.sin((1 - strength) * angle) / sine * noise + np.sin(strength * angle) / sine * other
    return mixed.astype(noise.dtype)


def _unit(noise: np.ndarray) -> np.ndarray:
    return noise / np.linalg.norm(noise, axis=1, keepdims=True)


def put_in_middle(
    noise: Float[np.ndarray, "c h w"], around: Float[np.ndarray, "c h2 w2"]
) -> Float[np.ndarray, "c h2 w2"]:
    """Returns `around` with `noise` in its middle. What does not fit is cut off on both sides."""
    out = around.copy()
    inner, outer = [], []
    for own, whole in zip(noise.shape[1:], around.shape[1:], strict=True):
        offset = (whole - own) // 2
        size = own if offset >= 0 else own + 2 * offset
        outer.append(slice(max(offset, 0), max(offset, 0) + size))
        inner.append(slice(max(-offset, 0), max(-offset, 0) + size))
    out[:, *outer] = noise[:, *inner]
    return out
