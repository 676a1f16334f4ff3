"""Opens, lists, resizes, pads, crops and blends pictures. Files are not trusted.

`sdjax.pictures.image` converts a model's floats to pixels and writes PNG files. Nothing here imports JAX.
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
from sdjax.pictures.opening import Map, Mask, Picture, open_map, open_mask, open_opacity, open_picture, read_file
from sdjax.pictures.samples import MAX_BYTES, MAX_PIXELS, PictureError

__all__ = [
    "MAX_BYTES", "MAX_FEATHER", "MAX_PIXELS", "METHODS", "Box", "Map", "Mask", "Picture", "PictureError", "composite",
    "crop_around", "expand", "find_map", "find_mask", "list_pictures", "notice", "open_map", "open_mask",
    "open_opacity", "open_picture", "pad_to", "paste", "read_file", "resize", "round_size",
]  # fmt: skip
