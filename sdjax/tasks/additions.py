"""What pictures add to the UNet, as patches with arrays: adapters, hypernetworks and so on. `KINDS` is the table."""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from sdjax.adapters.hypernetwork import Hypernetworks, Strengths
from sdjax.adapters.ip_adapter import ImagePrompts
from sdjax.adapters.lora import LoRA
from sdjax.adapters.patch import Patch
from sdjax.adapters.reference import References
from sdjax.adapters.regions import Regions
from sdjax.adapters.style_aligned import StyleAligned
from sdjax.pipeline.model import Pipeline
from sdjax.samplers import Linear, Start
from sdjax.tasks import image_prompts, style_aligned
from sdjax.tasks.adapter_spans import arrays, spans_of, timesteps_of
from sdjax.tasks.computing import Computing
from sdjax.tasks.control_arrays import control_arrays
from sdjax.tasks.reference_arrays import reference_arrays
from sdjax.tasks.region_additions import region_parts
from sdjax.tasks.resolve import Resolved


class Addition(NamedTuple):
    """A patch of the UNet with its arrays.

    `shared` are those for all pictures, and `own` those of each picture, with the batch as their first axis.
    `unconditional` stand in the place of `own` in the branches of guidance without the prompt; None means `own`.
    """

    patch: Patch
    shared: PyTree
    own: PyTree
    unconditional: PyTree = None

    def arrays(self, conditional: bool) -> PyTree:
        """Returns the arrays of each picture in a branch with or without the prompt."""
        return self.own if conditional or self.unconditional is None else self.unconditional


class Kind(NamedTuple):
    """A kind of addition.

    `alike` says what pictures that share a program have in common, such as the identities of their networks. `make`
    returns the additions of such pictures, in order, from their requests and starts, the pipeline, and how they are
    computed.
    """

    alike: Callable[[Resolved], Hashable]
    make: Callable[[Sequence[Resolved], Sequence[Start], Pipeline, Computing], list[Addition]]


def _adapters(requests: Sequence[Resolved], starts: Sequence[Start], pipe: Pipeline, how: Computing) -> list[Addition]:
    if not requests[0].adapters:
        return []
    made = arrays([one.adapters for one in requests], _timesteps(requests), pipe.params["unet"])
    return [Addition(LoRA(), shared, own) for shared, own in made]


def _hypernetworks(
    requests: Sequence[Resolved], starts: Sequence[Start], pipe: Pipeline, how: Computing
) -> list[Addition]:
    uses = requests[0].hypernetworks
    if not uses:
        return []
    strengths = np.array([[use.strength for use in one.hypernetworks] for one in requests], np.float32)
    during = [
        [timesteps_of(use.span, t) for use in one.hypernetworks] for one, t in zip(requests, _timesteps(requests))
    ]  # fmt: skip
    own = Strengths(strengths, np.array(during, np.float32))  # type: ignore[arg-type]
    return [Addition(Hypernetworks(), tuple(use.network for use in uses), own)]


def _timesteps(requests: Sequence[Resolved]) -> list[np.ndarray]:
    """Returns the timesteps of all calls of each picture; of adaptive samplers, which choose them later, all there are.

    So a share of the steps is a share of the timesteps there, as for `sdjax.tasks.control_arrays`.
    """
    return [
        np.ravel(one.sampler.steps(one.noise_schedule, one.num_steps).timestep)
        if isinstance(one.sampler.rule, Linear)
        else np.arange(one.noise_schedule.num_timesteps)[::-1]
        for one in requests
    ]


def _image_prompts(
    requests: Sequence[Resolved], starts: Sequence[Start], pipe: Pipeline, how: Computing
) -> list[Addition]:
    if not requests[0].image_prompts:
        return []
    size = (requests[0].height // pipe.config.vae.factor, requests[0].width // pipe.config.vae.factor)
    own, away = image_prompts.arrays(
        [one.image_prompts for one in requests], _timesteps(requests), size, pipe.config.unet
    )
    return [Addition(ImagePrompts(), None, own, away)]


def _controls(requests: Sequence[Resolved], starts: Sequence[Start], pipe: Pipeline, how: Computing) -> list[Addition]:
    return [Addition(*control_arrays(requests, starts, pipe))] if requests[0].controls else []


def _regions(requests: Sequence[Resolved], starts: Sequence[Start], pipe: Pipeline, how: Computing) -> list[Addition]:
    if not requests[0].regions:
        return []
    parts = region_parts(requests, starts, _timesteps(requests), pipe, how)
    return [*(Addition(*one) for one in parts.adapters), Addition(Regions(), None, parts.own, parts.away)]


def _style_aligned(
    requests: Sequence[Resolved], starts: Sequence[Start], pipe: Pipeline, how: Computing
) -> list[Addition]:
    if requests[0].style_aligned is None:
        return []
    return [Addition(StyleAligned(), None, style_aligned.shares(requests, how.mesh.size))]


def _references(
    requests: Sequence[Resolved], starts: Sequence[Start], pipe: Pipeline, how: Computing
) -> list[Addition]:
    if not requests[0].references:
        return []
    own, away = reference_arrays(requests, starts, pipe, how)
    return [Addition(References(), None, own, away)]


KINDS: tuple[Kind, ...] = (  # in the order of their patches: later ones wrap earlier ones
    Kind(lambda request: len(spans_of(request.adapters)), _adapters),
    Kind(lambda request: tuple(id(use.network) for use in request.hypernetworks), _hypernetworks),
    Kind(lambda request: tuple(len(spans_of(one.adapters)) for one in request.regions), _regions),
    Kind(lambda request: tuple(use.likeness for use in request.image_prompts), _image_prompts),
    Kind(lambda request: request.style_aligned is not None, _style_aligned),
    Kind(lambda request: len(request.references), _references),
    Kind(lambda request: tuple(id(use.network) for use in request.controls), _controls),
)


def alike(request: Resolved) -> tuple[Hashable, ...]:
    """Returns what pictures that share a program have in common in their additions."""
    return tuple(kind.alike(request) for kind in KINDS)


def additions(requests: Sequence[Resolved], starts: Sequence[Start], pipe: Pipeline, how: Computing) -> list[Addition]:
    """Returns the additions of pictures that share a program (`alike`)."""
    return [one for kind in KINDS for one in kind.make(requests, starts, pipe, how)]
