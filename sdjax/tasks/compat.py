"""Profiles of other tools: what a seed, a sampler, a strength and a picture's numbers mean there.

A profile has values for fields of `sdjax.Request`. `Request.compat` names it; a field that the request sets itself
wins.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypedDict, TypeVar, get_args

from sdjax.checks import arguments
from sdjax.checks.arguments import number, shown, whole
from sdjax.convert.adapters.kinds import Dora
from sdjax.convert.adapters.load import Alpha0
from sdjax.noise import JAX, NOISE_SOURCES
from sdjax.pictures.image import ROUNDINGS
from sdjax.samplers.start import COUNTINGS

T = TypeVar("T")
Each: TypeAlias = T | Sequence[T]  # one for all pictures, or one for each


@dataclasses.dataclass(frozen=True)
class Profile:
    """Values for fields of a request that are None, and how the tool runs its samplers.

    `prompt_syntax` and `pad_contexts` say how prompts are read, and made equal in length. `recipes` names the tool in
    `sdjax.samplers.tools`, None if its samplers are ours. `brownian`: whether the noise of SDE samplers is a Brownian
    path's. `spacing` replaces our default, "even". `alpha_0` and `dora` say how adapters are read.
    """

    noise_source: str = JAX
    strength_counting: str = "share"
    rounding: str = "truncate"
    prompt_syntax: str = "weights"
    pad_contexts: str = "lengths"
    recipes: str | None = None
    brownian: bool = True
    spacing: str | None = None
    alpha_0: str = "none"
    dora: str = "linear"


OURS = Profile()
PROFILES: Mapping[str, Profile] = {
    "compvis": Profile("torch_cuda", "compvis", prompt_syntax="plain", spacing="compvis"),
    "diffusers": Profile(
        "diffusers",
        "diffusers",
        "nearest",
        prompt_syntax="plain",
        recipes="diffusers",
        brownian=False,
        dora="trainer",
    ),
    "a1111": Profile("torch_cuda", "a1111", pad_contexts="a1111", recipes="a1111"),
    "comfyui": Profile("comfyui_cuda", "comfyui", prompt_syntax="comfyui", pad_contexts="comfyui", recipes="comfyui"),
    "k-diffusion": Profile("torch_cpu", prompt_syntax="plain", recipes="k_diffusion"),
}
TOOLS = tuple(PROFILES)
FIELDS = ("noise_source", "strength_counting", "rounding", "prompt_syntax", "pad_contexts", "alpha_0", "dora")


def profile_of(compat: str | None) -> Profile:
    """Returns the profile of a tool, ours for None."""
    return OURS if compat is None else PROFILES[compat]


def chosen(compat: str | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a profile's fields: those of `fields`, and where they are None those of the tool."""
    profile = profile_of(compat)
    return {name: getattr(profile, name) if fields[name] is None else fields[name] for name in FIELDS}


class Compatible(Protocol):
    """A request."""

    @property
    def compat(self) -> str | None: ...
    @property
    def prompt_syntax(self) -> str | None: ...
    @property
    def clip_skip(self) -> int | str | None: ...


Asked = TypeVar("Asked", bound=Compatible)


def as_tool_reads(request: Asked) -> Asked:
    """Returns a request with its tool's syntax of prompts and counting of clip skip, where it does not set its own."""
    if request.compat is None:
        return request
    changed: dict[str, Any] = {}
    if request.prompt_syntax is None:
        changed["prompt_syntax"] = profile_of(request.compat).prompt_syntax
    if request.compat == "diffusers" and isinstance(request.clip_skip, int) and request.clip_skip > 0:
        changed["clip_skip"] = f"diffusers:{request.clip_skip}"
    whole: Any = request
    out: Asked = dataclasses.replace(whole, **changed)
    return out


CHOICES: dict[str, Collection[str]] = {  # fields with few values; None is the tool's, or our own
    "noise_source": NOISE_SOURCES,
    "compat": TOOLS,
    "strength_counting": COUNTINGS,
    "rounding": ROUNDINGS,
    "alpha_0": get_args(Alpha0),
    "dora": get_args(Dora),
}
PAIRS = ("seed_resize", "noise_batch")  # fields of two numbers
MIN_RESIZE, MAX_RESIZE = 64, 2048  # sides of `seed_resize`, in pixels
MAX_NOISE_BATCH = 256  # pictures whose noise is drawn at once


class NoiseOptions(TypedDict, total=False):
    """The fields of `Request` about noise and other tools: one value for all pictures, or one for each."""

    noise_source: Each[str | None]
    variation_seed: Each[int | None]
    variation_strength: Each[float]
    seed_resize: Each[tuple[int, int] | None]
    ensd: Each[int]
    noise_batch: Each[tuple[int, int] | None]
    compat: Each[str | None]
    strength_counting: Each[str | None]
    rounding: Each[str | None]


def check_noise(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the checked values of the fields of `NoiseOptions`. Raises ValueError for others."""
    other = fields["variation_seed"]
    return {
        **{name: _choice(name, fields[name], known) for name, known in CHOICES.items()},
        "variation_seed": None if other is None else arguments.seed(other),
        "variation_strength": number("variation_strength", fields["variation_strength"], 0, 1),
        "ensd": whole("ensd", fields["ensd"], -arguments.MAX_SEED, arguments.MAX_SEED),
        "seed_resize": _size(fields["seed_resize"]),
        "noise_batch": _place(fields["noise_batch"]),
    }


def _choice(name: str, value: Any, known: Collection[str]) -> str | None:
    if value is not None and not (isinstance(value, str) and value in known):
        raise ValueError(f"{name} is one of {', '.join(known)}; got {shown(value)}")
    return value


def _size(value: Any) -> tuple[int, int] | None:
    """Returns the (height, width) of `seed_resize`."""
    if value is None:
        return None
    height, width = _pair("seed_resize", value, "(height, width) in pixels")
    low, high = MIN_RESIZE, MAX_RESIZE
    if not (low <= height <= high and low <= width <= high):
        raise ValueError(f"seed_resize is a (height, width) from {low} to {high} pixels; got {shown(value)}")
    return height, width


def _place(value: Any) -> tuple[int, int] | None:
    """Returns the (number, count) of `noise_batch`."""
    if value is None:
        return None
    number, count = _pair("noise_batch", value, "(k, n) for number k, counted from 0, of n pictures")
    if not 0 <= number < count <= MAX_NOISE_BATCH:
        raise ValueError(
            f"noise_batch (k, n) is number k, counted from 0, of at most {MAX_NOISE_BATCH} pictures; got {shown(value)}"
        )
    return number, count


def _pair(name: str, value: Any, meaning: str) -> tuple[int, int]:
    try:
        first, second = (whole(name, one, 0) for one in value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is two whole numbers, {meaning}; got {shown(value)}") from None
    return first, second
