"""Nodes that make, change and join masks."""

import numpy as np

from sdjax.serve.comfy.definitions import choice, link, node, real, switch, whole
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.nodes.latents import checked, fitted_mask
from sdjax.serve.comfy.values import Images, Masks

MASK = link("mask", "MASK")
CHANNELS = ("red", "green", "blue", "alpha")
OPERATIONS = ("multiply", "add", "subtract", "and", "or", "xor")
SIDES = ("left", "top", "right", "bottom")


@node("MaskToImage", "mask", (MASK,), ("IMAGE",), title="Convert Mask to Image")
def to_image(run: Run, mask: Masks) -> tuple[Images]:
    """Shows a mask as a grey picture."""
    return (np.repeat(mask[..., None], 3, axis=-1).astype(np.float32),)


@node(
    "ImageToMask",
    "mask",
    (link("image", "IMAGE"), choice("channel", CHANNELS)),
    ("MASK",),
    title="Convert Image to Mask",
)
def from_image(run: Run, image: Images, channel: str) -> tuple[Masks]:
    """Takes a channel of a picture as a mask."""
    number = CHANNELS.index(channel)
    if number >= image.shape[-1]:
        return (np.ones(image.shape[:3], np.float32),)
    return (image[..., number],)


@node("ImageColorToMask", "mask", (link("image", "IMAGE"), whole("color", 0, 0, 0xFFFFFF)), ("MASK",))
def from_colour(run: Run, image: Images, color: int) -> tuple[Masks]:
    """Selects the pixels of one colour, given as a number 0xRRGGBB."""
    levels = np.clip(np.rint(image * 255), 0, 255).astype(np.int64)
    packed = (levels[..., 0] << 16) + (levels[..., 1] << 8) + levels[..., 2]
    return ((packed == color).astype(np.float32),)


@node("SolidMask", "mask", (real("value", 1.0), whole("width", 512, 1), whole("height", 512, 1)), ("MASK",))
def solid(run: Run, value: float, width: int, height: int) -> tuple[Masks]:
    """Makes a mask of one value."""
    return (np.full(checked((1, height, width)), value, np.float32),)


@node("InvertMask", "mask", (MASK,), ("MASK",))
def invert(run: Run, mask: Masks) -> tuple[Masks]:
    """Inverts a mask."""
    return (1 - mask,)


@node(
    "CropMask", "mask", (MASK, whole("x", 0), whole("y", 0), whole("width", 512, 1), whole("height", 512, 1)), ("MASK",)
)
def crop(run: Run, mask: Masks, x: int, y: int, width: int, height: int) -> tuple[Masks]:
    """Cuts a rectangle out of a mask."""
    x, y = min(x, mask.shape[2] - 1), min(y, mask.shape[1] - 1)
    return (mask[:, y : y + height, x : x + width],)


@node(
    "MaskComposite", "mask", (link("destination", "MASK"), link("source", "MASK"), whole("x", 0), whole("y", 0),
    choice("operation", OPERATIONS)), ("MASK",),
)  # fmt: skip
def composite(run: Run, destination: Masks, source: Masks, x: int, y: int, operation: str) -> tuple[Masks]:
    """Joins two masks by an operation."""
    out = destination.copy()
    height, width = min(source.shape[1], out.shape[1] - y), min(source.shape[2], out.shape[2] - x)
    if height <= 0 or width <= 0:
        return (out,)
    a = out[:, y : y + height, x : x + width]
    b = source[np.arange(len(out)) % len(source), :height, :width]
    yes, other = np.round(a).astype(bool), np.round(b).astype(bool)
    made = {
        "multiply": a * b, "add": a + b, "subtract": a - b, "and": yes & other, "or": yes | other, "xor": yes ^ other,
    }[operation]  # fmt: skip
    out[:, y : y + height, x : x + width] = made
    return (np.clip(out, 0, 1).astype(np.float32),)


@node("FeatherMask", "mask", (MASK, *(whole(side, 0) for side in SIDES)), ("MASK",))
def feather(run: Run, mask: Masks, left: int, top: int, right: int, bottom: int) -> tuple[Masks]:
    """Lets a mask fade at its edges."""
    h, w = mask.shape[1:]
    rows, columns = np.ones(h, np.float32), np.ones(w, np.float32)
    for weights, length, first, last in (rows, h, top, bottom), (columns, w, left, right):
        before, behind = min(first, length), min(last, length)
        weights[:before] *= (np.arange(before) + 1) / max(before, 1)
        weights[length - behind :] *= (np.arange(behind)[::-1] + 1) / max(behind, 1)
    return ((mask * rows[:, None] * columns).astype(np.float32),)


@node("GrowMask", "mask", (MASK, whole("expand", 0, -1024, 1024), switch("tapered_corners", True)), ("MASK",))
def grow(run: Run, mask: Masks, expand: int, tapered_corners: bool) -> tuple[Masks]:
    """Grows a mask by some pixels, or shrinks it."""
    out = np.asarray(mask, np.float32)
    choose = np.maximum if expand > 0 else np.minimum
    for _ in range(min(abs(expand), max(mask.shape[1:]))):
        padded = np.pad(out, ((0, 0), (1, 1), (1, 1)), mode="edge")
        h, w = out.shape[1:]
        for dy in range(3):
            for dx in range(3):
                if not tapered_corners or dy == 1 or dx == 1:
                    out = choose(out, padded[:, dy : dy + h, dx : dx + w])
    return (out,)


@node("ThresholdMask", "mask", (MASK, real("value", 0.5)), ("MASK",))
def threshold(run: Run, mask: Masks, value: float) -> tuple[Masks]:
    """Selects where a mask is above a value."""
    return ((mask > value).astype(np.float32),)


@node("JoinImageWithAlpha", "mask/compositing", (link("image", "IMAGE"), link("alpha", "MASK")), ("IMAGE",))
def join_alpha(run: Run, image: Images, alpha: Masks) -> tuple[Images]:
    """Adds a mask to a picture as its transparency: white is transparent."""
    small = fitted_mask(alpha, *image.shape[1:3])
    own = small[np.arange(len(image)) % len(small), ..., None]
    return (np.concatenate([image[..., :3], 1 - own], axis=-1),)


@node("SplitImageWithAlpha", "mask/compositing", (link("image", "IMAGE"),), ("IMAGE", "MASK"))
def split_alpha(run: Run, image: Images) -> tuple[Images, Masks]:
    """Takes the transparency of a picture as a mask."""
    alpha = image[..., 3] if image.shape[-1] > 3 else np.ones(image.shape[:3], np.float32)
    return image[..., :3], 1 - alpha
