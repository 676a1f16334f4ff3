"""Pictures from outside: opened by one function that trusts nothing, listed, resized, padded, cropped and blended.

`sdjax.pictures.image` is the way out: floats of a model to pixels, and PNG files. No JAX in here.
"""

from sdjax.pictures.geometry import (
    MAX_FEATHER,
    METHODS,
    Box,
    composite,
    crop_around,
    expand,
    pad_to,
    paste,
    resize,
    round_size,
)
from sdjax.pictures.listing import find_map, find_mask, list_pictures
from sdjax.pictures.notice import notice
from sdjax.pictures.opening import Map, Mask, Picture, open_map, open_mask, open_picture
from sdjax.pictures.samples import MAX_BYTES, MAX_PIXELS, PictureError

__all__ = [
    "MAX_BYTES", "MAX_FEATHER", "MAX_PIXELS", "METHODS", "Box", "Map", "Mask", "Picture", "PictureError", "composite",
    "crop_around", "expand", "find_map", "find_mask", "list_pictures", "notice", "open_map", "open_mask",
    "open_picture", "pad_to", "paste", "resize", "round_size",
]  # fmt: skip
