"""The patches of a batch's adapters and hypernetworks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from sdjax.adapters.hypernetwork import Hypernetworks
from sdjax.adapters.lora import LoRA
from sdjax.adapters.patch import Patch
from sdjax.tasks.adapter_spans import arrays
from sdjax.tasks.resolve import Resolved
from sdjax.typing import Params


class Addition(NamedTuple):
    """A patch of the UNet with its arrays for all pictures, and those of each picture."""

    patch: Patch
    shared: PyTree
    own: PyTree


def additions(requests: Sequence[Resolved], base: Params) -> list[Addition]:
    """Returns the additions of pictures that share a program: as many spans of adapters, and the same hypernetworks.

    `base` are the UNet's parameters.
    """
    out = []
    if requests[0].adapters:
        calls = [np.ravel(one.sampler.steps(one.noise_schedule, one.num_steps).timestep) for one in requests]
        out += [Addition(LoRA(), None, own) for own in arrays([one.adapters for one in requests], calls, base)]
    if requests[0].hypernetworks:
        strengths = np.array([[use.strength for use in one.hypernetworks] for one in requests], np.float32)
        networks = tuple(use.network for use in requests[0].hypernetworks)
        out.append(Addition(Hypernetworks(), networks, strengths))
    return out
