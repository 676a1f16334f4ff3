"""Adapters: changes of a network's kernels, by the paths of its layers. `merge` adds them to the parameters."""

from collections.abc import Mapping
from typing import Protocol, TypeAlias

import jax.numpy as jnp
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from sdjax.typing import Params


class AdapterError(ValueError):
    """An adapter does not fit the network that it is applied to."""


class Delta(Protocol):
    """The change of one layer's kernel."""

    def merge(self, kernel: Array, weight: Array | float) -> Array:
        """Returns the kernel with `weight` times the change, in the kernel's dtype, rounded once.

        The kernel is Flax's: [c, d] of a linear layer, [h, w, c, d] of a convolution. Raises AdapterError if the change
        has another shape.
        """
        ...


Adapter: TypeAlias = Mapping[str, Delta]  # by the path of the layer, "down_blocks_0/attentions_0/proj_in"


@struct.dataclass
class LowRank:
    """The change scale * down @ up, whose rank r is small.

    For a linear layer `down` is [c, r] and `up` is [r, d]. For a convolution `down` is [h, w, c, r] and `up` is [r, d]:
    a convolution to r channels, then a 1x1 convolution. In most files `scale` is alpha / r.

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
    """

    down: Array
    up: Array
    scale: Array | float = 1.0

    def merge(self, kernel: Array, weight: Array | float) -> Array:
        """Returns the kernel with `weight` times the change: computed in float32 and rounded once."""
        if (*self.down.shape[:-1], self.up.shape[-1]) != kernel.shape or self.down.shape[-1] != self.up.shape[0]:
            raise AdapterError(f"{self.down.shape} times {self.up.shape} does not fit a kernel {kernel.shape}")
        down, up = self.down.astype(jnp.float32), self.up.astype(jnp.float32)
        change = (down.reshape(-1, down.shape[-1]) @ up).reshape(kernel.shape)
        return (kernel.astype(jnp.float32) + weight * self.scale * change).astype(kernel.dtype)


def merge(params: Params, adapter: Adapter, weight: Array | float = 1.0) -> Params:
    """Returns the network's parameters with `weight` times the adapter merged into its kernels.

    Unchanged leaves are not copied. Raises AdapterError, naming every layer that the network does not have or whose
    kernel has another shape.
    """
    leaves, problems = flatten_dict(params, sep="/"), []
    for path, delta in adapter.items():
        name = f"{path}/kernel"
        if name not in leaves:
            problems.append(f"it has no layer {path!r} with a kernel")
            continue
        try:
            leaves[name] = delta.merge(leaves[name], weight)
        except AdapterError as error:
            problems.append(f"{path!r}: {error}")
    if problems:
        raise AdapterError(f"the adapter does not fit the network: {'; '.join(problems)}")
    return unflatten_dict(leaves, sep="/")
