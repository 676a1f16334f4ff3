"""Text to image: pictures of prompts."""

from collections.abc import Sequence
from typing import Unpack

from sdjax.pipeline.model import Pipeline
from sdjax.purpose import check_task
from sdjax.tasks.batch import make_batch
from sdjax.tasks.generate import from_noise
from sdjax.tasks.request import SizedOptions
from sdjax.tasks.session import Session, task


@task()
def text_to_image(
    pipe: Pipeline, prompt: str | Sequence[str] | None = None, **options: Unpack[SizedOptions]
) -> Session:
    """Returns pictures of the prompts, uint8 [b, height, width, 3], `num_images` of each prompt, prompt by prompt.

    `options` are the fields of `sdjax.Request`, each one for all pictures or a list with one for each, and those of
    `sdjax.tasks.computing.Computing`. `seed`: picture i is drawn from seed + i, or from entry i of a list; of a single
    prompt as many pictures are made as the lists have entries. A picture depends on its own seed and options alone,
    whatever the batch. Sizes that differ give a list of [h, w, 3], in the order asked.

    Raises ValueError for arguments out of range, ImageError if a picture is not-a-number or one colour,
    OutOfMemoryError with advice if the device runs out of memory.
    """
    check_task(pipe.config, "text_to_image")
    return from_noise(make_batch(pipe, prompt, options))
