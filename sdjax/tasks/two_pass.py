"""Two passes: a picture is made small first, enlarged, and made again at the larger size."""

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
from sdjax.tasks.request import SizedOptions
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
    strength: float = 0.6,
    **options: Unpack[SizedOptions],
) -> Session:
    """Returns pictures made small first, enlarged, and made again from there by image to image at the larger size.

    The first pass is `text_to_image` at `height` x `width`. Its picture is enlarged by LANCZOS (`upscale` "lanczos"),
    or its latent ("bilinear", "bicubic", "nearest"), which needs a strength above one half to become sharp; `enlarge`
    is from 1 to what 2048 pixels allow. The second pass leaves out the first 1 - `strength` of as many steps, and
    draws noise of its own. `options` are `text_to_image`'s, with what it raises; `latents` are the first pass's.
    """
    check_task(pipe.config, "two_pass")
    if upscale not in UPSCALES:
        raise ValueError(f"upscale is one of {', '.join(UPSCALES)}; got {upscale!r}")
    batch = make_batch(pipe, prompt, options)
    large = {size: enlarged(pipe.config, size, enlarge) for size in map(batch.size_of, range(len(batch.requests)))}
    again = {id(request): start for request, start in zip(batch.requests, batch.starting(strength).starts)}

    def second_of(part: Batch) -> Batch:
        starts = [again[id(request)] for request in part.requests]
        return dataclasses.replace(part, starts=starts, folds=(SECOND,))

    def make(part: Batch) -> Making:
        size, second, told = large[part.size], second_of(part), part.told()
        with advice(*size, len(part.requests), pipe.dtype):
            latent = yield from part.sample(None, part.noise(), told, last=False)
            method = UPSCALES[upscale]
            if method is None:
                latent = second.encode([pictures.resize(picture, *size) for picture in part.pixels(latent)])
            else:
                latent = pipe.resize_latent(latent, *size, method, **part.where)
            return part.finish((yield from second.sample(latent, second.noise(size), told)))

    groups = batch.groups()
    calls = [part.calls + second_of(part).calls for part in map(batch.part, groups)]
    return Session(batch, make, groups=groups, calls=calls)


def enlarged(config: ModelConfig, size: tuple[int, int], enlarge: float) -> tuple[int, int]:
    """Returns (height, width) times `enlarge`, to the nearest size there is. Raises ValueError if it is too large."""
    enlarge = number("enlarge", enlarge, 1)
    step = max(STEP, config.vae.factor)
    return check_size(config, *(round(side * enlarge / step) * step for side in size))
