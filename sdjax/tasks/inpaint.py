"""Inpainting and outpainting: repaints a part of a picture, or continues a picture beyond its edges."""

import functools
from collections.abc import Sequence
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np

from sdjax import pictures
from sdjax.checks.arguments import flag, shown
from sdjax.checks.notes import note
from sdjax.config import ModelConfig
from sdjax.diffusion.constraint import Known
from sdjax.pictures.image import to_float
from sdjax.pipeline.model import Pipeline
from sdjax.purpose import check_task, kind_of
from sdjax.tasks import inputs
from sdjax.tasks.batch import Batch, Sampling
from sdjax.tasks.control_arrays import Seen
from sdjax.tasks.inputs import Pictures
from sdjax.tasks.make_batch import make_batch
from sdjax.tasks.request import Each, Options
from sdjax.tasks.session import Making, Session, task
from sdjax.typing import Latent

FILLS = ("picture", "noise", "nothing")  # what the latent of the part to repaint is at the start
METHODS = {"blend": "text", "concat": "inpainting"}  # methods, and the kind of model that each needs


@task()
def inpaint(
    pipe: Pipeline,
    image: Pictures,
    mask: Pictures,
    prompt: str | Sequence[str] = "",
    *,
    strength: Each[float] = 1.0,
    method: str | None = None,
    only_masked: bool = False,
    padding: int = 32,
    composite: bool = True,
    feather: int = 0,
    fill: str = "picture",
    **options: Unpack[Options],
) -> Session:
    """Returns the pictures with the white parts of their masks repainted, each in its own size.

    The result is uint8 [b, h, w, 3], or a list of [h, w, 3] if sizes differ. `image` is as for `image_to_image`.
    `mask` is a path, bytes, Pillow image, bool or uint8 [h, w] (128 and above is white), of the picture's size; one for
    all or one for each picture. Pictures are not resized: they are padded to multiples of 64 by repeating their edges,
    and the result is cropped. Pictures of one padded size form one batch.

    `method` None chooses the model's method. "concat" is for networks of 9 channels: their inputs include the mask and
    the picture with its masked part grey. "blend" is for networks without a mask input: it puts the known part back,
    with noise, at every step.

    `only_masked` works on the part around the mask, with `padding` pixels around it; a small part is enlarged to the
    model's size. `composite` copies all pixels outside the mask from the picture, byte for byte; `feather` is the width
    of the transition in pixels. `strength` below 1 starts from the present content, as in `image_to_image`; 0 only
    passes it through the autoencoder. `fill` chooses what it starts from under the mask instead, with noise on it as
    usual: "noise" is the latent that is the picture's starting noise, "nothing" the latent of zeros. Both are A1111's.

    `options` are those of `text_to_image`. Raises whatever it raises, and ValueError if a file is not a picture or a
    mask has another size.
    """
    method, fill = check_method(pipe.config, method), check_fill(fill)
    inputs.check_margins(padding=padding, feather=feather)
    only_masked, composite = flag("only_masked", only_masked), flag("composite", composite)
    given = inputs.open_pictures(image)
    masks = inputs.open_masks(mask, [picture.shape[:2] for picture in given])
    empty = sum(not one.any() for one in masks)
    if empty:
        note(
            f"the mask of {empty} of {len(masks)} pictures selects nothing (white is repainted): they come back "
            "unchanged"
        )
    if feather and not composite:
        note("feather has no effect without composite: leave out feather, or keep composite")
    if padding != 32 and not only_masked:
        note("padding has no effect without only_masked: set only_masked, or leave padding out")
    side = pipe.config.image_size if only_masked else None
    frames = [inputs.make_frame(*pair, side=side, padding=padding) for pair in zip(given, masks, strict=True)]
    sizes = [frame.repaint.shape for frame in frames]
    batch = make_batch(pipe, prompt, options, sizes=sizes, strength=strength).seeing([seen(one) for one in frames])
    if only_masked and any(request.seamless for request in batch.requests):
        raise ValueError(
            "with only_masked a part of the picture is drawn, whose edges do not meet: leave out seamless "
            "or only_masked"
        )
    inputs.check_seamless(batch.requests, [given[i].shape[:2] for i in batch.inputs], [sizes[i] for i in batch.inputs])
    make_latent = {"blend": blended, "concat": concatenated}[method]

    def make(part: Batch) -> Making:
        return part.finish((yield from make_latent(part, [frames[i] for i in part.inputs], fill)))

    def finish(i: int, made: np.ndarray) -> np.ndarray:
        return inputs.put_back(frames[batch.inputs[i]], made, composite=composite, feather=feather)

    return Session(batch, make, finish)


def seen(frame: inputs.Frame) -> Seen:
    """Returns what controls see of a frame: its pixels and mask. Hints of the whole picture are cut like it."""
    place = functools.partial(inputs.part_of, frame)
    return Seen(frame.pixels, frame.repaint, frame.picture.shape[:2], place)


def blended(batch: Batch, frames: Sequence[inputs.Frame], fill: str = "picture") -> Sampling:
    """Returns latents with the known part held fixed. An entry is known if all of its pixels are known."""
    x0, keep, noise = batch.encode([frame.pixels for frame in frames]), _kept(batch, frames), batch.noise()
    return (yield from batch.sample(_filled(x0, keep, noise, fill), noise, batch.conditionings(), Known(x0, keep)))


def concatenated(batch: Batch, frames: Sequence[inputs.Frame], fill: str = "picture") -> Sampling:
    """Returns latents from a network with the inputs latent, mask and latent of the masked picture, in this order.

    The mask is reduced to the first of every 8 x 8 pixels, as torch's "nearest" does. The masked part is grey, 0. The
    masked picture's latent is a draw from the posterior. Source: scripts/gradio/inpainting.py.
    """
    factor = batch.pipe.config.vae.factor
    mask = batch.spread([frame.repaint[::factor, ::factor, None].astype(np.float32) for frame in frames])
    holes = [np.where(frame.repaint[..., None], np.float32(0), to_float(frame.pixels)) for frame in frames]
    concat = jnp.concatenate([mask, batch.encode(holes, draw=1)], axis=-1)
    x0, noise = None, batch.noise()
    if batch.needs_x0:
        x0 = _filled(batch.encode([frame.pixels for frame in frames]), _kept(batch, frames), noise, fill)
    return (yield from batch.sample(x0, noise, batch.conditionings(concat=concat)))


def _kept(batch: Batch, frames: Sequence[inputs.Frame]) -> Any:
    """Returns which entries of the latents are known, bool [b, h, w, 1]."""
    factor = batch.pipe.config.vae.factor
    return batch.spread([~inputs.repainted_latents(frame.repaint, factor)[..., None] for frame in frames])


def _filled(x0: Latent, keep: Any, noise: Latent, fill: str) -> Latent:
    """Returns latents whose part to repaint is filled."""
    return x0 if fill == "picture" else jnp.where(keep, x0, noise if fill == "noise" else jnp.float32(0))


def check_fill(fill: str) -> str:
    """Returns the name of a filling. Raises ValueError for an unknown one."""
    if not isinstance(fill, str) or fill not in FILLS:
        raise ValueError(f"fill is one of {', '.join(FILLS)}; got {shown(fill)}")
    return fill


def check_method(config: ModelConfig, method: str | None) -> str:
    """Returns the model's method of inpainting. Raises ValueError if it has none, or another than `method`."""
    if method not in (None, *METHODS):
        raise ValueError(f"method is one of {', '.join(METHODS)}; got {method!r}")
    kinds = METHODS.values() if method is None else [METHODS[method]]
    check_task(config, "inpaint" if method is None else f"inpaint by method {method!r}", *kinds)
    return {kind: name for name, kind in METHODS.items()}[kind_of(config)]


@task(also=inpaint)
def outpaint(
    pipe: Pipeline,
    image: Pictures,
    prompt: str | Sequence[str] = "",
    *,
    expand: Sequence[int],
    mask: Pictures | None = None,
    overlap: int = 0,
    **options: Any,
) -> Session:
    """Returns the pictures continued by `expand` = (left, top, right, bottom) pixels.

    It calls `inpaint`, with its arguments, on the extended picture. It also repaints the white part of `mask`, which
    has the size of the original picture, and `overlap` pixels of the picture along the sides that grow. `feather` mixes
    old and new over this overlap.
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
