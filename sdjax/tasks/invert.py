"""Inversion: the starting noise from which DDIM makes a given picture."""

from collections.abc import Sequence
from typing import Unpack, cast

import numpy as np

from sdjax import pictures
from sdjax.pictures.image import to_float
from sdjax.pipeline.model import Pipeline
from sdjax.purpose import check_task
from sdjax.samplers.inversion import DDIMInversion
from sdjax.samplers.schedules import Schedule
from sdjax.samplers.spacing import fitting
from sdjax.tasks import inputs
from sdjax.tasks.batch import Batch
from sdjax.tasks.control_arrays import Seen
from sdjax.tasks.inputs import Pictures
from sdjax.tasks.make_batch import make_batch
from sdjax.tasks.request import SizedOptions
from sdjax.tasks.session import Making, Session, task


@task()
def invert(
    pipe: Pipeline,
    image: Pictures,
    prompt: str | Sequence[str] = "",
    *,
    refinements: int = 0,
    **options: Unpack[SizedOptions],
) -> Session:
    """Returns the starting noise of pictures: float32 [b, height / 8, width / 8, 4], or a list if sizes differ.

    It is what `text_to_image` takes as `latents`: with the same prompt, number of steps and guidance scale, sampler
    "ddim" makes the picture again, and with another prompt a picture that has much of it.

        noise = sdjax.invert(pipe, "cat.png", "a cat", num_steps=50)
        sdjax.text_to_image(pipe, "a dog", latents=noise, num_steps=50, guidance_scale=1)

    `image` is as in `image_to_image`. The latent is the mean of the autoencoder's posterior. `refinements`: how often
    each step is made again with its last result (`sdjax.samplers.inversion.DDIMInversion`); 0 is the usual inversion.

    `options` are those of `text_to_image`, without `sampler`. `guidance_scale` is 1 if not given: with guidance
    inversion is less exact, because the error of a step is multiplied by the scale. Raises whatever `image_to_image`
    raises.
    """
    check_task(pipe.config, "image_to_image")
    for name in ("sampler", "eta", "latents"):
        if options.get(name) is not None:
            raise ValueError(f"inversion is DDIM's without fresh noise, and ends in noise: leave out {name}")
    # All pictures have one spacing and one size: the sampler and `working_size` refuse lists
    spacing = cast(str | Schedule | None, options.get("spacing"))
    usual = fitting("even", pipe.schedule)  # that of "ddim", whose steps are walked backwards
    sampler = DDIMInversion(refinements=refinements, spacing=usual if spacing is None else spacing)
    given = inputs.open_pictures(image)
    height, width = cast(int | None, options.get("height")), cast(int | None, options.get("width"))
    sizes = [inputs.working_size(pipe.config, one.shape[:2], height, width) for one in given]
    given = [pictures.resize(picture, *size) for picture, size in zip(given, sizes)]
    rest = {name: value for name, value in options.items() if name not in ("height", "width", "spacing")}
    batch = make_batch(pipe, prompt, {"guidance_scale": 1.0, **rest, "sampler": sampler}, sizes=sizes)
    batch = batch.seeing([Seen(one) for one in given])

    def make(part: Batch) -> Making:
        images = part.spread([to_float(given[i]) for i in part.inputs])
        latent = pipe.encode_image(images, **part.where)
        # The sampler starts from the latent where others start from noise
        noise = yield from part.sample(None, latent, part.conditionings())
        return np.asarray(noise)[: len(part.requests)]

    return Session(batch, make)
