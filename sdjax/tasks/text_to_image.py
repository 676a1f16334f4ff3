"""Text to image: pictures of prompts."""

from collections.abc import Sequence
from typing import Unpack

from sdjax.pipeline.model import Pipeline
from sdjax.purpose import check_task
from sdjax.tasks.generate import from_noise
from sdjax.tasks.make_batch import make_batch
from sdjax.tasks.request import SizedOptions
from sdjax.tasks.session import Session, task


@task()
def text_to_image(
    pipe: Pipeline, prompt: str | Sequence[str] | None = None, **options: Unpack[SizedOptions]
) -> Session:
    """Returns pictures of the prompts, uint8 [b, height, width, 3], `num_images` of each prompt, prompt by prompt.

    `options` are the fields of `sdjax.Request`, each one for all pictures or a list with one for each, and those of
    `sdjax.tasks.computing.Computing`. `seed`: picture i uses seed + i, or entry i of a list. With a single prompt, the
    number of pictures is the length of the lists. A picture depends only on its own seed and options, not on the rest
    of the batch. If sizes differ, the result is a list of [h, w, 3], in order.

    Raises ValueError for arguments out of range, ImageError if a picture is not-a-number or one colour,
    OutOfMemoryError with advice if the device runs out of memory.
    """
    check_task(pipe.config, "text_to_image", concat=options.get("concat") is not None)
    return from_noise(make_batch(pipe, prompt, options))
