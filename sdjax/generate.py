"""The tasks: each a short composition of the pipeline's primitives."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sdjax import samplers, sharding
from sdjax.config import ModelConfig
from sdjax.denoiser import Conditioning
from sdjax.image import to_uint8
from sdjax.pipeline import Pipeline, make_keys
from sdjax.samplers.spacing import fitting
from sdjax.schedule import NoiseSchedule
from sdjax.typing import Pixels

SIDES = (64, 2048)  # smallest and largest height and width, in pixels
STEP = 8  # heights and widths are multiples of this


class ImageError(ValueError):
    """The model made no picture: not-a-number or one flat colour."""


class OutOfMemoryError(MemoryError):
    """The device has too little memory for what was asked."""


def text_to_image(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | Sequence[str] = "",
    seed: int | Sequence[int] = 0,
    num_images: int = 1,
    sampler: str | Any = "ddim",
    num_steps: int = 50,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    eta: float | None = None,
    spacing: str | None = None,
    parallel: sharding.Parallel = "jit",
    devices: Sequence[jax.Device] | None = None,
    exact: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Pixels:
    """Returns pictures of the prompts, uint8 [b, height, width, 3], `num_images` of each prompt, prompt by prompt.

    `seed`: picture i is drawn from seed + i, or from entry i of a sequence with one seed a picture (of a single prompt,
    as many pictures as seeds); a picture depends on its own seed alone, whatever the batch. `guidance_scale` 1 switches
    guidance off, None takes the model's default, as `height` and `width` do. `sampler` is a name of
    `sdjax.samplers.SAMPLERS` or a sampler; `eta` and `spacing` replace its fields of these names; without `spacing` a
    name's steps begin at the last timestep where the schedule has zero terminal SNR (`make_sampler`). The batch is
    spread over `devices` (default: all of this process) by `parallel`. `exact` computes pictures one by one, so that
    they are bit-identical alone and in a batch. `progress(done, total)` counts calls of the network.

    Raises ValueError for arguments out of range, ImageError if a picture is not-a-number or one colour,
    OutOfMemoryError with advice if the device runs out of memory.
    """
    check_task(pipe.config, "text_to_image")
    height, width = check_size(pipe.config, height, width)
    prompts, negatives, seeds = expand(prompt, negative_prompt, seed, num_images)
    sampler = make_sampler(sampler, pipe.schedule, eta=eta, spacing=spacing)
    scale = pipe.config.guidance_scale if guidance_scale is None else guidance_scale
    if not np.isfinite(scale):
        raise ValueError(f"guidance_scale is a finite number; got {scale}")
    mesh = sharding.make_mesh(devices)
    count = len(prompts)

    def fill(items: list) -> list:  # every device gets as many pictures: the last one is made again
        return items + items[-1:] * (sharding.padded(count, mesh.size) - count)

    with advice(height, width, count, pipe.dtype):
        keys = sharding.split(make_keys(fill(seeds)), mesh)
        options = {"mesh": mesh, "parallel": parallel}
        context = pipe.encode_prompt(fill(prompts), exact=exact, **options)
        unconditional = None
        if scale != 1:
            unconditional = Conditioning(context=pipe.encode_prompt(fill(negatives), exact=exact, **options))
        rows = sampler.steps(pipe.schedule, num_steps)
        x = sampler.initial(pipe.noise(keys, height, width, **options), rows)
        state = pipe.sample(
            sampler, rows, x, keys, Conditioning(context=context), unconditional, scale, exact=exact,
            progress=progress, **options,
        )  # fmt: skip
        image = np.asarray(pipe.decode(sampler.final(state, rows), **options))[:count]
    check_images(image, pipe.dtype)
    return to_uint8(image)


def check_task(config: ModelConfig, task: str) -> None:
    """Raises ValueError unless the model takes nothing but a latent and a prompt."""
    unet, vae = config.unet, config.vae
    if unet.in_channels != vae.latent_channels or unet.num_classes is not None or unet.label_dim is not None:
        raise ValueError(
            f"{task} needs a model that takes a latent of {vae.latent_channels} channels and a prompt; this one "
            f"({config.name}) takes {unet.in_channels} channels"
            + (" and a label" if unet.num_classes is not None or unet.label_dim is not None else "")
        )


def check_size(config: ModelConfig, height: int | None, width: int | None) -> tuple[int, int]:
    """Returns height and width, the model's own side where None.

    Raises ValueError, naming the nearest valid sizes, unless both are multiples of 8 from 64 to 2048.
    """
    sides = []
    step = max(STEP, config.vae.factor)
    for name, side in ("height", height), ("width", width):
        side = config.image_size if side is None else side
        low, high = SIDES
        if not low <= side <= high or side % step:
            below = min(max(side // step * step, low), high)
            above = min(max(sharding.padded(side, step), low), high)
            near = f"{below}" if below == above else f"{below} or {above}"
            raise ValueError(f"{name} is a multiple of {step} from {low} to {high}; got {side}, the nearest is {near}")
        sides.append(side)
    return sides[0], sides[1]


def expand(
    prompt: str | Sequence[str], negative: str | Sequence[str], seed: int | Sequence[int], num_images: int
) -> tuple[list[str], list[str], list[int]]:
    """Returns one prompt, one negative prompt and one seed a picture.

    Raises ValueError where the numbers of them do not fit.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
    if len(prompts) == 1 and num_images == 1 and np.ndim(seed) == 1 and len(seed):
        num_images = len(seed)
    if not prompts:
        raise ValueError("at least one prompt is needed, got none")
    if num_images < 1:
        raise ValueError(f"num_images is at least 1; got {num_images}")
    if len(negatives) != len(prompts):
        raise ValueError(f"one negative prompt, or one for each of the {len(prompts)} prompts; got {len(negatives)}")
    prompts = [p for p in prompts for _ in range(num_images)]
    negatives = [n for n in negatives for _ in range(num_images)]
    seeds = [int(seed) + i for i in range(len(prompts))] if np.ndim(seed) == 0 else [int(s) for s in seed]
    if len(seeds) != len(prompts):
        raise ValueError(f"one seed, or one for each of the {len(prompts)} pictures; got {len(seeds)}")
    return prompts, negatives, seeds


def make_sampler(sampler: str | Any, schedule: NoiseSchedule | None = None, **fields: Any) -> Any:
    """Returns the sampler of that name, or the sampler itself, with the fields that are not None replaced.

    A name's own spacing gives way to one that fits the `schedule` (`sdjax.samplers.spacing.fitting`) unless `fields`
    has one; that of a sampler that was handed over stays.

    Raises ValueError for an unknown name (listing the known ones) or a field that the sampler does not have.
    """
    if isinstance(sampler, str):
        if sampler not in samplers.SAMPLERS:
            raise ValueError(f"unknown sampler {sampler!r}; the known ones are {', '.join(sorted(samplers.SAMPLERS))}")
        sampler = samplers.SAMPLERS[sampler]()
        if schedule is not None:
            sampler = dataclasses.replace(sampler, spacing=fitting(sampler.spacing, schedule))
    fields = {name: value for name, value in fields.items() if value is not None}
    unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(sampler)})
    if unknown:
        raise ValueError(f"the sampler {type(sampler).__name__} has no {' and no '.join(unknown)}")
    return dataclasses.replace(sampler, **fields)


def check_images(image: np.ndarray, dtype: str) -> None:
    """Raises ImageError, with advice, if an image [b, h, w, 3] holds a value that is not finite, or is one colour."""
    for i, picture in enumerate(image):
        if not np.isfinite(picture).all():
            advice = "try dtype bfloat16 or float32" if dtype == "float16" else "is the checkpoint damaged?"
            raise ImageError(f"picture {i} holds values that are not numbers (computed in {dtype}); {advice}")
        if np.ptp(picture, axis=(0, 1)).max() == 0:
            raise ImageError(
                f"picture {i} is one flat colour; is the prediction type the model's (epsilon or v), and is the "
                "guidance scale a usual one (1 to 20)?"
            )


@contextlib.contextmanager
def advice(height: int, width: int, count: int, dtype: str) -> Iterator[None]:
    """Turns a device's out-of-memory error into an OutOfMemoryError that says what to try."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        tries = []
        if count > 1:
            tries.append(f"fewer pictures at once than {count}")
        if height * width > 512 * 512:
            tries.append(f"a smaller size than {width} x {height}")
        if dtype == "float32":
            tries.append("dtype bfloat16")
        tries = tries or ["closing other programs that use the device", "another device"]
        raise OutOfMemoryError(
            f"the device has too little memory for {count} picture(s) of {width} x {height} in {dtype}; "
            f"try {', or '.join(tries)}"
        ) from error
