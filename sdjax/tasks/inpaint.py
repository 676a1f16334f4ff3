"""Inpainting and outpainting: a part of a picture is made again, or a picture is continued beyond its edges."""

from collections.abc import Sequence
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np

from sdjax import pictures
from sdjax.checks.arguments import flag
from sdjax.checks.notes import note
from sdjax.config import ModelConfig
from sdjax.diffusion.constraint import Known
from sdjax.pictures.image import to_float
from sdjax.pipeline.model import Pipeline
from sdjax.purpose import check_task, kind_of
from sdjax.tasks import inputs
from sdjax.tasks.batch import Batch, Sampling, make_batch
from sdjax.tasks.request import Options
from sdjax.tasks.session import Making, Session, task

METHODS = {"blend": "text", "concat": "inpainting"}  # ways to inpaint, and the kind of model that each takes


@task()
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
) -> Session:
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
    sizes = [frame.repaint.shape for frame in frames]
    batch = make_batch(pipe, prompt, options, sizes=sizes, strength=strength)
    make_latent = {"blend": blended, "concat": concatenated}[method]

    def make(part: Batch) -> Making:
        return part.finish((yield from make_latent(part, [frames[i] for i in part.inputs])))

    def finish(i: int, made: np.ndarray) -> np.ndarray:
        return inputs.put_back(frames[batch.inputs[i]], made, composite=composite, feather=feather)

    return Session(batch, make, finish)


def blended(batch: Batch, frames: Sequence[inputs.Frame]) -> Sampling:
    """Returns latents whose known part is held fixed; an entry is known if all of its pixels are."""
    factor = batch.pipe.config.vae.factor
    x0 = batch.encode([frame.pixels for frame in frames])
    keep = batch.spread([~inputs.repainted_latents(frame.repaint, factor)[..., None] for frame in frames])
    return (yield from batch.sample(x0, batch.noise(), batch.told(), Known(x0, keep)))


def concatenated(batch: Batch, frames: Sequence[inputs.Frame]) -> Sampling:
    """Returns latents of a network that is given latent, mask, latent of the masked picture, in this order.

    The mask's entry is the first pixel of eight along each side, as torch's "nearest" takes it; the hole is grey,
    0; its latent is a draw from the posterior. Source: scripts/gradio/inpainting.py.
    """
    factor = batch.pipe.config.vae.factor
    mask = batch.spread([frame.repaint[::factor, ::factor, None].astype(np.float32) for frame in frames])
    holes = [np.where(frame.repaint[..., None], np.float32(0), to_float(frame.pixels)) for frame in frames]
    concat = jnp.concatenate([mask, batch.encode(holes, draw=1)], axis=-1)
    x0 = batch.encode([frame.pixels for frame in frames]) if batch.needs_x0 else None
    return (yield from batch.sample(x0, batch.noise(), batch.told(concat=concat)))


def check_method(config: ModelConfig, method: str | None) -> str:
    """Returns the way in which the model inpaints. Raises ValueError if it cannot, or not by this method."""
    if method not in (None, *METHODS):
        raise ValueError(f"method is one of {', '.join(METHODS)}; got {method!r}")
    kinds = METHODS.values() if method is None else [METHODS[method]]
    check_task(config, "inpaint" if method is None else f"inpaint by method {method!r}", *kinds)
    return {kind: name for name, kind in METHODS.items()}[kind_of(config)]


@task(also=inpaint)
def outpaint(
    pipe: Pipeline,
    image: Any,
    prompt: str | Sequence[str] = "",
    *,
    expand: Sequence[int],
    mask: Any = None,
    overlap: int = 0,
    **options: Any,
) -> Session:
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
    return inpaint.session(pipe, [picture for picture, _ in grown], masks, prompt, **options)
