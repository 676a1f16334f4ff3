"""The x4 upscaler: pictures four times as high and wide, made from the small picture with noise added, and a prompt."""

from collections.abc import Sequence
from typing import Unpack

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
from sdjax.tasks.batch import Batch
from sdjax.tasks.inputs import Pictures
from sdjax.tasks.make_batch import make_batch
from sdjax.tasks.request import Options
from sdjax.tasks.results import check_images
from sdjax.tasks.session import Making, Session, task
from sdjax.typing import Image, Keys, Latent, NewImage, Params

TIMES = 4  # side of the result divided by the side of the input
MAX_SIDE = 512  # largest side of an input picture, in pixels


@task()
def upscale(
    pipe: Pipeline,
    image: Pictures,
    prompt: str | Sequence[str] = "",
    *,
    noise_level: int = 20,
    **options: Unpack[Options],
) -> Session:
    """Returns the pictures four times as high and wide, uint8 [b, 4 h, 4 w, 3], or a list of [4 h, 4 w, 3].

    `image`: a path, a file's bytes, a Pillow image or uint8 [h, w, 3], of any size up to 512 x 512, or a sequence of
    them. Give one for all prompts, one prompt for all, or one each. A picture is padded to multiples of 64, at least
    128, by repeating its right and bottom edges; the result is cropped.

    `noise_level` from 0 to 350 is the noise added to the picture before the network sees it, as a timestep of the
    schedule. The network is conditioned on this level too. Use 20 for photographs and 50 to 100 for generated pictures.
    Higher levels let the network invent more. The prompt should describe the picture.

    The network runs in the pipeline's dtype. The decoder always runs in float32, because it breaks in half precision,
    and band by band (`sdjax.pipeline.tiling`). `options` are those of `sdjax.text_to_image`. Raises whatever it raises,
    and ValueError for a model of another kind, a picture that is too large, and a level out of range.

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
    inputs.check_seamless(
        batch.requests, [given[i].shape[:2] for i in batch.inputs], [padded[i].shape[:2] for i in batch.inputs]
    )

    def make(part: Batch) -> Making:
        how = part.how
        low = part.spread([to_float(padded[i]) for i in part.inputs])
        label = placement.split(jnp.full(len(low), level, jnp.int32), how.mesh)
        batched = (True, True, True)
        low = placement.compiled(_add_noise, pipe.schedule, how.mesh, batched, how.parallel)(low, label, part.keys)
        conditionings = part.conditionings(concat=low, label=label)  # the same with and without the prompt
        latent = yield from part.sample(None, part.noise(), conditionings)
        if how.output == "latent":
            return part.finish(latent)
        decode = placement.compiled(
            _decode, (pipe.config.vae, part.seamless or ""), how.mesh, (False, True), how.parallel
        )
        made = np.asarray(decode(pipe.on(how.mesh)["vae"], latent))[: len(part.requests)]
        check_images(made, pipe.dtype)
        return to_uint8(made)

    def finish(i: int, made: np.ndarray) -> np.ndarray:
        height, width = given[batch.inputs[i]].shape[:2]
        return made[: TIMES * height, : TIMES * width]

    return Session(batch, make, finish)


def check_noise_level(config: ModelConfig, noise_level: int) -> int:
    """Returns the level. Raises ValueError unless it is a whole number from 0 to 350 and one of the model's labels."""
    assert config.unet.num_classes is not None
    most = min(UPSCALER_LEVELS, config.unet.num_classes - 1)
    return whole("noise_level", noise_level, 0, most)


def check_side(height: int, width: int) -> None:
    """Raises ValueError for a picture that is too large to upscale."""
    if max(height, width) > MAX_SIDE:
        raise ValueError(
            f"a picture to upscale has at most {MAX_SIDE} x {MAX_SIDE} pixels; got {width} x {height}: shrink it "
            "first, or upscale parts of it"
        )


def _add_noise(schedule: NoiseSchedule, image: Image, level: jax.Array, keys: Keys) -> Image:
    # Uses the model's schedule; released models have the same one for the low-resolution picture. It is not encoded
    return schedule.add_noise(image, draw_noise(keys, LEVEL, 0, image.shape[1:]), level)


def _decode(static: tuple[VAEConfig, str], params: Params, latent: Latent) -> NewImage:
    config, seamless = static
    return one_by_one(lambda latent: tiling.decode(config, jnp.float32, params, latent, seamless=seamless), latent)
