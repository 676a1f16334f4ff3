"""Nodes that save and show pictures."""

import numpy as np

from sdjax.serve.comfy.definitions import Shown, link, node, text
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.values import Images, Masks

LONGEST_PREFIX = 200


@node("SaveImage", "image", (link("images", "IMAGE"), text("filename_prefix", "ComfyUI")), title="Save Image")
def save(run: Run, images: Images, filename_prefix: str) -> Shown:
    """Saves pictures with the graph that made them."""
    return Shown({"images": _kept(run, images, filename_prefix, keep=True)})


@node("PreviewImage", "image", (link("images", "IMAGE"),), title="Preview Image")
def preview(run: Run, images: Images) -> Shown:
    """Shows pictures without saving them."""
    return Shown({"images": _kept(run, images, "preview", keep=False)})


@node("MaskPreview", "mask", (link("mask", "MASK"),), title="Preview Mask")
def preview_mask(run: Run, mask: Masks) -> Shown:
    """Shows a mask without saving it."""
    return Shown({"images": _kept(run, np.repeat(mask[..., None], 3, axis=-1), "mask", keep=False)})


@node("PreviewAny", "utils", (link("source", "*"),), title="Preview Any")
def preview_any(run: Run, source: object) -> Shown:
    """Shows a value as text."""
    return Shown(
        {"text": [str(source)[:10_000] if isinstance(source, str | int | float | bool) else type(source).__name__]}
    )


def _kept(run: Run, images: Images, prefix: str, *, keep: bool) -> list[dict[str, str]]:
    texts, out = run.texts(), []
    for one in images:
        if not np.isfinite(one).all():
            raise ValueError("the model made no picture: it is not-a-number")
        pixels = np.clip(255 * one, 0, 255).astype(np.uint8)
        out.append(run.host.save(pixels[..., :3], prefix[:LONGEST_PREFIX], texts, keep=keep))
    return out
