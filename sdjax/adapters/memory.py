"""Patches with memory: they keep arrays from one call of the network to the next, and skip work that these replace."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Int, PyTree

from sdjax.adapters.patch import Patch
from sdjax.config import UNetConfig


@struct.dataclass
class Moment:
    """Where in its picture's run each entry of a call is, and which branches of guidance the call has.

    `index`: number of the call, from 0. `step` and `num_steps`: number of the step, from 0, and of all steps. The
    batch holds the `branches` interleaved: entry k i + j is picture i in branch j.
    """

    index: Int[Array, "b"]
    step: Int[Array, "b"]
    num_steps: Int[Array, "b"]
    branches: tuple[str, ...] = struct.field(pytree_node=False, default=("conditional",))


@dataclasses.dataclass(eq=False)
class Recall:
    """What a patch with memory gets in place of its per-image arrays, and what it leaves for the next call.

    `memory` is that of the call before. `needed` says which entries are computed; the others use the memory. If it is
    None, no entry is: the patch skips the work. `kept` is the memory for the next call; the patch may replace it.
    """

    memory: PyTree
    needed: Bool[Array, "b"] | None
    moment: Moment
    kept: PyTree = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.kept = self.memory


@runtime_checkable
class Remembering(Patch, Protocol):
    """A patch with memory. `intercept` gets a `Recall` as `own`.

    The program holds the network twice: with the work, and without it for calls in which no entry needs it.
    """

    def begin(self, config: UNetConfig, shape: tuple[int, ...], dtype: DTypeLike) -> PyTree:
        """Returns the memory before the first call for an x of this shape: arrays with x's batch as first axis."""
        ...

    def needed(self, own: PyTree, moment: Moment, memory: PyTree) -> Bool[Array, "b"]:
        """Returns which entries must be computed. `own` are the patch's per-image arrays."""
        ...


def if_any(needed: Bool[Array, "b"], compute: Callable[[], PyTree], skip: Callable[[], PyTree]) -> PyTree:
    """Returns the result of `compute` if an entry needs it, else that of `skip`. Only one of them is run."""
    return jax.lax.cond(jnp.any(needed), compute, skip)


def level_shape(config: UNetConfig, shape: tuple[int, ...], level: int) -> tuple[int, int, int]:
    """Returns (batch, height, width) of the maps at a level, for an x of this shape [b, h, w, c]."""
    b, height, width = shape[:3]
    for _ in range(level):
        height, width = -(-height // 2), -(-width // 2)
    return b, height, width
