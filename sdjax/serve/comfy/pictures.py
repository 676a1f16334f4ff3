"""Pictures that a graph reads, with their opacity."""

import numpy as np
from jaxtyping import UInt8

from sdjax.pictures.opening import open_opacity, open_picture


def with_opacity(data: bytes) -> UInt8[np.ndarray, "h w 4"]:
    """Returns the picture of a file with its opacity as the fourth channel.

    Colours under partial opacity are those of the file, to a rounding; where nothing is seen they are black. Raises
    PictureError, a ValueError, for what is no picture.
    """
    pixels = open_picture(data, background=(0, 0, 0)).pixels
    opacity = np.asarray(open_opacity(data))
    if (opacity < 255).any():  # the picture was laid on black: p = colour * opacity
        share = opacity.astype(np.float32)[..., None] / 255
        pixels = np.clip(np.where(share > 0, pixels / np.where(share > 0, share, 1), 0), 0, 255).astype(np.uint8)
    return np.concatenate([pixels, opacity[..., None].astype(np.uint8)], axis=-1)
