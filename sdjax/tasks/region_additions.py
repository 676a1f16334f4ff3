"""The regions of a batch as additions to the UNet: their prompts encoded, their masks, their adapters."""

import dataclasses
from typing import NamedTuple

import numpy as np

from sdjax.adapters.lora import SharedLoRA
from sdjax.adapters.regions import RegionArrays, RegionLoRA, RegionLoRAArrays
from sdjax.tasks.adapter_spans import arrays
from sdjax.tasks.contexts import NEGATIVE, Prompts
from sdjax.tasks.group import Group
from sdjax.tasks.regions import RegionTexts, region_arrays, with_mask
from sdjax.tasks.resolve import Resolved

WHOLE = 77  # contexts are padded to multiples of this


class RegionParts(NamedTuple):
    """The arrays of regions with the prompt, those without it, and the adapters of regions."""

    own: RegionArrays
    away: RegionArrays
    adapters: list[tuple[RegionLoRA, SharedLoRA | None, RegionLoRAArrays]]


def region_parts(group: Group) -> RegionParts:
    """Returns what the regions of a group become; all pictures have equally many.

    Raises ValueError for a region's prompt with AND.
    """
    regions = [request.regions for request in group.requests]
    count = len(regions[0])
    encoded = [_encoded(group, r) for r in range(count)]
    longest = max(
        len(one) for region in encoded for of_branch in region.values() for texts in of_branch for one in texts.contexts
    )
    tokens = -(-longest // WHOLE) * WHOLE
    own, away = (
        region_arrays(regions, [one[branch] for one in encoded], group.latent_size, tokens) for branch in (0, NEGATIVE)
    )
    adapters = []
    for r in range(count):
        mine = [each[r] for each in regions]
        if mine[0].adapters:
            for made in arrays([one.adapters for one in mine], group.timesteps, group.pipe.params["unet"]):
                adapters.append((RegionLoRA(r, count, tokens), *with_mask(made, mine, group.latent_size)))
    return RegionParts(own, away, adapters)


def _encoded(group: Group, r: int) -> dict[int, list[RegionTexts]]:
    """Returns the encoded prompts of region r of each picture, with the prompt (0) and without it (NEGATIVE)."""
    asked = [_as_request(request, r) for request in group.requests]
    prompts = Prompts(group.pipe, asked, group.starts, group.how, group.after)
    stages = []
    for start, plan in zip(group.starts, prompts.plans, strict=True):
        if len(plan.prompts) > 1:
            raise ValueError("a region's prompt is one text: leave out AND there, or give two regions at one place")
        calls = np.zeros(0) if start.rows is None else np.ravel(start.rows.timestep)
        begins = np.flatnonzero(np.diff(plan.stage)) + 1  # the calls at which the text changes
        stages.append((plan.stage[np.concatenate([[0], begins])], calls[begins] if len(calls) else np.zeros(0)))
    out = {}
    for branch, (context, length) in zip((0, NEGATIVE), prompts.contexts([0, NEGATIVE])):
        whole = np.asarray(context)
        lengths = np.full(whole.shape[:-2], whole.shape[-2]) if length is None else np.asarray(length)
        if whole.ndim == 3:
            whole, lengths = whole[:, None], lengths[:, None]
        out[branch] = [
            RegionTexts([whole[i, k, : lengths[i, k]] for k in which], changes)
            for i, (which, changes) in enumerate(stages)
        ]
    return out


def _as_request(request: Resolved, r: int) -> Resolved:
    """Returns a picture's request with the prompts and adapters of one of its regions."""
    region = request.regions[r]
    return dataclasses.replace(
        request, prompt=region.prompt, negative_prompt=region.negative_prompt, prompt_embeds=None,
        negative_prompt_embeds=None, adapters=(*request.adapters, *region.adapters), regions=(), image_prompts=(),
        controls=(),
    )  # fmt: skip
