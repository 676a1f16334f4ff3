"""Nodes that resize, cut, pad, mix and enlarge pictures."""

import functools

import numpy as np

from sdjax.convert.parts.esrgan import LoadedESRGAN
from sdjax.pipeline.enlarging import TILE, enlarge_image
from sdjax.serve.comfy.definitions import choice, file, link, node, real, switch, whole
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.nodes.latents import checked, pasted
from sdjax.serve.comfy.resizing import CROPS, METHODS, upscale
from sdjax.serve.comfy.values import Images, Masks
from sdjax.tasks.enlarge import read_upscaler

IMAGE = link("image", "IMAGE")
BLENDS = ("normal", "multiply", "screen", "overlay", "soft_light", "difference")
GREY = 0.5


@node(
    "ImageScale", "image/upscaling",
    (IMAGE, choice("upscale_method", METHODS), whole("width", 512), whole("height", 512), choice("crop", CROPS)),
    ("IMAGE",), title="Upscale Image",
)  # fmt: skip
def scale(run: Run, image: Images, upscale_method: str, width: int, height: int, crop: str) -> tuple[Images]:
    """Resizes pictures; a side of 0 follows the other one."""
    if width == 0 and height == 0:
        return (image,)
    h, w = image.shape[1:3]
    width, height = width or max(1, round(w * height / h)), height or max(1, round(h * width / w))
    return (_resized(image, height, width, upscale_method, crop),)


@node(
    "ImageScaleBy", "image/upscaling", (IMAGE, choice("upscale_method", METHODS), real("scale_by", 1.0, 0.01, 8.0)),
    ("IMAGE",), title="Upscale Image By",
)  # fmt: skip
def scale_by(run: Run, image: Images, upscale_method: str, scale_by: float) -> tuple[Images]:
    """Resizes pictures by a factor."""
    h, w = (max(1, round(side * scale_by)) for side in image.shape[1:3])
    return (_resized(image, h, w, upscale_method),)


@node(
    "ImageScaleToTotalPixels", "image/upscaling",
    (IMAGE, choice("upscale_method", METHODS), real("megapixels", 1.0, 0.01, 16.0)), ("IMAGE",),
)  # fmt: skip
def scale_to_pixels(run: Run, image: Images, upscale_method: str, megapixels: float) -> tuple[Images]:
    """Resizes pictures to a number of pixels, in units of 1024 x 1024."""
    share = (megapixels * 1024 * 1024 / (image.shape[1] * image.shape[2])) ** 0.5
    return (
        _resized(image, max(1, round(image.shape[1] * share)), max(1, round(image.shape[2] * share)), upscale_method),
    )


def _resized(image: Images, height: int, width: int, method: str, crop: str = "disabled") -> Images:
    checked((len(image), height, width, 3))
    return (
        np.clip(upscale(image, height, width, method, crop), 0, 1)
        if method == "bicubic"
        else upscale(image, height, width, method, crop)
    )


@node(
    "ImageCrop", "image/transform",
    (IMAGE, whole("width", 512, 1), whole("height", 512, 1), whole("x", 0), whole("y", 0)), ("IMAGE",),
    title="Image Crop",
)  # fmt: skip
def crop(run: Run, image: Images, width: int, height: int, x: int, y: int) -> tuple[Images]:
    """Cuts a rectangle out of pictures."""
    x, y = min(x, image.shape[2] - 1), min(y, image.shape[1] - 1)
    return (image[:, y : y + height, x : x + width],)


@node(
    "ImagePadForOutpaint", "image",
    (IMAGE, *(whole(side, 0, step=8) for side in ("left", "top", "right", "bottom")), whole("feathering", 40)),
    ("IMAGE", "MASK"), title="Pad Image for Outpainting",
)  # fmt: skip
def pad(run: Run, image: Images, left: int, top: int, right: int, bottom: int, feathering: int) -> tuple[Images, Masks]:
    """Adds grey margins, and a mask of them that fades into the picture."""
    b, h, w, _ = image.shape
    shape = checked((b, h + top + bottom, w + left + right, 3))
    made = np.full(shape, GREY, np.float32)
    made[:, top : top + h, left : left + w] = image
    mask = np.ones(shape[1:3], np.float32)
    mask[top : top + h, left : left + w] = _fade(h, w, (left, top, right, bottom), feathering)
    return made, mask[None]


def _fade(h: int, w: int, sides: tuple[int, int, int, int], feathering: int) -> np.ndarray:
    """Returns the mask over the old picture: falling with the square of the distance from padded edges."""
    if feathering == 0 or feathering * 2 >= h or feathering * 2 >= w:
        return np.zeros((h, w), np.float32)
    left, top, right, bottom = sides
    y, x = np.arange(h)[:, None], np.arange(w)
    distances = [
        x if left else np.full(w, w), y if top else np.full((h, 1), h),
        w - x if right else np.full(w, w), h - y if bottom else np.full((h, 1), h),
    ]  # fmt: skip
    nearest = np.minimum(np.minimum(distances[0], distances[2]), np.minimum(distances[1], distances[3]))
    share = np.clip((feathering - nearest) / feathering, 0, None)
    return np.where(nearest >= feathering, 0, share**2).astype(np.float32)


@node("ImageInvert", "image", (IMAGE,), ("IMAGE",), title="Invert Image")
def invert(run: Run, image: Images) -> tuple[Images]:
    """Inverts the colours."""
    return (1 - image,)


@node("ImageBatch", "image", (link("image1", "IMAGE"), link("image2", "IMAGE")), ("IMAGE",), title="Batch Images")
def batch(run: Run, image1: Images, image2: Images) -> tuple[Images]:
    """Joins two batches; the second one is brought to the size of the first."""
    if image1.shape[1:3] != image2.shape[1:3]:
        image2 = upscale(image2, image1.shape[1], image1.shape[2], "bilinear", "center")
    return (np.concatenate([image1, image2]),)


@node(
    "ImageFromBatch", "image/batch", (IMAGE, whole("batch_index", 0, 0, 4095), whole("length", 1, 1, 4096)), ("IMAGE",)
)
def from_batch(run: Run, image: Images, batch_index: int, length: int) -> tuple[Images]:
    """Takes some pictures of a batch."""
    first = min(len(image) - 1, batch_index)
    return (image[first : first + length],)


@node("RepeatImageBatch", "image/batch", (IMAGE, whole("amount", 1, 1, 4096)), ("IMAGE",))
def repeat(run: Run, image: Images, amount: int) -> tuple[Images]:
    """Repeats a batch."""
    checked((amount * len(image), *image.shape[1:]))
    return (np.tile(image, (amount, 1, 1, 1)),)


@node(
    "ImageCompositeMasked", "image",
    (link("destination", "IMAGE"), link("source", "IMAGE"), whole("x", 0), whole("y", 0),
     switch("resize_source", False), link("mask", "MASK", optional=True)), ("IMAGE",),
)  # fmt: skip
def composite(
    run: Run, destination: Images, source: Images, x: int, y: int, resize_source: bool, mask: Masks | None = None
) -> tuple[Images]:
    """Puts one picture on another where a mask is white."""
    return (pasted(destination, source, x, y, mask, resize_source),)


@node(
    "ImageBlend", "image/postprocessing",
    (link("image1", "IMAGE"), link("image2", "IMAGE"), real("blend_factor", 0.5), choice("blend_mode", BLENDS)),
    ("IMAGE",), title="Image Blend",
)  # fmt: skip
def blend(run: Run, image1: Images, image2: Images, blend_factor: float, blend_mode: str) -> tuple[Images]:
    """Mixes two pictures; `blend_factor` is the share of the mixture by a mode."""
    a, b = image1, image2
    if a.shape[1:] != b.shape[1:]:
        b = upscale(b, a.shape[1], a.shape[2], "bicubic", "center")
    b = b[np.arange(len(a)) % len(b)]
    made = {
        "normal": lambda: b,
        "multiply": lambda: a * b,
        "screen": lambda: 1 - (1 - a) * (1 - b),
        "overlay": lambda: np.where(a <= 0.5, 2 * a * b, 1 - 2 * (1 - a) * (1 - b)),
        "soft_light": lambda: np.where(b <= 0.5, a - (1 - 2 * b) * a * (1 - a), a + (2 * b - 1) * (_lightened(a) - a)),
        "difference": lambda: a - b,
    }[blend_mode]()
    return (np.clip(a * (1 - blend_factor) + made * blend_factor, 0, 1).astype(np.float32),)


def _lightened(a: np.ndarray) -> np.ndarray:
    return np.where(a <= 0.25, ((16 * a - 12) * a + 4) * a, np.sqrt(np.maximum(a, 0)))


@node(
    "UpscaleModelLoader", "loaders", (file("model_name", "upscaler"),), ("UPSCALE_MODEL",), title="Load Upscale Model"
)
def load_upscaler(run: Run, model_name: str) -> tuple[LoadedESRGAN]:
    """Reads an upscaler of the ESRGAN family."""
    return (read_upscaler(str(run.host.file("upscaler", model_name))),)


@node(
    "ImageUpscaleWithModel", "image/upscaling", (link("upscale_model", "UPSCALE_MODEL"), IMAGE), ("IMAGE",),
    title="Upscale Image (using Model)",
)  # fmt: skip
def upscale_with_model(run: Run, upscale_model: LoadedESRGAN, image: Images) -> tuple[Images]:
    """Enlarges pictures by an upscaler."""
    times = upscale_model.config.times
    checked((len(image), image.shape[1] * times, image.shape[2] * times, 3))
    made: list[np.ndarray] = []
    for one in image:
        run.progress(len(made), len(image))
        pixels = np.asarray(one, np.float32)
        made.append(run.host.call(functools.partial(enlarge_image, upscale_model, pixels, tile=TILE)))
    return (np.clip(np.stack(made), 0, 1).astype(np.float32),)
