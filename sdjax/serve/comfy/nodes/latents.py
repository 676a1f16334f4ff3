"""Nodes that make, encode, decode, move, mix and choose latents."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from sdjax.nn.layers.interpolation import interpolate
from sdjax.serve.comfy.definitions import choice, link, node, real, switch, whole
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.resizing import CROPS, LATENT_METHODS, upscale
from sdjax.serve.comfy.values import Conditioning, Images, Latent, Masks, Vae

MOST_PICTURES = 256
MOST_NUMBERS = 2**28  # of a latent or a batch of pictures
SAMPLES, PIXELS, VAE = link("samples", "LATENT"), link("pixels", "IMAGE"), link("vae", "VAE")
ROTATIONS = ("none", "90 degrees", "180 degrees", "270 degrees")
FLIPS = ("x-axis: vertically", "y-axis: horizontally")


@node(
    "EmptyLatentImage", "latent",
    (dataclasses.replace(whole("width", 512, 16, step=8)), whole("height", 512, 16, step=8),
     whole("batch_size", 1, 1, MOST_PICTURES)), ("LATENT",), title="Empty Latent Image",
)  # fmt: skip
def empty(run: Run, width: int, height: int, batch_size: int) -> tuple[Latent]:
    """Makes latents of zeros, to be filled by a sampler."""
    return (Latent(np.zeros(checked((batch_size, height // 8, width // 8, 4)), np.float32)),)


def checked(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a shape. Raises ValueError if it is too large."""
    if np.prod([float(side) for side in shape]) > MOST_NUMBERS:
        raise ValueError(f"a batch has at most {MOST_NUMBERS} numbers; got {' x '.join(map(str, shape))}")
    return shape


def cropped(pixels: Images) -> Images:
    """Returns pictures cut to multiples of 8, in the middle."""
    h, w = (side // 8 * 8 for side in pixels.shape[1:3])
    if not h or not w:
        raise ValueError(f"a picture is at least 8 x 8 pixels; got {pixels.shape[2]} x {pixels.shape[1]}")
    top, left = (pixels.shape[1] % 8) // 2, (pixels.shape[2] % 8) // 2
    return pixels[:, top : top + h, left : left + w, :3]


def encoded(vae: Vae, pixels: Images) -> np.ndarray:
    """Returns the latents of pictures in [0, 1]: the mean of the posterior."""
    pixels = cropped(pixels)
    image = pixels.astype(np.float32) * 2 - 1
    return np.concatenate([np.asarray(vae.of.encode_image(jnp.asarray(one[None]))) for one in image])


@node("VAEEncode", "latent", (PIXELS, VAE), ("LATENT",), title="VAE Encode")
def encode(run: Run, pixels: Images, vae: Vae) -> tuple[Latent]:
    """Encodes pictures."""
    return (Latent(encoded(vae, pixels)),)


TILES = (
    whole("tile_size", 512, 64, 4096, 64), whole("overlap", 64, 0, 4096, 32),
    whole("temporal_size", 64, 8, 4096, 4), whole("temporal_overlap", 8, 4, 4096, 4),
)  # fmt: skip


@node("VAEEncodeTiled", "_for_testing", (PIXELS, VAE, *TILES), ("LATENT",), title="VAE Encode (Tiled)")
def encode_tiled(
    run: Run, pixels: Images, vae: Vae, tile_size: int, overlap: int, temporal_size: int, temporal_overlap: int
) -> tuple[Latent]:
    """Encodes pictures. Large ones are always computed in bands, which are exact, so the sizes have no effect."""
    return encode(run, pixels, vae)


@node(
    "VAEEncodeForInpaint", "latent/inpaint", (PIXELS, VAE, link("mask", "MASK"), whole("grow_mask_by", 6, 0, 64)),
    ("LATENT",), title="VAE Encode (for Inpainting)",
)  # fmt: skip
def encode_for_inpainting(run: Run, pixels: Images, vae: Vae, mask: Masks, grow_mask_by: int) -> tuple[Latent]:
    """Encodes pictures with the masked part grey, and sets the mask, grown by some pixels."""
    h, w = pixels.shape[1:3]
    mask = fitted_mask(mask, h, w)
    top, left = (h % 8) // 2, (w % 8) // 2
    inside = slice(top, top + h // 8 * 8), slice(left, left + w // 8 * 8)
    pixels, mask = cropped(pixels), np.round(mask[:, inside[0], inside[1]])
    grey = (pixels - 0.5) * (1 - mask[..., None]) + 0.5
    return (Latent(encoded(vae, grey), np.round(np.clip(_grown(mask, grow_mask_by), 0, 1))),)


def fitted_mask(mask: Masks, height: int, width: int) -> Masks:
    """Returns masks in a size, by bilinear interpolation."""
    if mask.shape[1:] == (height, width):
        return mask.astype(np.float32)
    return np.asarray(interpolate(mask.astype(np.float32)[..., None], (height, width), method="bilinear")[..., 0])


def _grown(mask: Masks, by: int) -> Masks:
    """Returns masks that reach `by` - 1 pixels further in all: ones where a square window of side `by` has a one."""
    if by == 0:
        return mask
    before = -(-(by - 1) // 2)
    for axis in (1, 2):
        edges = [(0, 0)] * 3
        edges[axis] = (before, before)
        sums = np.cumsum(np.pad(mask, edges), axis, dtype=np.float64)
        sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis)
        count = mask.shape[axis]
        at = np.arange(count)
        mask = np.asarray(np.minimum(sums.take(at + by, axis) - sums.take(at, axis), 1), np.float32)
    return mask


@node(
    "InpaintModelConditioning", "conditioning/inpaint",
    (link("positive", "CONDITIONING"), link("negative", "CONDITIONING"), VAE, PIXELS, link("mask", "MASK"),
     switch("noise_mask", True)), ("CONDITIONING", "CONDITIONING", "LATENT"), ("positive", "negative", "latent"),
)  # fmt: skip
def condition_inpainting(
    run: Run, positive: Conditioning, negative: Conditioning, vae: Vae, pixels: Images, mask: Masks, noise_mask: bool
) -> tuple[Conditioning, Conditioning, Latent]:
    """Gives an inpainting model the picture and the mask, and starts from the picture as it is."""
    h, w = pixels.shape[1:3]
    mask = fitted_mask(mask, h, w)
    top, left = (h % 8) // 2, (w % 8) // 2
    mask = mask[:, top : top + h // 8 * 8, left : left + w // 8 * 8]
    pixels = cropped(pixels)
    grey = (pixels - 0.5) * (1 - np.round(mask)[..., None]) + 0.5
    concat = (encoded(vae, grey), mask)
    sides = [tuple(dataclasses.replace(entry, concat=concat) for entry in one) for one in (positive, negative)]
    return sides[0], sides[1], Latent(encoded(vae, pixels), mask if noise_mask else None)


@node(
    "InstructPixToPixConditioning", "conditioning/instructpix2pix",
    (link("positive", "CONDITIONING"), link("negative", "CONDITIONING"), VAE, PIXELS),
    ("CONDITIONING", "CONDITIONING", "LATENT"), ("positive", "negative", "latent"),
)  # fmt: skip
def condition_editing(
    run: Run, positive: Conditioning, negative: Conditioning, vae: Vae, pixels: Images
) -> tuple[Conditioning, Conditioning, Latent]:
    """Gives an InstructPix2Pix model the picture to edit."""
    latent = encoded(vae, pixels)
    concat = (latent / np.float32(vae.of.config.vae.scale_factor), np.zeros(pixels.shape[:3], np.float32))
    sides = [tuple(dataclasses.replace(entry, concat=concat) for entry in one) for one in (positive, negative)]
    return sides[0], sides[1], Latent(np.zeros_like(latent))


@node("VAEDecode", "latent", (SAMPLES, VAE), ("IMAGE",), title="VAE Decode")
def decode(run: Run, samples: Latent, vae: Vae) -> tuple[Images]:
    """Decodes latents to pictures."""
    config = vae.of.config.vae
    if samples.samples.shape[-1] != config.latent_channels:
        raise ValueError(
            f"the autoencoder's latents have {config.latent_channels} channels; got {samples.samples.shape[-1]}"
        )
    made = []
    for i in range(len(samples.samples)):
        run.progress(i, len(samples.samples))
        made.append(np.asarray(vae.of.decode(jnp.asarray(samples.samples[i : i + 1], jnp.float32)), np.float32))
    return (np.clip((np.concatenate(made) + 1) / 2, 0, 1),)


@node("VAEDecodeTiled", "_for_testing", (SAMPLES, VAE, *TILES), ("IMAGE",), title="VAE Decode (Tiled)")
def decode_tiled(
    run: Run, samples: Latent, vae: Vae, tile_size: int, overlap: int, temporal_size: int, temporal_overlap: int
) -> tuple[Images]:
    """Decodes latents. Large ones are always computed in bands, which are exact, so the sizes have no effect."""
    return decode(run, samples, vae)


@node(
    "SetLatentNoiseMask", "latent/inpaint", (SAMPLES, link("mask", "MASK")), ("LATENT",), title="Set Latent Noise Mask"
)
def set_mask(run: Run, samples: Latent, mask: Masks) -> tuple[Latent]:
    """Sets which part of a latent a sampler changes."""
    return (dataclasses.replace(samples, mask=mask),)


@node(
    "LatentUpscale", "latent",
    (SAMPLES, choice("upscale_method", LATENT_METHODS), whole("width", 512, 0, step=8), whole("height", 512, 0, step=8),
     choice("crop", CROPS)), ("LATENT",), title="Upscale Latent",
)  # fmt: skip
def scale(run: Run, samples: Latent, upscale_method: str, width: int, height: int, crop: str) -> tuple[Latent]:
    """Resizes latents; a side of 0 follows the other one."""
    if width == 0 and height == 0:
        return (samples,)
    h, w = samples.samples.shape[1:3]
    height = max(8, height or round(h * width / w) * 8)
    width = max(8, width or round(w * height / 8 / h) * 8)
    return (_resized(samples, height // 8, width // 8, upscale_method, crop),)


@node(
    "LatentUpscaleBy", "latent", (SAMPLES, choice("upscale_method", LATENT_METHODS), real("scale_by", 1.5, 0.01, 8.0)),
    ("LATENT",), title="Upscale Latent By",
)  # fmt: skip
def scale_by(run: Run, samples: Latent, upscale_method: str, scale_by: float) -> tuple[Latent]:
    """Resizes latents by a factor."""
    h, w = (max(1, round(side * scale_by)) for side in samples.samples.shape[1:3])
    return (_resized(samples, h, w, upscale_method, "disabled"),)


def _resized(samples: Latent, height: int, width: int, method: str, crop: str) -> Latent:
    b, _, _, c = samples.samples.shape
    checked((b, height, width, c))
    return dataclasses.replace(samples, samples=upscale(samples.samples, height, width, method, crop))


@node("LatentRotate", "latent/transform", (SAMPLES, choice("rotation", ROTATIONS)), ("LATENT",), title="Rotate Latent")
def rotate(run: Run, samples: Latent, rotation: str) -> tuple[Latent]:
    """Turns latents clockwise."""
    turned = np.rot90(samples.samples, -ROTATIONS.index(rotation), (1, 2))
    return (dataclasses.replace(samples, samples=np.ascontiguousarray(turned)),)


@node("LatentFlip", "latent/transform", (SAMPLES, choice("flip_method", FLIPS)), ("LATENT",), title="Flip Latent")
def flip(run: Run, samples: Latent, flip_method: str) -> tuple[Latent]:
    """Mirrors latents."""
    made = np.flip(samples.samples, 1 if flip_method.startswith("x") else 2)
    return (dataclasses.replace(samples, samples=np.ascontiguousarray(made)),)


@node(
    "LatentCrop", "latent/transform",
    (SAMPLES, whole("width", 512, 64, step=8), whole("height", 512, 64, step=8), whole("x", 0, step=8),
     whole("y", 0, step=8)), ("LATENT",), title="Crop Latent",
)  # fmt: skip
def crop(run: Run, samples: Latent, width: int, height: int, x: int, y: int) -> tuple[Latent]:
    """Cuts a rectangle out of latents; one that reaches over the edge is moved inside."""
    h, w = samples.samples.shape[1:3]
    top, left = min(y // 8, max(h - 8, 0)), min(x // 8, max(w - 8, 0))
    made = samples.samples[:, top : top + height // 8, left : left + width // 8]
    return (dataclasses.replace(samples, samples=made),)


@node(
    "LatentComposite", "latent", (link("samples_to", "LATENT"), link("samples_from", "LATENT"), whole("x", 0, step=8),
    whole("y", 0, step=8), whole("feather", 0, step=8)), ("LATENT",), title="Latent Composite",
)  # fmt: skip
def composite(run: Run, samples_to: Latent, samples_from: Latent, x: int, y: int, feather: int) -> tuple[Latent]:
    """Puts one latent on another; the edges fade over `feather` pixels."""
    x, y, feather = x // 8, y // 8, feather // 8
    base, top = samples_to.samples.copy(), samples_from.samples
    h, w = base.shape[1:3]
    patch = top[:, : max(h - y, 0), : max(w - x, 0)]
    ph, pw = patch.shape[1:3]
    weights = [
        _edges(ph, feather, y != 0, y + ph < h),
        _edges(pw, feather, x != 0, x + pw < w),
    ]
    weight = (weights[0][:, None] * weights[1])[..., None]
    part = base[:, y : y + ph, x : x + pw]
    base[:, y : y + ph, x : x + pw] = patch * weight + part * (1 - weight)
    return (dataclasses.replace(samples_to, samples=base),)


def _edges(length: int, feather: int, first: bool, last: bool) -> np.ndarray:
    weight = np.ones(length, np.float32)
    rising = (np.arange(min(feather, length), dtype=np.float32) + 1) / max(feather, 1)
    if first:
        weight[: len(rising)] *= rising
    if last:
        weight[length - len(rising) :] *= rising[::-1]
    return weight


@node(
    "LatentCompositeMasked", "latent",
    (link("destination", "LATENT"), link("source", "LATENT"), whole("x", 0, step=8), whole("y", 0, step=8),
     switch("resize_source", False), link("mask", "MASK", optional=True)), ("LATENT",),
)  # fmt: skip
def composite_masked(
    run: Run, destination: Latent, source: Latent, x: int, y: int, resize_source: bool, mask: Masks | None = None
) -> tuple[Latent]:
    """Puts one latent on another where a mask is white."""
    made = pasted(destination.samples, source.samples, x // 8, y // 8, mask, resize_source)
    return (dataclasses.replace(destination, samples=made),)


def pasted(base: np.ndarray, top: np.ndarray, x: int, y: int, mask: Masks | None, resize: bool) -> np.ndarray:
    """Returns a map with another one on it at (x, y), where the mask of the other one is 1."""
    if resize:
        top = upscale(top, base.shape[1], base.shape[2], "bilinear")
    h, w = top.shape[1:3]
    weight = np.ones((1, h, w), np.float32) if mask is None else fitted_mask(mask, h, w)
    out = base.copy()
    height, width = min(h, base.shape[1] - y), min(w, base.shape[2] - x)
    if height <= 0 or width <= 0:
        return out
    for i in range(len(out)):
        own = weight[i % len(weight), :height, :width, None]
        part = out[i, y : y + height, x : x + width]
        out[i, y : y + height, x : x + width] = top[i % len(top), :height, :width] * own + part * (1 - own)
    return out


@node(
    "LatentBlend", "_for_testing", (link("samples1", "LATENT"), link("samples2", "LATENT"), real("blend_factor", 0.5)),
    ("LATENT",), title="Latent Blend",
)  # fmt: skip
def blend(run: Run, samples1: Latent, samples2: Latent, blend_factor: float) -> tuple[Latent]:
    """Mixes two latents; `blend_factor` is the share of the first one."""
    first, second = _alike(samples1, samples2)
    share = np.float32(blend_factor)
    return (dataclasses.replace(samples1, samples=first * share + second * (1 - share)),)


def _alike(one: Latent, other: Latent) -> tuple[np.ndarray, np.ndarray]:
    """Returns two latents in the size of the first, with as many entries."""
    first, second = one.samples, other.samples
    if first.shape[1:3] != second.shape[1:3]:
        second = upscale(second, first.shape[1], first.shape[2], "bicubic", "center")
    return first, second[np.arange(len(first)) % len(second)]


def _arithmetic(name: str, title: str, function: object) -> None:
    def compute(run: Run, samples1: Latent, samples2: Latent) -> tuple[Latent]:
        first, second = _alike(samples1, samples2)
        return (dataclasses.replace(samples1, samples=function(first, second)),)  # type: ignore[operator]

    compute.__doc__ = f"{title}, entry by entry."
    node(name, "latent/advanced", (link("samples1", "LATENT"), link("samples2", "LATENT")), ("LATENT",))(compute)


_arithmetic("LatentAdd", "Adds two latents", np.add)
_arithmetic("LatentSubtract", "Subtracts a latent from another", np.subtract)


@node("LatentMultiply", "latent/advanced", (SAMPLES, real("multiplier", 1.0, -10.0, 10.0)), ("LATENT",))
def multiply(run: Run, samples: Latent, multiplier: float) -> tuple[Latent]:
    """Multiplies a latent by a number."""
    return (dataclasses.replace(samples, samples=samples.samples * np.float32(multiplier)),)


@node(
    "LatentFromBatch", "latent/batch", (SAMPLES, whole("batch_index", 0, 0, MOST_PICTURES - 1),
    whole("length", 1, 1, MOST_PICTURES)), ("LATENT",), title="Latent From Batch",
)  # fmt: skip
def from_batch(run: Run, samples: Latent, batch_index: int, length: int) -> tuple[Latent]:
    """Takes some latents of a batch; they keep their noise."""
    count = len(samples.samples)
    first = min(count - 1, batch_index)
    which = range(first, min(count, first + length))
    numbers = samples.numbers or tuple(range(count))
    mask = samples.mask if samples.mask is None or len(samples.mask) == 1 else samples.mask[which.start : which.stop]
    return (Latent(samples.samples[which.start : which.stop], mask, tuple(numbers[i] for i in which)),)


@node(
    "RepeatLatentBatch", "latent/batch", (SAMPLES, whole("amount", 1, 1, 64)), ("LATENT",), title="Repeat Latent Batch"
)
def repeat(run: Run, samples: Latent, amount: int) -> tuple[Latent]:
    """Repeats a batch; every copy has other noise."""
    made = np.tile(samples.samples, (amount, 1, 1, 1)) if amount * len(samples.samples) <= MOST_PICTURES else None
    if made is None:
        raise ValueError(f"a batch has at most {MOST_PICTURES} pictures")
    checked(made.shape)
    mask = samples.mask
    if mask is not None and len(mask) > 1:
        mask = np.tile(mask, (amount, 1, 1))
    numbers = samples.numbers
    if numbers is not None:
        step = max(numbers) - min(numbers) + 1
        numbers = tuple(number + k * step for k in range(amount) for number in numbers)
    return (Latent(made, mask, numbers),)


@node("LatentBatch", "latent/batch", (link("samples1", "LATENT"), link("samples2", "LATENT")), ("LATENT",))
def batch(run: Run, samples1: Latent, samples2: Latent) -> tuple[Latent]:
    """Joins two batches."""
    first, second = samples1.samples, samples2.samples
    if first.shape[1:3] != second.shape[1:3]:
        second = upscale(second, first.shape[1], first.shape[2], "bilinear", "center")
    made = np.concatenate([first, second])
    own = [one.numbers or tuple(range(len(one.samples))) for one in (samples1, samples2)]
    return (Latent(made, None, own[0] + own[1]),)


@node(
    "LatentBatchSeedBehavior", "latent/advanced", (SAMPLES, choice("seed_behavior", ("random", "fixed"))), ("LATENT",)
)
def seed_behavior(run: Run, samples: Latent, seed_behavior: str) -> tuple[Latent]:
    """Gives all latents of a batch the same noise, or each its own."""
    if seed_behavior == "random":
        return (dataclasses.replace(samples, numbers=None),)
    number = samples.numbers[0] if samples.numbers else 0
    return (dataclasses.replace(samples, numbers=(number,) * len(samples.samples)),)
