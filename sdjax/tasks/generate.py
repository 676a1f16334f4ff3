"""The tasks: each a short composition of the pipeline's primitives.

What a task decides is where sampling starts, what the network is told, and what of the latent is known; what all of
them share is in `sdjax.tasks.batch`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import pictures
from sdjax.checks.arguments import flag, number
from sdjax.checks.hints import explains_arguments
from sdjax.checks.notes import note
from sdjax.config import ModelConfig
from sdjax.diffusion.constraint import Known
from sdjax.nn.jax_settings import pinned
from sdjax.pictures.image import to_float
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline
from sdjax.purpose import check_task, kind_of
from sdjax.samplers.base import SECOND
from sdjax.tasks import inputs
from sdjax.tasks.batch import (
    STEP,
    ImageError,
    OutOfMemoryError,
    Run,
    advice,
    by_size,
    check_images,
    check_size,
    expand,
    joined,
    make_run,
    make_sampler,
)
from sdjax.typing import Latent, Pixels

__all__ = [
    "METHODS", "UPSCALES", "ImageError", "Options", "OutOfMemoryError", "advice", "check_images", "check_size",
    "check_task", "expand", "image_to_image", "inpaint", "make_sampler", "outpaint", "text_to_image", "two_pass",
]  # fmt: skip

METHODS = {"blend": "text", "concat": "inpainting"}  # ways to inpaint, and the kind of model that each takes
UPSCALES = {"lanczos": None, "bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest"}  # jax.image's names


class Options(TypedDict, total=False):
    """The arguments of `text_to_image` that every task takes, with the same meaning and the same defaults."""

    negative_prompt: str | None | Sequence[str | None]
    seed: int | None | Sequence[int | None]
    num_images: int
    sampler: str | Any
    num_steps: int
    guidance_scale: float | None
    eta: float | None
    spacing: str | None
    parallel: placement.Parallel
    devices: Sequence[jax.Device] | None
    exact: bool
    progress: Callable[[int, int], None] | None


@explains_arguments()
@pinned()
def text_to_image(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | None | Sequence[str | None] = "",
    seed: int | None | Sequence[int | None] = 0,
    num_images: int = 1,
    sampler: str | Any = "ddim",
    num_steps: int = 50,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    eta: float | None = None,
    spacing: str | None = None,
    parallel: placement.Parallel = "jit",
    devices: Sequence[jax.Device] | None = None,
    exact: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Pixels:
    """Returns pictures of the prompts, uint8 [b, height, width, 3], `num_images` of each prompt, prompt by prompt.

    `seed`: picture i is drawn from seed + i, or from entry i of a sequence with one seed a picture (of a single prompt,
    as many pictures as seeds); None is 0, and i for entry i; a picture depends on its own seed alone, whatever the
    batch. A `negative_prompt` of None is the empty one. `guidance_scale` 1 switches guidance off, None takes the
    model's default, as `height` and `width` do. `sampler` is a name of
    `sdjax.samplers.SAMPLERS` or a sampler; `eta` and `spacing` replace its fields of these names; without `spacing` a
    name's steps begin at the last timestep where the schedule has zero terminal SNR (`make_sampler`). The batch is
    spread over `devices` (default: all of this process) by `parallel`. `exact` computes pictures one by one, so that
    they are bit-identical alone and in a batch. `progress(done, total)` counts calls of the network.

    Raises ValueError for arguments out of range, ImageError if a picture is not-a-number or one colour,
    OutOfMemoryError with advice if the device runs out of memory.
    """
    check_task(pipe.config, "text_to_image")
    height, width = check_size(pipe.config, height, width)
    run = make_run(
        pipe, prompt, negative_prompt=negative_prompt, seed=seed, num_images=num_images, sampler=sampler,
        num_steps=num_steps, guidance_scale=guidance_scale, eta=eta, spacing=spacing, parallel=parallel,
        devices=devices, exact=exact, progress=progress,
    )  # fmt: skip
    with run.advice(height, width):
        return run.decode(run.sample(run.start(), None, run.noise(height, width), run.told()))


@explains_arguments()
@pinned()
def image_to_image(
    pipe: Pipeline,
    image: Any,
    prompt: str | Sequence[str] = "",
    *,
    strength: float = 0.75,
    height: int | None = None,
    width: int | None = None,
    compat: str | None = None,
    **options: Unpack[Options],
) -> Pixels | list[np.ndarray]:
    """Returns pictures made from the given ones by adding noise and taking it away again (SDEdit).

    `image`: a path, a file's bytes, a Pillow image or uint8 [h, w, 3], or a sequence of them; one for all prompts, one
    prompt for all, or one each. Its size is brought to multiples of 64 (`sdjax.tasks.inputs.working_size`) or to
    `height` and `width` by LANCZOS. The result is uint8 [b, h, w, 3], or a list of [h, w, 3] where sizes differ;
    pictures of one
    size are one batch.

    `strength` from 0 to 1 is the share of the steps that are made: 0 gives the autoencoder's round trip, 1 starts from
    pure noise and is `text_to_image`. The latent is a draw from the autoencoder's posterior. `compat` "compvis" counts
    timesteps and steps as CompVis's and Stability's scripts do, one off.

    `options` are `text_to_image`'s, with what it raises; also ValueError for a file that is no picture.
    """
    check_task(pipe.config, "image_to_image")
    given = inputs.open_pictures(image)
    sizes = [inputs.working_size(pipe.config, picture.shape[:2], height, width) for picture in given]
    given = [pictures.resize(picture, *size) for picture, size in zip(given, sizes)]
    if compat is not None:
        options = {**options, "spacing": options.get("spacing") or "compvis"}
    run = make_run(pipe, prompt, num_inputs=len(given), **options)
    start = run.start(strength, compat=compat)

    def make(part: Run, _: list[int]) -> Pixels:
        x0 = part.encode([given[i] for i in part.inputs]) if start.needs_x0 else None
        return part.decode(part.sample(start, x0, part.noise(*sizes[part.inputs[0]]), part.told()))

    return joined(by_size(run, [sizes[i] for i in run.inputs], make))


@explains_arguments()
@pinned()
def two_pass(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    *,
    enlarge: float = 2.0,
    upscale: str = "lanczos",
    strength: float = 0.6,
    height: int | None = None,
    width: int | None = None,
    **options: Unpack[Options],
) -> Pixels:
    """Returns pictures made small first, enlarged, and made again from there by image to image at the larger size.

    The first pass is `text_to_image` at `height` x `width`. Its picture is enlarged by LANCZOS (`upscale` "lanczos"),
    or its latent ("bilinear", "bicubic", "nearest"), which needs a strength above one half to become sharp; `enlarge`
    is from 1 to what 2048 pixels allow. The second pass leaves out the first 1 - `strength` of as many steps, and
    draws noise of its own. `options` are `text_to_image`'s, with what it raises.
    """
    check_task(pipe.config, "two_pass")
    small = check_size(pipe.config, height, width)
    large = enlarged(pipe.config, small, enlarge)
    if upscale not in UPSCALES:
        raise ValueError(f"upscale is one of {', '.join(UPSCALES)}; got {upscale!r}")
    run = make_run(pipe, prompt, **options)
    starts = run.start(), run.start(strength)
    first, second = (dataclasses.replace(run, folds=folds) for folds in ((), (SECOND,)))
    if run.progress is not None:
        calls = [0 if start.rows is None else len(start.rows.timestep) for start in starts]
        first = dataclasses.replace(first, progress=lambda done, _: run.progress(done, sum(calls)))
        second = dataclasses.replace(second, progress=lambda done, _: run.progress(calls[0] + done, sum(calls)))
    with run.advice(*large):
        told = run.told()
        latent = first.sample(starts[0], None, first.noise(*small), told)
        if upscale == "lanczos":
            latent = second.encode([pictures.resize(picture, *large) for picture in first.decode(latent)])
        else:
            latent = run.pipe.resize_latent(latent, *large, UPSCALES[upscale], mesh=run.mesh, parallel=run.parallel)
        return second.decode(second.sample(starts[1], latent, second.noise(*large), told))


def enlarged(config: ModelConfig, size: tuple[int, int], enlarge: float) -> tuple[int, int]:
    """Returns (height, width) times `enlarge`, to the nearest size there is. Raises ValueError if it is too large."""
    enlarge = number("enlarge", enlarge, 1)
    step = max(STEP, config.vae.factor)
    return check_size(config, *(round(side * enlarge / step) * step for side in size))


@explains_arguments()
@pinned()
def inpaint(
    pipe: Pipeline,
    image: Any,
    mask: Any,
    prompt: str | Sequence[str] = "",
    *,
    strength: float = 1.0,
    method: str | None = None,
    only_masked: bool = False,
    padding: int = 32,
    composite: bool = True,
    feather: int = 0,
    **options: Unpack[Options],
) -> Pixels | list[np.ndarray]:
    """Returns the pictures with what is white in their masks made anew, each in its own size.

    `image` as for `image_to_image`; `mask`: path, bytes, Pillow image, bool or uint8 [h, w] (white from 128 on), one
    for all or one for each picture, and as large as it. Pictures are never resized but padded to multiples of 64, by
    repeating their edges, and cropped back; those of one padded size are one batch. The result is uint8 [b, h, w, 3],
    or a list of [h, w, 3] where sizes differ.

    `method` None is the model's: "concat" tells a network of 9 channels the mask and the picture without its masked
    part (grey there); "blend", for a network that knows no masks, puts the known part back, with noise, at every step.
    `only_masked` works on the part around the mask, with `padding` pixels, enlarged to the model's size where it is
    smaller. `composite` takes all pixels outside the mask from the picture itself, byte for byte; `feather` mixes both
    over so many pixels. `strength` below 1 starts from what is there, as `image_to_image` does; 0 gives the round trip.

    `options` are `text_to_image`'s, with what it raises; also ValueError for a file that is no picture and a mask of
    another size.
    """
    method = check_method(pipe.config, method)
    inputs.check_margins(padding=padding, feather=feather)
    only_masked, composite = flag("only_masked", only_masked), flag("composite", composite)
    given = inputs.open_pictures(image)
    masks = inputs.open_masks(mask, [picture.shape[:2] for picture in given])
    empty = sum(not one.any() for one in masks)
    if empty:
        note(
            f"the mask of {empty} of {len(masks)} pictures selects nothing (white is made anew): they come back as "
            "they are"
        )
    if feather and not composite:
        note("feather has no effect without composite, which joins the two: leave one of them out")
    if padding != 32 and not only_masked:
        note("padding has no effect without only_masked: ask for that, or leave it out")
    side = pipe.config.image_size if only_masked else None
    frames = [inputs.make_frame(*pair, side=side, padding=padding) for pair in zip(given, masks, strict=True)]
    run = make_run(pipe, prompt, num_inputs=len(given), **options)
    start = run.start(strength)
    make_latent = {"blend": blended, "concat": concatenated}[method]

    def make(part: Run, _: list[int]) -> Pixels:
        return part.decode(make_latent(part, start, [frames[i] for i in part.inputs]))

    made = by_size(run, [frames[i].repaint.shape for i in run.inputs], make)
    return joined(
        [inputs.put_back(frames[i], one, composite=composite, feather=feather) for i, one in zip(run.inputs, made)]
    )


def blended(run: Run, start: Any, frames: Sequence[inputs.Frame]) -> Latent:
    """Returns latents whose known part is held fixed; an entry is known if all of its pixels are."""
    factor = run.pipe.config.vae.factor
    x0 = run.encode([frame.pixels for frame in frames])
    keep = run.spread([~inputs.repainted_latents(frame.repaint, factor)[..., None] for frame in frames])
    return run.sample(start, x0, run.noise(*frames[0].repaint.shape), run.told(), Known(x0, keep))


def concatenated(run: Run, start: Any, frames: Sequence[inputs.Frame]) -> Latent:
    """Returns latents of a network that is told latent, mask, latent of the masked picture, in this order.

    The mask's entry is the first pixel of eight along each side, as torch's "nearest" takes it; the hole is grey,
    0; its latent is a draw from the posterior. Source: scripts/gradio/inpainting.py.
    """
    factor = run.pipe.config.vae.factor
    mask = run.spread([frame.repaint[::factor, ::factor, None].astype(np.float32) for frame in frames])
    holes = [np.where(frame.repaint[..., None], np.float32(0), to_float(frame.pixels)) for frame in frames]
    concat = jnp.concatenate([mask, run.encode(holes, draw=1)], axis=-1)
    x0 = run.encode([frame.pixels for frame in frames]) if start.needs_x0 else None
    return run.sample(start, x0, run.noise(*frames[0].repaint.shape), run.told(concat=concat))


def check_method(config: ModelConfig, method: str | None) -> str:
    """Returns the way in which the model inpaints. Raises ValueError if it cannot, or not by this method."""
    if method not in (None, *METHODS):
        raise ValueError(f"method is one of {', '.join(METHODS)}; got {method!r}")
    kinds = METHODS.values() if method is None else [METHODS[method]]
    check_task(config, "inpaint" if method is None else f"inpaint by method {method!r}", *kinds)
    return {kind: name for name, kind in METHODS.items()}[kind_of(config)]


@explains_arguments(also=inpaint)
def outpaint(
    pipe: Pipeline,
    image: Any,
    prompt: str | Sequence[str] = "",
    *,
    expand: Sequence[int],
    mask: Any = None,
    overlap: int = 0,
    **options: Any,
) -> Pixels | list[np.ndarray]:
    """Returns the pictures with `expand` = (left, top, right, bottom) pixels more, made to continue them.

    It is `inpaint`, with its arguments, of the extended picture. Made anew are also what is white in `mask`, which is
    as large as the picture itself, and `overlap` pixels of the picture along the sides that grow, over which `feather`
    can mix the two.
    """
    check_method(pipe.config, options.get("method"))
    inputs.check_margins(overlap=overlap)
    left, top, right, bottom = sides = inputs.check_expand(expand)
    given = inputs.open_pictures(image)
    sizes = [picture.shape[:2] for picture in given]
    masks = [np.zeros(size, bool) for size in sizes] if mask is None else inputs.open_masks(mask, sizes)
    grown = [pictures.expand(picture, *sides, overlap=overlap) for picture in given]
    masks = [(new > 0) | np.pad(old, ((top, bottom), (left, right))) for (_, new), old in zip(grown, masks)]
    return inpaint(pipe, [picture for picture, _ in grown], masks, prompt, **options)
