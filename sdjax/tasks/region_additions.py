"""The regions of a batch as additions to the UNet: their prompts encoded, their masks, their adapters."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdjax.adapters.lora import SharedLoRA
from sdjax.adapters.regions import RegionArrays, RegionLoRA, RegionLoRAArrays
from sdjax.pipeline.model import Pipeline
from sdjax.samplers import Start
from sdjax.tasks.adapter_spans import arrays
from sdjax.tasks.computing import Computing
from sdjax.tasks.contexts import NEGATIVE, Prompts
from sdjax.tasks.regions import region_arrays, with_mask
from sdjax.tasks.resolve import Resolved

WHOLE = 77  # contexts are padded to multiples of this


class RegionParts(NamedTuple):
    """The arrays of regions with the prompt, those without it, and the adapters of regions."""

    own: RegionArrays
    away: RegionArrays
    adapters: list[tuple[RegionLoRA, SharedLoRA | None, RegionLoRAArrays]]


def region_parts(
    requests: Sequence[Resolved], starts: Sequence[Start], calls: Sequence[np.ndarray], pipe: Pipeline, how: Computing
) -> RegionParts:
    """Returns what the regions of a batch become; all pictures have equally many. `calls` are their timesteps.

    Raises ValueError for a region's prompt that changes while sampling or is joined by AND.
    """
    regions = [request.regions for request in requests]
    count = len(regions[0])
    encoded: dict[int, list[list[np.ndarray]]] = {0: [], NEGATIVE: []}
    for r in range(count):
        asked = [_as_request(request, r) for request in requests]
        prompts = Prompts(pipe, asked, starts, how)
        if any(plan.stages > 1 or len(plan.prompts) > 1 for plan in prompts.plans):
            raise ValueError("a region's prompt is one text for all steps: leave out [from:to:when] and AND there")
        for branch, (context, length) in zip(encoded, prompts.contexts(list(encoded))):
            whole = np.asarray(context)[: len(requests)]
            lengths = [whole.shape[1]] * len(whole) if length is None else np.asarray(length)
            encoded[branch].append([own[:n] for own, n in zip(whole, lengths)])
    longest = max(len(one) for each in encoded.values() for of_region in each for one in of_region)
    tokens = -(-longest // WHOLE) * WHOLE
    factor = pipe.config.vae.factor
    size = requests[0].height // factor, requests[0].width // factor
    own, away = (region_arrays(regions, encoded[branch], size, tokens) for branch in (0, NEGATIVE))
    adapters = []
    for r in range(count):
        mine = [each[r] for each in regions]
        if mine[0].adapters:
            for made in arrays([one.adapters for one in mine], calls, pipe.params["unet"]):
                adapters.append((RegionLoRA(r, count, tokens), *with_mask(made, mine, size)))
    return RegionParts(own, away, adapters)


def _as_request(request: Resolved, r: int) -> Resolved:
    """Returns a picture's request with the prompts and adapters of one of its regions."""
    region = request.regions[r]
    return dataclasses.replace(
        request, prompt=region.prompt, negative_prompt=region.negative_prompt, prompt_embeds=None,
        negative_prompt_embeds=None, adapters=(*request.adapters, *region.adapters), regions=(), image_prompts=(),
        controls=(),
    )  # fmt: skip
