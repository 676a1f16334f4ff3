"""Nodes that read pictures."""

import numpy as np

from sdjax.serve.comfy.definitions import choice, file, node, whole
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.nodes.latents import checked
from sdjax.serve.comfy.values import Images, Masks

CHANNELS = ("alpha", "red", "green", "blue")


@node("LoadImage", "image", (file("image", "input", upload=True),), ("IMAGE", "MASK"), title="Load Image")
def load(run: Run, image: str) -> tuple[Images, Masks]:
    """Reads a picture; the mask is 1 where it is transparent."""
    pixels = run.host.picture(image).astype(np.float32) / 255
    opacity = pixels[..., 3]
    mask = np.zeros((64, 64), np.float32) if (opacity == 1).all() else 1 - opacity
    return pixels[None, ..., :3], mask[None]


@node(
    "LoadImageMask", "mask", (file("image", "input", upload=True), choice("channel", CHANNELS)), ("MASK",),
    title="Load Image (as Mask)",
)  # fmt: skip
def load_mask(run: Run, image: str, channel: str) -> tuple[Masks]:
    """Reads one channel of a picture as a mask; the transparency is inverted."""
    pixels = run.host.picture(image).astype(np.float32) / 255
    if channel == "alpha":
        return (1 - pixels[None, ..., 3],)
    return (pixels[None, ..., CHANNELS.index(channel) - 1],)


@node(
    "EmptyImage", "image", (whole("width", 512, 1), whole("height", 512, 1), whole("batch_size", 1, 1, 4096),
    whole("color", 0, 0, 0xFFFFFF)), ("IMAGE",),
)  # fmt: skip
def empty(run: Run, width: int, height: int, batch_size: int, color: int) -> tuple[Images]:
    """Makes pictures of one colour, given as a number 0xRRGGBB."""
    levels = np.array([color >> 16, color >> 8 & 255, color & 255], np.float32) / 255
    return (np.broadcast_to(levels, checked((batch_size, height, width, 3))).copy(),)
