"""Nodes that encode prompts, and that combine, limit and weigh conditionings."""

import dataclasses

import numpy as np

from sdjax.serve.comfy.definitions import choice, link, node, real, text, whole
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.image_tower import ImageEmbedding, ImageTower
from sdjax.serve.comfy.prompting import encode
from sdjax.serve.comfy.values import Area, Clip, Conditioning, Entry, ImageNote, Images, Masks

COND = link("conditioning", "CONDITIONING")
OUT = ("CONDITIONING",)
STRENGTH = real("strength", 1.0, 0.0, 10.0)
SHARES = [real(name, value, 0.0, 1.0) for name, value in (("width", 1.0), ("height", 1.0), ("x", 0.0), ("y", 0.0))]
SIDES = [whole(name, low, low, step=8) for name, low in (("width", 64), ("height", 64), ("x", 0), ("y", 0))]


@node(
    "CLIPTextEncode", "conditioning", (text("text", multiline=True), link("clip", "CLIP")), OUT,
    title="CLIP Text Encode (Prompt)",
)  # fmt: skip
def encode_text(run: Run, text: str, clip: Clip) -> tuple[Conditioning]:
    """Encodes a prompt in ComfyUI's syntax: `(word:1.3)`, `embedding:name`, any length."""
    return ((Entry(encode(run.host, clip, text)),),)


@node(
    "CLIPSetLastLayer", "conditioning",
    (link("clip", "CLIP"), dataclasses.replace(whole("stop_at_clip_layer", -1), low=-24, high=-1)), ("CLIP",),
    title="CLIP Set Last Layer",
)  # fmt: skip
def set_last_layer(run: Run, clip: Clip, stop_at_clip_layer: int) -> tuple[Clip]:
    """Takes the text encoder's output from an earlier block."""
    return (dataclasses.replace(clip, layer=stop_at_clip_layer),)


@node(
    "ConditioningCombine", "conditioning", (link("conditioning_1", "CONDITIONING"),
    link("conditioning_2", "CONDITIONING")), OUT, title="Conditioning (Combine)",
)  # fmt: skip
def combine(run: Run, conditioning_1: Conditioning, conditioning_2: Conditioning) -> tuple[Conditioning]:
    """Takes the average of the network's answers for both conditionings."""
    return (conditioning_1 + conditioning_2,)


@node(
    "ConditioningConcat", "conditioning", (link("conditioning_to", "CONDITIONING"),
    link("conditioning_from", "CONDITIONING")), OUT, title="Conditioning (Concat)",
)  # fmt: skip
def concat(run: Run, conditioning_to: Conditioning, conditioning_from: Conditioning) -> tuple[Conditioning]:
    """Puts the second text behind the first in one context."""
    behind = _first(conditioning_from).context
    joined = [np.concatenate([entry.context, behind], axis=1) for entry in conditioning_to]
    if any(one.shape[1] > MOST_TOKENS for one in joined):
        raise ValueError(f"a context has at most {MOST_TOKENS} tokens")
    return (tuple(dataclasses.replace(entry, context=one) for entry, one in zip(conditioning_to, joined)),)


MOST_TOKENS = 77 * 64


@node(
    "ConditioningAverage", "conditioning", (link("conditioning_to", "CONDITIONING"),
    link("conditioning_from", "CONDITIONING"), real("conditioning_to_strength", 1.0)), OUT,
    title="ConditioningAverage",
)  # fmt: skip
def average(
    run: Run, conditioning_to: Conditioning, conditioning_from: Conditioning, conditioning_to_strength: float
) -> tuple[Conditioning]:
    """Mixes two encoded texts token by token."""
    other, share = _first(conditioning_from).context, np.float32(conditioning_to_strength)
    out = []
    for entry in conditioning_to:
        n = entry.context.shape[1]
        fitting = np.pad(other[:, :n], ((0, 0), (0, max(0, n - other.shape[1])), (0, 0)))
        out.append(dataclasses.replace(entry, context=entry.context * share + fitting * (1 - share)))
    return (tuple(out),)


@node(
    "ConditioningSetArea", "conditioning", (COND, *SIDES, STRENGTH), OUT, title="Conditioning (Set Area)",
)  # fmt: skip
def set_area(
    run: Run, conditioning: Conditioning, width: int, height: int, x: int, y: int, strength: float
) -> tuple[Conditioning]:
    """Limits a conditioning to a rectangle, given in pixels."""
    area = Area(height // 8, width // 8, y // 8, x // 8)
    return (_each(conditioning, area=area, strength=strength),)


@node(
    "ConditioningSetAreaPercentage", "conditioning", (COND, *SHARES, STRENGTH), OUT,
    title="Conditioning (Set Area with Percentage)",
)  # fmt: skip
def set_area_in_shares(
    run: Run, conditioning: Conditioning, width: float, height: float, x: float, y: float, strength: float
) -> tuple[Conditioning]:
    """Limits a conditioning to a rectangle, given in shares of the picture."""
    return (_each(conditioning, area=Area(height, width, y, x, True), strength=strength),)


@node("ConditioningSetAreaStrength", "conditioning", (COND, STRENGTH), OUT)
def set_strength(run: Run, conditioning: Conditioning, strength: float) -> tuple[Conditioning]:
    """Sets how much a conditioning counts beside others."""
    return (_each(conditioning, strength=strength),)


@node(
    "ConditioningSetMask", "conditioning",
    (COND, link("mask", "MASK"), STRENGTH, choice("set_cond_area", ("default", "mask bounds"))), OUT,
    title="Conditioning (Set Mask)",
)  # fmt: skip
def set_mask(
    run: Run, conditioning: Conditioning, mask: Masks, strength: float, set_cond_area: str
) -> tuple[Conditioning]:
    """Limits a conditioning to a mask."""
    return (_each(conditioning, mask=mask, mask_strength=strength, bounds=set_cond_area != "default"),)


@node(
    "ConditioningSetTimestepRange", "advanced/conditioning", (COND, real("start", 0.0, step=0.001),
    real("end", 1.0, step=0.001)), OUT,
)  # fmt: skip
def set_range(run: Run, conditioning: Conditioning, start: float, end: float) -> tuple[Conditioning]:
    """Limits a conditioning to a part of the noise schedule: 0 is its start, 1 its end."""
    return (_each(conditioning, start=start, end=end),)


@node("ConditioningZeroOut", "advanced/conditioning", (COND,), OUT)
def zero_out(run: Run, conditioning: Conditioning) -> tuple[Conditioning]:
    """Replaces the encoded text by zeros."""
    return (tuple(dataclasses.replace(entry, context=np.zeros_like(entry.context)) for entry in conditioning),)


@node(
    "CLIPVisionEncode", "conditioning",
    (link("clip_vision", "CLIP_VISION"), link("image", "IMAGE"), choice("crop", ("center", "none"))),
    ("CLIP_VISION_OUTPUT",), title="CLIP Vision Encode",
)  # fmt: skip
def encode_image(run: Run, clip_vision: ImageTower, image: Images, crop: str) -> tuple[ImageEmbedding]:
    """Encodes a picture with an image tower."""
    return (run.host.call(lambda: clip_vision.embed(image, crop)),)


@node(
    "unCLIPConditioning", "conditioning",
    (COND, link("clip_vision_output", "CLIP_VISION_OUTPUT"), real("strength", 1.0, -10.0, 10.0),
     real("noise_augmentation", 0.0)), OUT,
)  # fmt: skip
def add_image(
    run: Run, conditioning: Conditioning, clip_vision_output: ImageEmbedding, strength: float, noise_augmentation: float
) -> tuple[Conditioning]:
    """Adds what a picture shows, for unCLIP models."""
    if strength == 0:
        return (conditioning,)
    own = ImageNote(clip_vision_output.embeddings[:1], strength, noise_augmentation)
    return (tuple(dataclasses.replace(entry, images=(*entry.images, own)) for entry in conditioning),)


def _first(conditioning: Conditioning) -> Entry:
    if not conditioning:
        raise ValueError("the conditioning is empty")
    return conditioning[0]


def _each(conditioning: Conditioning, **changes: object) -> Conditioning:
    return tuple(dataclasses.replace(entry, **changes) for entry in conditioning)  # type: ignore[arg-type]
