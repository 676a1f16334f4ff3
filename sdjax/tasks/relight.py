"""Relighting: IC-Light, whose network takes the latent of a foreground, and of a background, beside the noisy latent.

Source: lllyasviel/IC-Light, gradio_demo.py and gradio_demo_bg.py.
"""

import dataclasses
from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from sdjax import pictures
from sdjax.checks.arguments import is_sequence, number, shown
from sdjax.config import ModelConfig
from sdjax.pipeline.model import Pipeline
from sdjax.purpose import check_task
from sdjax.samplers.noise import SECOND
from sdjax.tasks import inputs
from sdjax.tasks.batch import Batch
from sdjax.tasks.contexts import steps_counted
from sdjax.tasks.control_arrays import Seen, fitted
from sdjax.tasks.inputs import Picture, Pictures
from sdjax.tasks.make_batch import make_batch
from sdjax.tasks.request import Each, Options
from sdjax.tasks.resolve import resolve
from sdjax.tasks.results import advice
from sdjax.tasks.session import Making, Session, task
from sdjax.tasks.two_pass import second_request, shared_groups
from sdjax.typing import Latent

GREY = 127  # behind the foreground: exactly 0 for the network, which takes levels / 127 - 1
SIDES = ("left", "right", "top", "bottom")
LIGHTS = ("none", *SIDES)
BACKDROPS = ("grey", *SIDES)
LIGHT, BACKDROP = (255, 0), (224, 32)  # brightest and darkest levels of both demos' gradients
PLAIN = 64  # the level of the backdrop "grey"


@task()
def relight(
    pipe: Pipeline,
    image: Pictures,
    prompt: str | Sequence[str] = "",
    *,
    mask: Pictures | None = None,
    light: Each[str] = "none",
    backdrop: Pictures | None = None,
    strength: Each[float] = 0.9,
    enlarge: float = 1.0,
    hires_strength: Each[float] = 0.5,
    height: Each[int | None] = None,
    width: Each[int | None] = None,
    **options: Unpack[Options],
) -> Session:
    """Returns the given pictures' foregrounds in the light that the prompt or a background describes.

    The model is IC-Light: `sdjax.load(base, widen="iclight_sd15_fc.safetensors")`. `image`, `height` and `width` are as
    for `sdjax.image_to_image`. What is transparent in a picture, or black in its `mask` (as for `sdjax.inpaint`; grey
    is between), is not foreground.

    A model that takes a foreground draws the background as the prompt says. `light` is the side that the light comes
    from, one of LIGHTS, one for all pictures or one for each: sampling then starts from a gradient, and makes the share
    `strength` of its steps. A model that takes a background too needs a `backdrop`: pictures as `image`, one for all or
    one for each, cropped to the size of the result; or one of BACKDROPS.

    With `enlarge` above 1 a second pass follows, as in `sdjax.two_pass`: the picture is enlarged by LANCZOS, and the
    share `hires_strength` of the steps is made again. The demo enlarges 1.5 times. A strength s makes n of round(n / s)
    steps, unless `strength_counting` or `compat` is given.

    `options` are those of `text_to_image`. Raises ValueError for another kind of model and a wrong light or backdrop,
    and whatever `image_to_image` raises.
    """
    check_relight(pipe.config, backdrop is not None, light)
    given = foregrounds(image, mask)
    sizes = inputs.working_sizes(pipe.config, given, height, width, windowed=options.get("window") is not None)
    behind = None if backdrop is None else inputs.one_each("backdrop", backdrops(backdrop), len(given))
    if options.get("compat") is None and options.get("strength_counting") is None:
        options = {**options, "strength_counting": "ic_light"}
    first = make_batch(pipe, prompt, options, sizes=sizes).seeing([Seen(one) for one in given])
    lights, shares = (
        inputs.one_each(name, list(one) if is_sequence(one) else [one], len(first.requests))  # type: ignore[arg-type]
        for name, one in (("light", light), ("strength", strength))
    )
    first = first.starting(
        [None if side == "none" else number("strength", share, 0, 1) for side, share in zip(lights, shares)]
    )
    second, enlarge = first, number("enlarge", enlarge, 1)
    if enlarge > 1:
        again = [second_request(pipe.config, request, enlarge, {}) for request in first.requests]
        larger = resolve(pipe, again, [(one.height, one.width) for one in again])  # type: ignore[misc]
        counted = [steps_counted(request) for request in first.requests]
        second = dataclasses.replace(first, requests=larger, folds=(SECOND,), after=counted).starting(hires_strength)
    number_of = {id(request): i for i, request in enumerate(first.requests)}

    def of_part(part: Batch) -> list[int]:
        return [number_of[id(request)] for request in part.requests]

    def beside(part: Batch) -> Latent:
        """Returns the latents of the foregrounds, and of the backdrops if there are some."""
        fronts = encoded(part, [given[i] for i in part.inputs])
        if behind is None:
            return fronts
        return jnp.concatenate([fronts, encoded(part, [behind[i] for i in part.inputs])], axis=-1)

    def make(part: Batch) -> Making:
        x0 = None
        if part.needs_x0:
            x0 = encoded(part, ["grey" if lights[i] == "none" else lights[i] for i in of_part(part)], LIGHT)
        latent = yield from part.sample(
            x0, part.noise(), part.conditionings(concat=beside(part)), last=enlarge == 1
        )  # fmt: skip
        if enlarge == 1:
            return part.finish(latent)
        more = second.part(of_part(part))
        with advice(*more.size, len(part.requests), pipe.dtype):
            x0 = encoded(more, list(part.pixels(latent)))
            return more.finish((yield from more.sample(x0, more.noise(), more.conditionings(concat=beside(more)))))

    if enlarge == 1:
        return Session(first, make)
    groups = shared_groups(first.groups(), second.groups())
    calls = [first.part(group).calls + second.part(group).calls for group in groups]
    return Session(first, make, groups=groups, calls=calls)


def check_relight(config: ModelConfig, backdrop: bool, light: Each[str] = "none") -> None:
    """Raises ValueError for another kind of model, and for lights and a missing backdrop that the model cannot have."""
    check_task(config, "relight", "relighting")
    for one in light if is_sequence(light) else [light]:
        if one not in LIGHTS:
            raise ValueError(f"light is one of {', '.join(LIGHTS)}; got {shown(one)}")
        if one != "none" and config.beside != "foreground":
            raise ValueError(f"light has no effect with {config.name}, which takes a background: choose a backdrop")
    if backdrop and config.beside == "foreground":
        raise ValueError(
            f"backdrop has no effect with {config.name}, which takes a foreground alone: leave it out, or use the "
            "model for foreground and background"
        )
    if not backdrop and config.beside != "foreground":
        raise ValueError(
            f"{config.name} takes a background: give a backdrop, a picture or one of {', '.join(BACKDROPS)}"
        )


def foregrounds(image: Pictures, mask: Pictures | None = None) -> list[Picture]:
    """Returns the pictures with what is not foreground in grey: 127 + (p - 127) a, where a is how opaque it is.

    Raises ValueError for what is not a picture or a mask, and if numbers or sizes do not match.
    """
    given = [pictures.open_picture(one, background=(GREY,) * 3).pixels for one in inputs.several(image, 3)]
    if mask is None:
        return given
    covers = [pictures.open_mask(one, size=None).pixels for one in inputs.several(mask, 2)]
    covers = inputs.one_each("mask", covers, len(given))
    inputs.open_masks(covers, [one.shape[:2] for one in given])  # raises for other sizes
    return [pictures.composite(one, np.full_like(one, GREY), cover) for one, cover in zip(given, covers)]


def backdrops(backdrop: Pictures) -> list[Picture | str]:
    """Returns the backdrops, pictures or names of BACKDROPS. Raises ValueError for what is neither."""
    found: list[Picture | str] = []
    for one in inputs.several(backdrop, 3):
        found.append(one if isinstance(one, str) and one in BACKDROPS else inputs.open_pictures(one)[0])
    return found


def gradient(name: str, height: int, width: int, levels: tuple[int, int]) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Returns a picture that is brightest on the side `name`, from levels[0] to levels[1]; "grey" is one level."""
    if name == "grey":
        return np.full((height, width, 3), PLAIN, np.uint8)
    values = np.linspace(*levels, width if name in ("left", "right") else height).astype(np.uint8)
    values = values[::-1] if name in ("right", "bottom") else values
    line = values[None, :, None] if name in ("left", "right") else values[:, None, None]
    return np.ascontiguousarray(np.broadcast_to(line, (height, width, 3)))


def encoded(batch: Batch, given: Sequence[Picture | str], levels: tuple[int, int] = BACKDROP) -> Latent | jax.Array:
    """Returns the scaled means of pictures or gradients at the batch's size. Pictures of another shape are cropped."""
    made = [
        gradient(one, *batch.size, levels) if isinstance(one, str) else fitted(one, *batch.size, "crop")
        for one in given
    ]
    images = batch.spread([_signed(one) for one in made])
    return batch.pipe.encode_image(images, seamless=batch.seamless, **batch.where)


def _signed(pixels: Picture) -> Float[np.ndarray, "h w 3"]:
    """Returns levels p as p / 127 - 1: grey is exactly 0."""
    return pixels.astype(np.float32) / np.float32(GREY) - np.float32(1)
