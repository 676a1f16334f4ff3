"""Two passes: makes a small picture, enlarges it, and refines it at the larger size."""

import dataclasses
from collections.abc import Sequence
from typing import Unpack

from sdjax import pictures
from sdjax.checks.arguments import number
from sdjax.config import ModelConfig
from sdjax.pipeline.model import Pipeline
from sdjax.purpose import check_task
from sdjax.samplers.noise import SECOND
from sdjax.tasks.batch import Batch, make_batch
from sdjax.tasks.request import Each, SizedOptions
from sdjax.tasks.resolve import STEP, check_size
from sdjax.tasks.results import advice
from sdjax.tasks.session import Making, Session, task

UPSCALES = {"lanczos": None, "bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest"}  # jax.image's names


@task()
def two_pass(
    pipe: Pipeline,
    prompt: str | Sequence[str] | None = None,
    *,
    enlarge: float = 2.0,
    upscale: str = "lanczos",
    strength: Each[float] = 0.6,
    **options: Unpack[SizedOptions],
) -> Session:
    """Returns pictures made in two passes: small ones are enlarged, then image to image refines them.

    The first pass is `text_to_image` at `height` x `width`. `upscale` "lanczos" enlarges its picture; "bilinear",
    "bicubic" and "nearest" enlarge its latent, which needs a `strength` above 0.5 to become sharp. `enlarge` is at
    least 1; the result has at most 2048 pixels a side. The second pass makes the last share `strength` of as many
    steps, with new noise. `options` are those of `text_to_image`; `latents` are for the first pass. Raises whatever
    `text_to_image` raises.
    """
    check_task(pipe.config, "two_pass")
    if upscale not in UPSCALES:
        raise ValueError(f"upscale is one of {', '.join(UPSCALES)}; got {upscale!r}")
    batch = make_batch(pipe, prompt, options)
    large = {size: enlarged(pipe.config, size, enlarge) for size in map(batch.size_of, range(len(batch.requests)))}
    again = batch.starting(strength)
    start_of = {id(request): start for request, start in zip(again.requests, again.starts)}

    def second_of(part: Batch) -> Batch:
        starts = [start_of[id(request)] for request in part.requests]
        return dataclasses.replace(part, starts=starts, folds=(SECOND,))

    def make(part: Batch) -> Making:
        size, second, conditionings = large[part.size], second_of(part), part.conditionings()
        with advice(*size, len(part.requests), pipe.dtype):
            latent = yield from part.sample(None, part.noise(), conditionings, last=False)
            method = UPSCALES[upscale]
            if method is None:
                latent = second.encode([pictures.resize(picture, *size) for picture in part.pixels(latent)])
            else:
                latent = pipe.resize_latent(latent, *size, method, **part.where)
            return part.finish((yield from second.sample(latent, second.noise(size), conditionings)))

    groups = again.groups()  # the first pass makes all steps, so only the second one divides them further
    calls = [part.calls + second_of(part).calls for part in map(batch.part, groups)]
    return Session(batch, make, groups=groups, calls=calls)


def enlarged(config: ModelConfig, size: tuple[int, int], enlarge: float) -> tuple[int, int]:
    """Returns (height, width) times `enlarge`, rounded to a valid size. Raises ValueError if it is too large."""
    enlarge = number("enlarge", enlarge, 1)
    step = max(STEP, config.vae.factor)
    return check_size(config, *(round(side * enlarge / step) * step for side in size))
