"""A CONDITIONING on a latent: areas in its entries, masks in its size, entries of both sides for the same areas.

Source: ComfyUI's comfy/samplers.py, process_conds and get_area_and_mult.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from sdjax.diffusion.rules.parts import Area as Place
from sdjax.nn.layers.interpolation import interpolate
from sdjax.serve.comfy.values import Area, Conditioning, Entry

SMALLEST = 8  # side of the rectangle around a mask
FADE = 8  # entries over which an area begins


def on_latent(conditioning: Conditioning, height: int, width: int) -> list[Entry]:
    """Returns the entries with areas in entries of the latent and masks [b, height, width]."""
    out = []
    for entry in conditioning:
        area, mask = entry.area, entry.mask
        if area is not None and area.in_shares:
            area = Area(
                max(1, round(area.height * height)), max(1, round(area.width * width)),
                round(area.top * height), round(area.left * width),
            )  # fmt: skip
        if mask is not None:
            mask = mask.astype(np.float32)
            if mask.shape[1:] != (height, width):
                mask = interpolate(mask[..., None], (height, width), method="bilinear")[..., 0]
            if entry.bounds:
                area = around(mask)
        if area is not None:
            area = inside(area, height, width)
        out.append(dataclasses.replace(entry, area=area, mask=mask, bounds=False))
    return out


def around(mask: Float[np.ndarray, "b h w"]) -> Area:
    """Returns the rectangle around a mask, at least SMALLEST high and wide."""
    height, width = mask.shape[1:]
    rows, columns = np.nonzero(np.abs(mask).max(0))
    if not len(rows):
        return Area(min(SMALLEST, height), min(SMALLEST, width), 0, 0)
    spans = []
    for found, side in (rows, height), (columns, width):
        first, last = int(found.min()), int(found.max())
        length = min(max(SMALLEST, last - first + 1), side)
        spans.append((length, min(first, side - length)))
    (h, top), (w, left) = spans
    return Area(h, w, top, left)


def inside(area: Area, height: int, width: int) -> Area:
    """Returns the part of an area that is on the latent. Raises ValueError if there is none."""
    top, left = int(area.top), int(area.left)
    if top >= height or left >= width:
        raise ValueError(f"an area begins at entry {left}, {top} of the latent, which has {width} x {height}")
    return Area(min(int(area.height), height - top), min(int(area.width), width - left), top, left)


def place_of(entry: Entry) -> Place | None:
    """Returns the (top, left, height, width) of an entry on a latent; None: all of it."""
    area = entry.area
    return None if area is None else (int(area.top), int(area.left), int(area.height), int(area.width))


def both_sides(positive: list[Entry], negative: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Returns the entries of both sides, with those added that the other side needs.

    Each area of one side gets an entry on the other, with the text of the smallest one there that holds the area. A
    control that is for both sides is added to entries of the negative side that have none.
    """
    positive, negative = list(positive), list(negative)
    for one, others in (positive, negative), (negative, positive):
        for entry in list(one):
            _same_area(entry, others)
    shared = [entry.controls for entry in positive if any(c.both for c in entry.controls) and entry.area is None]
    if shared:
        free = [i for i, entry in enumerate(negative) if not entry.controls and entry.area is None]
        for k, i in enumerate(free):
            negative[i] = dataclasses.replace(negative[i], controls=shared[k % len(shared)])
    return positive, negative


def _same_area(entry: Entry, others: list[Entry]) -> None:
    area = entry.area
    if area is None or not others:
        return
    found: Entry | None = None
    for other in others:
        theirs = other.area
        if theirs is None:
            found = other if found is None else found
        elif _holds(theirs, area) and (
            found is None or found.area is None or theirs.height * theirs.width < found.area.height * found.area.width
        ):
            found = other
    if found is None or found.area == area:
        return
    others.append(dataclasses.replace(entry, context=found.context, images=found.images, concat=found.concat))


def _holds(outer: Area, inner: Area) -> bool:
    return (
        outer.top <= inner.top and outer.left <= inner.left
        and outer.top + outer.height >= inner.top + inner.height
        and outer.left + outer.width >= inner.left + inner.width
    )  # fmt: skip


def weight_of(entry: Entry, height: int, width: int) -> Float[np.ndarray, "h w"]:
    """Returns how much an entry counts at each place: its strength, times its mask, or fading at its area's edges."""
    out = np.zeros((height, width), np.float32)
    top, left, h, w = place_of(entry) or (0, 0, height, width)
    weight = np.full((h, w), entry.strength, np.float32)
    if entry.mask is not None:
        weight *= entry.mask[0, top : top + h, left : left + w] * np.float32(entry.mask_strength)
    elif entry.area is not None:
        weight *= _fading(h, top, height)[:, None] * _fading(w, left, width)
    out[top : top + h, left : left + w] = weight
    return out


def _fading(length: int, first: int, whole: int) -> Float[np.ndarray, "n"]:
    """Returns weights along a side of an area: they rise from the edge, unless it is the latent's."""
    out = np.ones(length, np.float32)
    steps = min(FADE, length // 4)
    rising = (np.arange(steps, dtype=np.float32) + 1) / max(steps, 1)
    if first:
        out[:steps] *= rising
    if first + length < whole:
        out[length - steps :] *= rising[::-1]
    return out
