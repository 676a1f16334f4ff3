"""What pictures add to the UNet, as patches with arrays: adapters, hypernetworks and so on. `KINDS` is the table.

What few pictures need is imported when one does.
"""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from sdjax.adapters.hypernetwork import Hypernetworks, Strengths
from sdjax.adapters.lora import LoRA
from sdjax.adapters.patch import Patch
from sdjax.pipeline import placement
from sdjax.tasks.adapter_spans import arrays, spans_of, timesteps_of
from sdjax.tasks.group import Group
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
    returns the additions of such pictures, in order.
    """

    alike: Callable[[Resolved], Hashable]
    make: Callable[[Group], list[Addition]]


def _adapters(group: Group) -> list[Addition]:
    if not group.first.adapters:
        return []
    made = arrays([one.adapters for one in group.requests], group.timesteps, group.pipe.params["unet"])
    return [Addition(LoRA(), shared, own) for shared, own in made]


def _hypernetworks(group: Group) -> list[Addition]:
    uses = group.first.hypernetworks
    if not uses:
        return []
    strengths = np.array([[use.strength for use in one.hypernetworks] for one in group.requests], np.float32)
    during = [
        [timesteps_of(use.span, t) for use in one.hypernetworks] for one, t in zip(group.requests, group.timesteps)
    ]
    own = Strengths(strengths, np.array(during, np.float32))  # type: ignore[arg-type]
    return [Addition(Hypernetworks(), tuple(use.network for use in uses), own)]


def _image_prompts(group: Group) -> list[Addition]:
    if not group.first.image_prompts:
        return []
    from sdjax.adapters.ip_adapter import ImagePrompts
    from sdjax.tasks import image_prompts

    prompts = [one.image_prompts for one in group.requests]
    own, away = image_prompts.arrays(prompts, group.timesteps, group.latent_size, group.pipe.config.unet)
    return [Addition(ImagePrompts(), None, own, away)]


def _controls(group: Group) -> list[Addition]:
    if not group.first.controls:
        return []
    from sdjax.tasks.control_arrays import control_arrays

    return [Addition(*control_arrays(group.requests, group.starts, group.pipe))]


def _regions(group: Group) -> list[Addition]:
    if not group.first.regions:
        return []
    from sdjax.adapters.regions import Regions
    from sdjax.tasks.region_additions import region_parts

    parts = region_parts(group)
    return [*(Addition(*one) for one in parts.adapters), Addition(Regions(), None, parts.own, parts.away)]


def _style_aligned(group: Group) -> list[Addition]:
    if group.first.style_aligned is None:
        return []
    from sdjax.adapters.style_aligned import StyleAligned
    from sdjax.tasks import style_aligned

    return [Addition(StyleAligned(), None, style_aligned.shares(group.requests, placement.parts(group.how.mesh)))]


def _references(group: Group) -> list[Addition]:
    if not group.first.references:
        return []
    from sdjax.adapters.reference import References
    from sdjax.tasks.reference_arrays import reference_arrays

    return [Addition(References(), None, *reference_arrays(group))]


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


def additions(group: Group) -> list[Addition]:
    """Returns the additions of a group of pictures (`alike`)."""
    return [one for kind in KINDS for one in kind.make(group)]
