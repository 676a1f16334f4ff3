"""Fills in the model's defaults in requests (sampler, scale, size), and checks them against the model."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any

from sdjax import samplers
from sdjax.checks.arguments import whole
from sdjax.config import ModelConfig
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline
from sdjax.samplers.custom import HasSteps, complete
from sdjax.samplers.spacing import fitting
from sdjax.schedule import NoiseSchedule
from sdjax.tasks.request import Request

SIDES = (64, 2048)  # smallest and largest height and width, in pixels
STEP = 8  # heights and widths are multiples of this


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Resolved(Request):
    """A request with nothing left to choose."""

    negative_prompt: str
    seed: int
    sampler: samplers.Sampler
    guidance_scale: float
    height: int
    width: int


def resolve(
    pipe: Pipeline, requests: Sequence[Request], sizes: Sequence[tuple[int, int]] | None = None
) -> list[Resolved]:
    """Returns the requests with None replaced by the model's defaults, and sampler names replaced by samplers.

    Equal samplers become one object. `sizes` are the pictures' (height, width) if the task decides them. Raises
    ValueError for values that the model or the sampler does not support.
    """
    if sizes is None:
        sizes = [check_size(pipe.config, request.height, request.width) for request in requests]
    made: dict[Any, samplers.Sampler] = {}
    out = []
    for request, (height, width) in zip(requests, sizes, strict=True):
        chosen = request.sampler
        named = (chosen if isinstance(chosen, str) else id(chosen), request.eta, request.spacing)
        if named not in made:
            made[named] = make_sampler(chosen, pipe.schedule, eta=request.eta, spacing=request.spacing)
        scale = pipe.config.guidance_scale if request.guidance_scale is None else request.guidance_scale
        chosen_by_model = {"sampler": made[named], "guidance_scale": scale, "height": height, "width": width}
        out.append(Resolved(**{**vars(request), **chosen_by_model}))
        check_arrays(pipe.config, out[-1])
    return out


def check_arrays(config: ModelConfig, request: Resolved) -> None:
    """Raises ValueError if starting noise or an encoded prompt does not have the model's shape."""
    vae, text = config.vae, config.text
    latent = (request.height // vae.factor, request.width // vae.factor, vae.latent_channels)
    wanted = {
        "latents": latent,
        **dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), (text.max_length, text.width)),
    }
    for name, shape in wanted.items():
        value = getattr(request, name)
        if value is not None and value.shape != shape:
            raise ValueError(
                f"{name} must have the shape {list(shape)} for this model and size; got {list(value.shape)}"
            )


def check_size(config: ModelConfig, height: int | None, width: int | None) -> tuple[int, int]:
    """Returns height and width. None means the model's own side.

    Raises ValueError, naming the nearest valid sizes, unless both are multiples of 8 from 64 to 2048.
    """
    sides = []
    step = max(STEP, config.vae.factor)
    for name, side in ("height", height), ("width", width):
        side = config.image_size if side is None else side
        low, high = SIDES
        side = whole(name, side)
        if not low <= side <= high or side % step:
            below = min(max(side // step * step, low), high)
            above = min(max(placement.padded(side, step), low), high)
            near = f"{below}" if below == above else f"{below} or {above}"
            raise ValueError(f"{name} is a multiple of {step} from {low} to {high}; got {side}, the nearest is {near}")
        sides.append(side)
    return sides[0], sides[1]


def make_sampler(
    sampler: str | samplers.Sampler | HasSteps, schedule: NoiseSchedule | None = None, **fields: Any
) -> samplers.Sampler:
    """Returns the sampler of that name, or the given sampler. Values of `fields` that are not None replace its fields.

    For a sampler given by name, the default spacing is chosen for the `schedule` (`sdjax.samplers.spacing.fitting`).
    A sampler that is given as an object keeps its spacing.

    Raises ValueError for an unknown name (listing the known ones) or a field that the sampler does not have.
    """
    if isinstance(sampler, str):
        if sampler not in samplers.SAMPLERS:
            # Spellings of other tools: "DPM++ 2M Karras", "k_euler_a"
            plain = re.sub(r"\W+", "_", sampler.lower().removeprefix("k_").replace("++", "pp"))
            plain = re.sub("_a$", "_ancestral", plain.removesuffix("_karras"))
            near = difflib.get_close_matches(plain, samplers.SAMPLERS, 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            known = ", ".join(sorted(samplers.SAMPLERS))
            raise ValueError(f"unknown sampler {sampler!r}{meant}; the known ones are {known}")
        sampler = samplers.SAMPLERS[sampler]()
        if schedule is not None and isinstance(sampler, samplers.Sampler):
            sampler = dataclasses.replace(sampler, spacing=fitting(sampler.spacing, schedule))
    changed: Any = sampler
    whole_sampler = complete(sampler)
    fields = {name: value for name, value in fields.items() if value is not None}
    own: set[str] = (
        {field.name for field in dataclasses.fields(sampler)} if dataclasses.is_dataclass(sampler) else set()
    )
    unknown = sorted(set(fields) - own)
    if unknown:
        raise ValueError(f"the sampler {type(sampler).__name__} has no {' and no '.join(unknown)}")
    return complete(dataclasses.replace(changed, **fields)) if fields else whole_sampler
