"""A network that sees only a rectangle of the latent in some branches of guidance."""

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from sdjax.adapters.patch import Patch, Placed
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.network import Network
from sdjax.samplers.rule import Memory, Noisy
from sdjax.typing import Params, Timestep

Areas: TypeAlias = tuple[tuple[int, int, int, int] | None, ...]  # (top, left, height, width) of each branch; None: all


@dataclasses.dataclass(frozen=True)
class AreaNetwork:
    """Calls a network for each branch with the branch's rectangle; its prediction is 0 outside.

    `areas` has one entry for each branch of a call, in the order in which they are interleaved. Branches with
    rectangles of one size share a call. `patches` are the network's: those that are `Placed` get the arrays of the
    rectangle. The network keeps no memory, and every call has all branches.
    """

    network: Network
    areas: Areas
    patches: tuple[Patch, ...] = ()

    def init(self, params: Params, x: Noisy) -> Memory:
        """Returns no memory."""
        if jax.tree.leaves(self.network.init(params, x)):
            raise ValueError(
                "deep_cache and t_gate cannot be combined with areas of conditionings: use masks, or leave them out"
            )
        return ()

    def __call__(
        self, params: Params, x: Noisy, t: Timestep, conditioning: Conditioning, memory: Memory
    ) -> tuple[Noisy, Memory]:
        """Returns the prediction of each branch in its rectangle."""
        k = len(self.areas)
        if x.shape[0] % k:
            raise ValueError(f"areas are for calls of {k} branches; this guidance calls some of them alone")
        whole = (0, 0, x.shape[1], x.shape[2])
        places = [area or whole for area in self.areas]
        out = jnp.zeros((*x.shape[:3], x.shape[3]), jnp.float32)
        for size in dict.fromkeys(place[2:] for place in places):
            same = [i for i, place in enumerate(places) if place[2:] == size]
            at = np.arange(x.shape[0]).reshape(-1, k)[:, same].T  # [branches, b]
            rows = [jnp.arange(size[0]) + places[i][0] for i in same]
            columns = [jnp.arange(size[1]) + places[i][1] for i in same]
            own = [self._part(conditioning, entries, *place) for entries, *place in zip(at, rows, columns)]
            part = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *own)
            seen = jnp.concatenate([_cut(x[entries], *place) for entries, *place in zip(at, rows, columns)])
            made, _ = self.network(params, seen, t[at.ravel()], part, ())
            for i, entries, prediction in zip(same, at, jnp.split(made, len(same))):
                top, left, height, width = places[i]
                out = out.at[entries, top : top + height, left : left + width].set(prediction.astype(jnp.float32))
        return out, memory

    def _part(self, conditioning: Conditioning, entries: np.ndarray, rows: jax.Array, columns: jax.Array) -> PyTree:
        """Returns the conditioning of some entries of the batch, with arrays that belong to places cut."""
        part: Conditioning = jax.tree.map(lambda leaf: leaf[entries], conditioning)
        if part.concat is not None:
            part = dataclasses.replace(part, concat=_cut(part.concat, rows, columns))
        if part.patches:
            arrays = zip(self.patches, part.patches, strict=True)
            part = dataclasses.replace(part, patches=tuple(_cut_arrays(*pair, rows, columns) for pair in arrays))
        return part


def in_areas(network: Network, areas: Areas | None, patches: Sequence[Patch]) -> Network:
    """Returns the network for these areas; the network itself if no branch has one."""
    if areas is None or not any(areas):
        return network
    return AreaNetwork(network, areas, tuple(patches))


def _cut_arrays(patch: Patch, own: PyTree, rows: jax.Array, columns: jax.Array) -> PyTree:
    return patch.cut(own, rows, columns) if isinstance(patch, Placed) else own


def _cut(x: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return jnp.take(jnp.take(x, rows, axis=1), columns, axis=2)
