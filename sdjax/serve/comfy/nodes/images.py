"""Nodes that read pictures."""

import numpy as np

from sdjax.pictures.opening import open_opacity, open_picture
from sdjax.serve.comfy.definitions import choice, file, node, whole
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.nodes.latents import checked
from sdjax.serve.comfy.values import Images, Masks

CHANNELS = ("alpha", "red", "green", "blue")


@node("LoadImage", "image", (file("image", "input", upload=True),), ("IMAGE", "MASK"), title="Load Image")
def load(run: Run, image: str) -> tuple[Images, Masks]:
    """Reads a picture; the mask is 1 where it is transparent."""
    data = run.host.picture(image)
    pixels = open_picture(data, background=(0, 0, 0)).pixels
    opacity = open_opacity(data)
    mask = np.zeros((64, 64)) if (opacity == 255).all() else 1 - opacity.astype(np.float32) / 255
    if (opacity < 255).any():
        pixels = _without_background(data, pixels, opacity)
    return pixels[None].astype(np.float32) / 255, mask[None].astype(np.float32)


def _without_background(data: bytes, pixels: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Returns the colours under transparency, which ComfyUI keeps: those before the picture was laid on black.

    p = colour * opacity, so colour = p / opacity; where nothing is seen, the colour is not known and stays black.
    """
    share = opacity.astype(np.float32)[..., None] / 255
    return np.clip(np.where(share > 0, pixels / np.where(share > 0, share, 1), 0), 0, 255)


@node(
    "LoadImageMask", "mask", (file("image", "input", upload=True), choice("channel", CHANNELS)), ("MASK",),
    title="Load Image (as Mask)",
)  # fmt: skip
def load_mask(run: Run, image: str, channel: str) -> tuple[Masks]:
    """Reads one channel of a picture as a mask; the transparency is inverted."""
    data = run.host.picture(image)
    if channel == "alpha":
        return (1 - open_opacity(data)[None].astype(np.float32) / 255,)
    pixels = open_picture(data, background=(0, 0, 0)).pixels
    return (pixels[None, ..., CHANNELS.index(channel) - 1].astype(np.float32) / 255,)


@node(
    "EmptyImage", "image", (whole("width", 512, 1), whole("height", 512, 1), whole("batch_size", 1, 1, 4096),
    whole("color", 0, 0, 0xFFFFFF)), ("IMAGE",),
)  # fmt: skip
def empty(run: Run, width: int, height: int, batch_size: int, color: int) -> tuple[Images]:
    """Makes pictures of one colour, given as a number 0xRRGGBB."""
    levels = np.array([color >> 16, color >> 8 & 255, color & 255], np.float32) / 255
    return (np.broadcast_to(levels, checked((batch_size, height, width, 3))).copy(),)
