"""Image to image: pictures made from other pictures and a prompt."""

from collections.abc import Sequence
from typing import Unpack

from sdjax import pictures
from sdjax.pipeline.model import Pipeline
from sdjax.purpose import check_task
from sdjax.tasks import inputs
from sdjax.tasks.batch import Batch
from sdjax.tasks.control_arrays import Seen
from sdjax.tasks.inputs import Pictures
from sdjax.tasks.make_batch import make_batch
from sdjax.tasks.request import Each, Options
from sdjax.tasks.session import Making, Session, task


@task()
def image_to_image(
    pipe: Pipeline,
    image: Pictures,
    prompt: str | Sequence[str] = "",
    *,
    strength: Each[float] = 0.75,
    height: Each[int | None] = None,
    width: Each[int | None] = None,
    **options: Unpack[Options],
) -> Session:
    """Returns pictures made from the given ones by adding noise and taking it away again (SDEdit).

    `image`: a path, a file's bytes, a Pillow image or uint8 [h, w, 3], or a sequence of them. Give one for all prompts,
    one prompt for all, or one each. Pictures are resized by LANCZOS to multiples of 64
    (`sdjax.tasks.inputs.working_size`), or to `height` and `width`, which are one for all or one for each given
    picture. The result is uint8 [b, h, w, 3], or a list of [h, w, 3] if sizes differ. Pictures of one size form one
    batch.

    `strength` from 0 to 1 is the share of the steps that are made, one for all pictures or one for each. 0 only passes
    the picture through the autoencoder; 1 starts from pure noise, like `text_to_image`. The latent is a draw from the
    autoencoder's posterior. `strength_counting` counts the steps as another tool does.

    `options` are those of `text_to_image`. Raises whatever it raises, and ValueError if a file is not a picture.
    """
    check_task(pipe.config, "image_to_image", concat=options.get("concat") is not None)
    given = inputs.open_pictures(image)
    sizes = inputs.working_sizes(pipe.config, given, height, width, windowed=options.get("window") is not None)
    given = [pictures.resize(picture, *size) for picture, size in zip(given, sizes)]
    batch = make_batch(pipe, prompt, options, sizes=sizes, strength=strength).seeing([Seen(one) for one in given])

    def make(part: Batch) -> Making:
        x0 = part.encode([given[i] for i in part.inputs]) if part.needs_x0 else None
        return part.finish((yield from part.sample(x0, part.noise(), part.conditionings())))

    return Session(batch, make)
