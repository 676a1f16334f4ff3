"""Regional prompts: parts of a picture with a prompt, a negative prompt and adapters of their own."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from sdjax import pictures
from sdjax.adapters.lora import ImageLoRA, SharedLoRA
from sdjax.adapters.regions import RegionArrays, RegionLoRAArrays
from sdjax.checks.arguments import is_sequence, number, shown
from sdjax.config import ModelConfig
from sdjax.pictures.opening import PictureSource
from sdjax.tasks.adapter_files import USUAL, Conventions
from sdjax.tasks.adapters import AdapterLike, AdapterUse, read_use, uses_in_prompt
from sdjax.tasks.extra_files import opened
from sdjax.tasks.flag_texts import split_at, unquoted
from sdjax.tasks.prompting import Typed, final_texts

NEGATIVE = "###"  # in a text: between a region's prompt and its negative prompt
MOST = 32  # regions of one picture
Box: TypeAlias = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """A part of a picture that follows a prompt of its own.

    `place`: (x, y, width, height), in shares of the picture's width and height from its upper left corner, or in pixels
    if one of the numbers is above 1; or a mask, a picture of any size that is white inside. `weight`: 1 replaces the
    picture's prompt, less mixes the two. Where regions overlap, their effects are mixed. `negative_prompt`: None is the
    picture's. `adapters`: as `Request.adapters`; they change this part only.

    Raises ValueError for values out of range.
    """

    prompt: str
    place: Box | PictureSource
    weight: float = 1.0
    negative_prompt: str | None = None
    adapters: Sequence[AdapterLike] = ()

    def __post_init__(self) -> None:
        for name in "prompt", "negative_prompt":
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "negative_prompt" and value is None):
                raise ValueError(f"a region's {name} is a text; got {shown(value)}")
        object.__setattr__(self, "weight", number("a region's weight", self.weight, 0, 10))
        object.__setattr__(self, "adapters", tuple(self.adapters) if is_sequence(self.adapters) else (self.adapters,))
        if _is_box(self.place):
            object.__setattr__(self, "place", _box(self.place))


@dataclasses.dataclass(frozen=True, eq=False)
class ResolvedRegion:
    """A region with its files read: `mask` [h, w] from 0 to 1 in the picture's size, and its adapters."""

    prompt: str
    negative_prompt: str
    weight: float
    mask: np.ndarray
    adapters: tuple[AdapterUse, ...]
    place: Box | PictureSource


RegionLike: TypeAlias = Region | ResolvedRegion | str


def read_region(
    given: RegionLike, config: ModelConfig, size: tuple[int, int], negative: str, typed: Typed, folder: str | None,
    steps: int, conventions: Conventions = USUAL,
) -> ResolvedRegion:  # fmt: skip
    """Returns a region of a picture of `size` (height, width), from a Region or a text (`parse`).

    `negative` is the picture's final negative prompt, and `typed` has its styles and wildcards, which the region's
    prompts get too. `folder` is that of the tags `<lora:name:0.8>` in the region's prompt.

    A region that is resolved already is placed again, for a picture of another size.

    Raises ValueError, and `sdjax.convert.CheckpointError` for an adapter that cannot be used.
    """
    if isinstance(given, ResolvedRegion):
        return dataclasses.replace(given, mask=_mask(given.place, size))
    region = parse(given) if isinstance(given, str) else given
    if not isinstance(region, Region):
        raise ValueError(f"a region is an sdjax.Region, or a text for one; got {shown(given)}")
    final = typed._replace(prompt=region.prompt, negative_prompt=region.negative_prompt)
    ((text, away),) = final_texts([final])
    prompt, tagged = uses_in_prompt(text, folder, config, steps, conventions)
    uses = tuple(read_use(one, config, conventions) for one in region.adapters) + tagged
    away = negative if region.negative_prompt is None else away
    return ResolvedRegion(prompt, away, region.weight, _mask(region.place, size), uses, region.place)


def parse(text: str) -> Region:
    """Returns the region of a text: PLACE[:WEIGHT]=PROMPT, and behind the prompt perhaps ### and a negative prompt.

    PLACE is x,y,width,height or the file of a mask, in double quotes if its name has =. Raises ValueError for anything
    else.
    """
    place, equals, prompts = split_at(text, "=")
    if not equals or not place:
        raise ValueError(f"a region is PLACE=PROMPT, such as 0,0,0.5,1=a rocket; got {shown(text)}")
    prompt, mark, negative = prompts.partition(NEGATIVE)
    weight, name = 1.0, unquoted(place)
    head, colon, tail = place.rpartition(":")
    if colon and not os.path.exists(name):
        with contextlib.suppress(ValueError):  # the colon may be the file's
            name, weight = unquoted(head), float(tail)
    given: Any = name
    parts = name.split(",")
    if len(parts) == 4 and not os.path.exists(name):
        try:
            given = tuple(float(part) for part in parts)
        except ValueError:
            raise ValueError(f"a region's place is four numbers or a mask's file; got {shown(name)}") from None
    return Region(prompt.strip(), given, weight, negative.strip() if mark else None)


def _is_box(place: Any) -> bool:
    return isinstance(place, tuple | list) and all(np.ndim(one) == 0 and not isinstance(one, str) for one in place)


def _box(place: Any) -> Box:
    numbers = [number("a region's x, y, width and height", one, 0) for one in place]
    if len(numbers) != 4 or not numbers[2] or not numbers[3]:
        raise ValueError(f"a region's place is x, y, width and height, these above 0; got {shown(place)}")
    x, y, w, h = numbers
    if max(numbers) <= 1 and max(x + w, y + h) > 1 + 1e-6:
        raise ValueError(f"a region lies in its picture: x + width and y + height are at most 1; got {shown(place)}")
    return x, y, w, h


def _mask(place: Any, size: tuple[int, int]) -> np.ndarray:
    """Returns the mask of a place in a picture of this size, float32. Raises ValueError if nothing is inside."""
    height, width = size
    if not _is_box(place):
        mask = pictures.resize(
            opened(pictures.open_mask, place, "a region's mask").pixels.astype(np.float32) / 255, height, width, "area"
        )
    else:
        x, y, w, h = place
        if max(place) <= 1:
            x, y, w, h = x * width, y * height, w * width, h * height
        mask = np.zeros((height, width), np.float32)
        mask[round(y) : round(y + h), round(x) : round(x + w)] = 1
    if not mask.any():
        raise ValueError(f"a region has a place in its picture of {width} x {height}; {shown(place)} has none")
    return mask


class RegionTexts(NamedTuple):
    """A region's prompt, encoded: `contexts[k]` [m, d] at stage k, which begins at timestep `changes[k - 1]`."""

    contexts: list[np.ndarray]
    changes: np.ndarray


def region_arrays(
    regions: Sequence[Sequence[ResolvedRegion]], texts: Sequence[Sequence[RegionTexts]], size: tuple[int, int],
    tokens: int,
) -> RegionArrays:  # fmt: skip
    """Returns the arrays of a batch's regions. `texts[r][i]` are those of region r of picture i.

    `size` is the latent's (height, width), `tokens` the length that contexts are padded to. The number of stages is a
    power of two, so that few programs are compiled.
    """
    count, batch, width = len(texts), len(regions), texts[0][0].contexts[0].shape[-1]
    stages = 1 << (max(len(one.contexts) for each in texts for one in each) - 1).bit_length()
    out = np.zeros((batch, count, stages, tokens, width), np.float32)
    lengths = np.zeros((batch, count, stages), np.int32)
    changes = np.full((batch, count, stages), -np.inf, np.float32)
    changes[..., 0] = np.inf
    for r, of_region in enumerate(texts):
        for i, one in enumerate(of_region):
            changes[i, r, 1 : 1 + len(one.changes)] = one.changes
            for k, context in enumerate(one.contexts):
                out[i, r, k, : len(context)], lengths[i, r, k] = context, len(context)
    masks = [[one.weight * pictures.resize(one.mask, *size, "area") for one in each] for each in regions]
    return RegionArrays(out, lengths, changes, np.array(masks, np.float32))  # type: ignore[arg-type]


def with_mask(
    made: tuple[SharedLoRA | None, ImageLoRA], regions: Sequence[ResolvedRegion], size: tuple[int, int]
) -> tuple[SharedLoRA | None, RegionLoRAArrays]:
    """Returns the adapters of one region of each picture, with its masks at the latent's size."""
    masks = np.stack([pictures.resize(one.mask, *size, "area") for one in regions])
    return made[0], RegionLoRAArrays(made[1], masks)  # type: ignore[arg-type]
