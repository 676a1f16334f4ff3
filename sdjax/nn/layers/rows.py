"""One picture over several devices: each device has some rows of every map, and of the pixels that are tokens.

Inside `over_rows(mesh)` the three layers that see more than one row do their part of the exchange: a convolution
gets the rows next to its own from its neighbours, a GroupNorm joins the statistics of all parts, and self-attention
sees the queries, keys and values of all rows. All other layers work on each row alone, and XLA divides them like their
inputs. Parameters are whole on every device.

A map whose rows the number of devices does not divide is computed whole on each of them.
"""

import contextvars
from collections.abc import Callable
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from sdjax.scoped import scoped

BATCH = "data"  # the mesh axis over which a batch is spread
ROWS = "rows"  # the mesh axis over which the rows of each picture are spread

_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("rows", default=None)


def over_rows(mesh: Mesh | None) -> AbstractContextManager[Mesh | None]:
    """Returns a context in which layers divide their maps over the axis ROWS of a mesh. None: they do not."""
    return scoped(_mesh, mesh)


def current() -> Mesh | None:
    """Returns the mesh of the surrounding `over_rows`, or None outside."""
    return _mesh.get()


def batch_axis(mesh: Mesh, b: int) -> str | None:
    """Returns the mesh axis of a batch of b entries: none if its size does not divide them."""
    return BATCH if b % mesh.shape[BATCH] == 0 else None


def in_parts(function: Callable[..., Array], mesh: Mesh, inputs: tuple[P, ...], output: P) -> Callable[..., Array]:
    """Returns `function` of whole arrays: every device runs it on its part. Layers inside are not divided further."""

    def part(*args: Array) -> Array:
        with over_rows(None):
            return function(*args)

    return jax.shard_map(part, mesh=mesh, in_specs=inputs, out_specs=output, check_vma=False)


def with_neighbours(x: Float[Array, "b h w c"], above: int, below: int) -> Float[Array, "b h2 w c"]:
    """Returns a device's rows with some of the rows above and below them, which other devices have.

    Outside the map they are zeros. Only for functions that run `in_parts`.
    """
    count = jax.lax.axis_size(ROWS)
    parts = [x]
    if above:
        down = [(i, i + 1) for i in range(count - 1)]
        parts.insert(0, jax.lax.ppermute(x[:, -above:], ROWS, down))
    if below:
        up = [(i + 1, i) for i in range(count - 1)]
        parts.append(jax.lax.ppermute(x[:, :below], ROWS, up))
    return jnp.concatenate(parts, axis=1) if len(parts) > 1 else x
