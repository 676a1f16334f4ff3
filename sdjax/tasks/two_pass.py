"""Two passes ("hires fix"): makes a small picture, enlarges it, and refines it at the larger size."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np

from sdjax import pictures
from sdjax.adapters.table import Chosen, make_settings
from sdjax.checks.arguments import number, texts, whole
from sdjax.config import ModelConfig
from sdjax.diffusion.guidance import ClassifierFree, Rules
from sdjax.diffusion.rules import And, Interval
from sdjax.pipeline.model import Pipeline
from sdjax.pipeline.programs import RESIZES
from sdjax.purpose import check_task
from sdjax.samplers import Sampler
from sdjax.samplers.custom import HasSteps
from sdjax.samplers.noise import SECOND
from sdjax.spelling import meant
from sdjax.tasks.batch import Batch
from sdjax.tasks.contexts import steps_counted
from sdjax.tasks.enlarge import Upscaler, enlarge_to, read_upscaler
from sdjax.tasks.inputs import one_each
from sdjax.tasks.make_batch import make_batch
from sdjax.tasks.request import Each, Request, SizedOptions
from sdjax.tasks.resolve import STEP, Resolved, check_size, gates_of, resolve
from sdjax.tasks.results import advice
from sdjax.tasks.session import Making, Session, task

PIXELS = {"lanczos": "lanczos", "nearest pixels": "nearest"}  # ways to enlarge the picture, and their names in pictures
UPSCALES = (*PIXELS, *RESIZES)  # the others enlarge the latent
A1111_UPSCALES = {  # the web UI's names
    "Latent": "bilinear",
    "Latent (antialiased)": "bilinear",
    "Latent (bicubic)": "sharp bicubic",
    "Latent (bicubic antialiased)": "bicubic",
    "Latent (nearest)": "floor nearest",
    "Latent (nearest-exact)": "nearest",
    "Lanczos": "lanczos",
    "Nearest": "nearest pixels",
}

# Arguments of `two_pass` besides those of `text_to_image`
OWN = (
    "enlarge", "upscale", "upscaler", "strength", "hires_prompt", "hires_negative_prompt", "hires_sampler",
    "hires_steps", "hires_scale", "hires_patches",
)  # fmt: skip


@task()
def two_pass(
    pipe: Pipeline,
    prompt: str | Sequence[str] | None = None,
    *,
    enlarge: float = 2.0,
    upscale: str = "lanczos",
    upscaler: Upscaler | None = None,
    strength: Each[float] = 0.6,
    hires_prompt: str | None | Sequence[str | None] = None,
    hires_negative_prompt: str | None | Sequence[str | None] = None,
    hires_sampler: str | Sampler | HasSteps | None = None,
    hires_steps: int | None = None,
    hires_scale: float | None = None,
    hires_patches: Chosen | Sequence[Chosen] | None = None,
    **options: Unpack[SizedOptions],
) -> Session:
    """Returns pictures made in two passes: small ones are enlarged, then image to image refines them.

    The first pass is `text_to_image` at `height` x `width`. `upscale` is a name of UPSCALES, or the web UI's name for
    it (A1111_UPSCALES): "lanczos" and "nearest pixels" enlarge the picture, the others enlarge its latent, which needs
    a `strength` above 0.5 to become sharp. `upscaler`, a file or network of the ESRGAN family as for `sdjax.enlarge`,
    enlarges the picture instead of `upscale`. `enlarge` is at least 1; the result has at most 2048 pixels a side, or
    8192 with `window`. The second pass makes the last share `strength` of its steps, with new noise.

    The second pass uses the first one's prompt, negative prompt, sampler, number of steps, guidance scale and patches,
    unless `hires_prompt`, `hires_negative_prompt` (one for all pictures, or one for each), `hires_sampler`,
    `hires_steps`, `hires_scale` or `hires_patches` is given. A sampler of its own has its own eta and spacing;
    an empty sequence of patches is none. `options` are those of `text_to_image`;
    `latents` are for the first pass. Raises whatever `text_to_image` raises.
    """
    check_task(pipe.config, "two_pass")
    method = check_upscale(upscale)
    network = None if upscaler is None else read_upscaler(upscaler)
    if network is not None and upscale != "lanczos":
        raise ValueError("give either upscale or upscaler, not both")
    first = make_batch(pipe, prompt, options)
    changed: dict[str, Any] = {
        "sampler": hires_sampler,
        "num_steps": None if hires_steps is None else whole("hires_steps", hires_steps, 1),
        "guidance_scale": None if hires_scale is None else number("hires_scale", hires_scale),
        "patches": None if hires_patches is None else make_settings(hires_patches),
    }
    prompts, negatives = (
        _for_each(name, given, len(first.requests))
        for name, given in (("hires_prompt", hires_prompt), ("hires_negative_prompt", hires_negative_prompt))
    )
    requests = [
        second_request(pipe.config, request, enlarge, {**changed, "prompt": own, "negative_prompt": own_negative})
        for request, own, own_negative in zip(first.requests, prompts, negatives)
    ]
    whole_second = resolve(pipe, requests, [(one.height, one.width) for one in requests])  # type: ignore[misc]
    counted = [steps_counted(request) for request in first.requests]
    second = dataclasses.replace(first, requests=whole_second, folds=(SECOND,), after=counted).starting(strength)
    number_of = {id(request): i for i, request in enumerate(first.requests)}

    def second_of(part: Batch) -> Batch:
        return second.part([number_of[id(request)] for request in part.requests])

    def make(part: Batch) -> Making:
        again = second_of(part)
        with advice(*again.size, len(part.requests), pipe.dtype):
            latent = yield from part.sample(None, part.noise(), part.conditionings(), last=False)
            if network is not None:
                small = part.pixels(latent)
                large = [enlarge_to(network, one, again.size, seamless=part.seamless) for one in small]
                latent = again.encode(large)
            elif method in PIXELS:
                small = part.pixels(latent)
                latent = again.encode([enlarge_pixels(one, again.size, method, part.seamless) for one in small])
            else:
                latent = pipe.resize_latent(latent, *again.size, method, seamless=part.seamless, **part.where)
            return part.finish((yield from again.sample(latent, again.noise(), again.conditionings())))

    groups = shared_groups(first.groups(), second.groups())
    calls = [part.calls + second_of(part).calls for part in map(first.part, groups)]
    return Session(first, make, groups=groups, calls=calls)


def check_upscale(upscale: str) -> str:
    """Returns the name in UPSCALES of a way to enlarge. Raises ValueError, listing the names, for an unknown one."""
    method = A1111_UPSCALES.get(upscale, upscale) if isinstance(upscale, str) else upscale
    if method not in UPSCALES:
        known = (*UPSCALES, *A1111_UPSCALES)
        raise ValueError(f"upscale is one of {', '.join(known)}; got {upscale!r}{meant(upscale, known)}")
    return method


def enlarge_pixels(picture: np.ndarray, size: tuple[int, int], method: str, seamless: str | None) -> np.ndarray:
    """Returns the picture, uint8 [h, w, 3], at another (height, width), by a method of PIXELS.

    A seamless picture stays seamless: it is repeated, and the middle is cut out of the result.
    """
    times = [3 if axis in (seamless or "") else 1 for axis in "yx"]
    several = np.tile(picture, (*times, 1))
    made = pictures.resize(several, times[0] * size[0], times[1] * size[1], PIXELS[method])
    top, left = (side if count == 3 else 0 for side, count in zip(size, times))
    return made[top : top + size[0], left : left + size[1]]


def enlarged(config: ModelConfig, size: tuple[int, int], enlarge: float, *, windowed: bool = False) -> tuple[int, int]:
    """Returns (height, width) times `enlarge`, rounded to a valid size. Raises ValueError if it is too large."""
    enlarge = number("enlarge", enlarge, 1)
    step = max(STEP, config.vae.factor)
    return check_size(config, *(round(side * enlarge / step) * step for side in size), windowed=windowed)


def second_request(config: ModelConfig, first: Resolved, enlarge: float, changed: dict[str, Any]) -> Request:
    """Returns the request of the second pass. Values of `changed` that are not None replace the first one's."""
    size = enlarged(config, (first.height, first.width), enlarge, windowed=first.window is not None)
    asked = {field.name: getattr(first, field.name) for field in dataclasses.fields(Request)}
    fields: dict[str, Any] = {**asked, "latents": None, "height": size[0], "width": size[1]}
    if isinstance(first.guidance, ClassifierFree):  # the rules again, with a scale of its own
        # The prompt brings its own AND again, and patches the end of guidance
        rules, gates = first.guidance.rules, gates_of(first)
        own = [one for one in rules if not isinstance(one, And) and not (isinstance(one, Interval) and one in gates)]
        fields["guidance"] = Rules(tuple(own))
    elif changed.get("guidance_scale") is None:
        fields |= {"guidance_scale": None, "guidance_rescale": 0.0}
    if changed.get("sampler") is not None:
        fields |= {"eta": None, "spacing": None}
    for name in "prompt", "negative_prompt":
        if changed.get(name) is not None:
            fields[f"{name}_embeds"] = None
    return Request(**{**fields, **{name: value for name, value in changed.items() if value is not None}})


def _for_each(name: str, given: str | None | Sequence[str | None], count: int) -> list[str | None]:
    several = [given] if given is None or isinstance(given, str) else list(given)
    for one in several:
        if one is not None:
            texts(name, one)
    return one_each(name, several, count)


def shared_groups(first: list[list[int]], second: list[list[int]]) -> list[list[int]]:
    """Returns groups of the pictures that are together in both groupings."""
    if first == second:  # also groups that share a picture
        return first
    both = ([i for i in one if i in other] for one in first for other in second)
    return [group for group in both if group]
