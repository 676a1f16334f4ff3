"""Editing by instructions: InstructPix2Pix, whose network takes the latent of a picture beside the noisy latent.

Source: Brooks et al. 2022 (arXiv 2211.09800); timothybrooks/instruct-pix2pix, edit_cli.py.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Unpack

import jax

from sdjax import pictures
from sdjax.checks.arguments import is_sequence, number
from sdjax.diffusion.guidance import Rules
from sdjax.diffusion.rules.branches import Edit
from sdjax.pictures.image import to_float
from sdjax.pipeline.model import Pipeline
from sdjax.purpose import check_task
from sdjax.tasks import inputs
from sdjax.tasks.batch import Batch, Sampling
from sdjax.tasks.control_arrays import Seen
from sdjax.tasks.inputs import Pictures
from sdjax.tasks.make_batch import batch_of, read_options
from sdjax.tasks.request import Each, Options, Request, rules_of
from sdjax.tasks.session import Making, Session, task
from sdjax.typing import Latent


@task()
def edit(
    pipe: Pipeline,
    image: Pictures,
    prompt: str | Sequence[str] = "",
    *,
    image_scale: Each[float] = 1.5,
    height: Each[int | None] = None,
    width: Each[int | None] = None,
    **options: Unpack[Options],
) -> Session:
    """Returns the given pictures changed as the prompt says, such as "make it winter".

    `image`, `height` and `width` are as for `sdjax.image_to_image`. `image_scale` is the guidance scale of the picture:
    larger keeps more of it. `guidance_scale` is that of the prompt: larger changes more. One for all, or one for each.
    Sampling starts from noise; the network sees the picture in every step.

    `options` are those of `text_to_image`. Raises ValueError if the model is not InstructPix2Pix, and whatever
    `image_to_image` raises.
    """
    check_task(pipe.config, "edit", "edit")
    given = inputs.open_pictures(image)
    sizes = inputs.working_sizes(pipe.config, given, height, width, windowed=options.get("window") is not None)
    given = [pictures.resize(picture, *size) for picture, size in zip(given, sizes)]
    how, requests, which = read_options(prompt, options, len(sizes))
    every: Sequence[Any] = image_scale if is_sequence(image_scale) else [image_scale]  # type: ignore[assignment]
    scales = inputs.one_each("image_scale", list(every), len(requests))
    requests = [with_image_scale(request, scale) for request, scale in zip(requests, scales)]
    batch = batch_of(pipe, requests, how, which, [sizes[i] for i in which]).seeing([Seen(one) for one in given])

    def make(part: Batch) -> Making:
        images = part.spread([to_float(given[i]) for i in part.inputs])
        # The mean of the posterior, without the scale of other latents: as the network was trained
        mean = part.pipe.encode_image(images, seamless=part.seamless, **part.where)
        return part.finish((yield from edited(part, mean / pipe.config.vae.scale_factor)))

    return Session(batch, make)


def with_image_scale(request: Request, scale: float) -> Request:
    """Returns a request with this guidance scale of the picture. With 1 no further pass is needed.

    Raises ValueError for guidance that has a scale of its own.
    """
    scale = number("image_scale", scale)
    rules = rules_of(request.guidance, request.guidance_options)
    if not isinstance(rules, tuple) or any(isinstance(rule, Edit) for rule in rules):
        raise ValueError("image_scale is the scale of the rule edit: leave out that rule, or a guidance of your own")
    if scale == 1:
        return request
    return dataclasses.replace(request, guidance=Rules((Edit(scale), *rules)), guidance_options=None)


def edited(batch: Batch, picture: Latent | jax.Array) -> Sampling:
    """Returns latents that the network makes of noise, with the pictures' unscaled latents beside it."""
    return (yield from batch.sample(None, batch.noise(), batch.conditionings(concat=picture)))
