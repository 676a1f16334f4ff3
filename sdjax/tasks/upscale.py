"""The x4 upscaler: pictures four times as high and wide, made from the small picture with noise added, and a prompt."""

from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.checks.arguments import whole
from sdjax.config import ModelConfig, VAEConfig
from sdjax.pictures.image import to_float, to_uint8
from sdjax.pipeline import placement, tiling
from sdjax.pipeline.model import Pipeline
from sdjax.pipeline.programs import one_by_one
from sdjax.purpose import UPSCALER_LEVELS, check_task
from sdjax.samplers.noise import LEVEL, draw_noise
from sdjax.schedule import NoiseSchedule
from sdjax.tasks import inputs
from sdjax.tasks.batch import Batch, make_batch
from sdjax.tasks.request import Options
from sdjax.tasks.results import check_images
from sdjax.tasks.session import Making, Session, task
from sdjax.typing import Image, Keys, Latent, NewImage, Params

TIMES = 4  # the side of what is made to the side of what is given
MAX_SIDE = 512  # of a picture given, in pixels


@task()
def upscale(
    pipe: Pipeline,
    image: Any,
    prompt: str | Sequence[str] = "",
    *,
    noise_level: int = 20,
    **options: Unpack[Options],
) -> Session:
    """Returns the pictures four times as high and wide, uint8 [b, 4 h, 4 w, 3], or a list of [4 h, 4 w, 3].

    `image`: a path, a file's bytes, a Pillow image or uint8 [h, w, 3], or a sequence of them, of any size up to 512 x
    512; one for all prompts, one prompt for all, or one each. A picture is padded at its right and bottom edges, by
    repeating them, to multiples of 64 and at least 128, and what is made of the padding is cut off.

    `noise_level` from 0 to 350: how much noise is added to the picture before the network sees it, as the timestep of
    its schedule, which the network is told too. 20 suits photographs; pictures that a model made take 50 to 100. More
    lets it invent more. The prompt should say what is in the picture.

    The network runs in the pipeline's dtype, the decoder always in float32 (in half precision this one breaks) and
    band by band (`sdjax.pipeline.tiling`). `options` are `sdjax.text_to_image`'s, with what it raises; also ValueError
    for a model of another kind, a picture that is too large, and a level out of range.

    Source: scripts/gradio/superresolution.py; ldm/models/diffusion/ddpm.py:LatentUpscaleDiffusion.
    """
    check_task(pipe.config, "upscale", "upscaling")
    level = check_noise_level(pipe.config, noise_level)
    given = inputs.open_pictures(image)
    for picture in given:
        check_side(*picture.shape[:2])
    padded = [inputs.pad(picture) for picture in given]
    sizes = [(TIMES * h, TIMES * w) for h, w, _ in (picture.shape for picture in padded)]
    batch = make_batch(pipe, prompt, options, sizes=sizes)

    def make(part: Batch) -> Making:
        how = part.how
        low = part.spread([to_float(padded[i]) for i in part.inputs])
        label = placement.split(jnp.full(len(low), level, jnp.int32), how.mesh)
        batched = (True, True, True)
        low = placement.compiled(_add_noise, pipe.schedule, how.mesh, batched, how.parallel)(low, label, part.keys)
        told = part.told(concat=low, label=label)  # the same with and without the prompt
        latent = yield from part.sample(None, part.noise(), told)
        if how.output == "latent":
            return part.finish(latent)
        decode = placement.compiled(_decode, pipe.config.vae, how.mesh, (False, True), how.parallel)
        made = np.asarray(decode(pipe.on(how.mesh)["vae"], latent))[: len(part.requests)]
        check_images(made, pipe.dtype)
        return to_uint8(made)

    def finish(i: int, made: np.ndarray) -> np.ndarray:
        height, width = given[batch.inputs[i]].shape[:2]
        return made[: TIMES * height, : TIMES * width]

    return Session(batch, make, finish)


def check_noise_level(config: ModelConfig, noise_level: int) -> int:
    """Returns the level. Raises ValueError unless it is a whole number from 0 to 350 that the model has a label for."""
    assert config.unet.num_classes is not None
    most = min(UPSCALER_LEVELS, config.unet.num_classes - 1)
    return whole("noise_level", noise_level, 0, most)


def check_side(height: int, width: int) -> None:
    """Raises ValueError for a picture that is too large to be made four times as large."""
    if max(height, width) > MAX_SIDE:
        raise ValueError(
            f"a picture of at most {MAX_SIDE} x {MAX_SIDE} pixels can be made {TIMES} times as large; got {width} x "
            f"{height}: shrink it first, or upscale parts of it"
        )


def _add_noise(schedule: NoiseSchedule, image: Image, level: jax.Array, keys: Keys) -> Image:
    # By the model's own schedule, which in released models is the low-resolution one too; not encoded
    return schedule.add_noise(image, draw_noise(keys, LEVEL, 0, image.shape[1:]), level)


def _decode(config: VAEConfig, params: Params, latent: Latent) -> NewImage:
    return one_by_one(lambda latent: tiling.decode(config, jnp.float32, params, latent), latent)
