"""Devices: meshes, and spreading a batch over them. Only this module handles devices.

A function of a batch must not mix the batch's entries. There are two ways to spread it: `jit` over a mesh (each device
runs the function on its part of the batch, by `jax.shard_map`), or `pmap`. Both compile the same function for the same
local shapes. So both give the same numbers, and neither program has collectives. Only the frames of a clip see each
other: `TOGETHER` leaves it to XLA to divide their program.

One picture may also be divided: over a mesh with an axis for rows, each device has some rows of every map
(`sdjax.nn.layers.rows`).
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sdjax.nn.layers.rows import BATCH, ROWS, over_rows
from sdjax.pipeline.traced import Traced

Parallel = Literal["jit", "pmap"]
PARALLEL: tuple[str, ...] = ("jit", "pmap")
TOGETHER = "together"  # in place of "jit": for functions that mix the batch's entries, such as a clip's frames


def make_mesh(devices: Sequence[jax.Device] | None = None, split_picture: int = 1) -> Mesh:
    """Returns a mesh with the axis "data" over `devices` (default: all devices of this process).

    If `split_picture` is above 1, the rows of each picture are spread over so many neighbouring devices, the axis
    "rows". Raises ValueError if it does not divide the number of devices.
    """
    devices = jax.local_devices() if devices is None else devices
    if isinstance(devices, str) or not isinstance(devices, Sequence) or not devices:
        raise ValueError(f"devices are a sequence of JAX's, as jax.devices('cpu'); got {devices!r}")
    for device in devices:
        if not isinstance(device, jax.Device):
            raise ValueError(f"devices are a sequence of JAX's, as jax.devices('cpu'); got {device!r}")
    if len(devices) % split_picture:
        fitting = [str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise ValueError(
            f"split_picture divides the number of devices; got {split_picture} and {len(devices)} "
            f"device{'s' * (len(devices) > 1)}: use {' or '.join(fitting)}"
        )
    sides = {BATCH: len(devices) // split_picture, **({ROWS: split_picture} if split_picture > 1 else {})}
    # Auto: with the Explicit axes that JAX makes by default, linen's convolutions fail
    auto = (AxisType.Auto,) * len(sides)
    return jax.make_mesh(tuple(sides.values()), tuple(sides), devices=devices, axis_types=auto)


def parts(mesh: Mesh) -> int:
    """Returns the number of parts into which a batch is cut on a mesh."""
    return mesh.shape[BATCH]


def rows_of(mesh: Mesh) -> int:
    """Returns the number of devices over which one picture is divided."""
    return mesh.shape.get(ROWS, 1)


def check_rows(mesh: Mesh, height: int, factor: int) -> None:
    """Raises ValueError if pictures of this height cannot be divided over the mesh; `factor` is the autoencoder's."""
    count = rows_of(mesh)
    if height // factor % count:
        raise ValueError(
            f"a picture of height {height} has {height // factor} rows of latents, which split_picture={count} does "
            f"not divide: use a height that is a multiple of {count * factor}, or another number"
        )


def default_dtype(platform: str | None = None) -> str:
    """Returns the default type to compute in: float32 on "cpu", bfloat16 on accelerators.

    `platform` None means JAX's default platform.
    """
    return "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"


def fitting_mesh(mesh: Mesh | None, count: int) -> Mesh:
    """Returns `mesh`, or for None the default mesh: as many devices of this process as divide a batch of `count`."""
    if mesh is not None:
        return mesh
    devices = jax.local_devices()
    return make_mesh(devices[: next(n for n in range(min(len(devices), max(count, 1)), 0, -1) if count % n == 0)])


def padded(count: int, parts: int) -> int:
    """Returns the smallest multiple of `parts` that is at least `count`."""
    return -(-count // parts) * parts


def fill(items: list, parts: int) -> list:
    """Returns the items, padded with copies of the last one until `parts` divides their number."""
    return items + items[-1:] * (padded(len(items), parts) - len(items))


def divided(group: list[int], most: int | None) -> list[list[int]]:
    """Returns the group in as few parts of at most `most` entries as possible, of equal length."""
    if most is None or len(group) <= most:
        return [group]
    parts = -(-len(group) // most)
    size = -(-len(group) // parts)
    filled = fill(group, size)
    return [filled[start : start + size] for start in range(0, len(group), size)]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with every leaf whole on every device of the mesh. Leaves already there are not copied."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


class Placed:
    """Keeps a tree on devices. It is put there again only if a leaf is another object or the devices change.

    A copy, made by `copy` or `pickle`, is empty: copies of the owner put their own parameters on the devices.
    """

    def __init__(self) -> None:
        self._held: tuple[Any, list[Any], Any, Any] | None = None

    def get(self, tree: Any, where: Any, put: Callable[[Any], Any]) -> Any:
        """Returns put(tree). The result of the last call is used again for the same leaves and the same `where`."""
        leaves, structure = jax.tree.flatten(tree)
        held = self._held
        if held is not None and held[0] == where and held[2] == structure and all(map(operator.is_, leaves, held[1])):
            return held[3]
        held = self._held = None  # one copy on the devices at a time
        there = put(tree)
        self._held = where, leaves, structure, there
        return there

    def on_default_device(self, tree: Any) -> Any:
        """Returns the tree on JAX's default device."""
        device = jax.config.jax_default_device  # type: ignore[attr-defined]
        device = device if isinstance(device, jax.Device) else jax.local_devices(backend=device)[0]
        return self.get(tree, device, lambda tree: jax.device_put(tree, device))

    def __reduce__(self) -> tuple[type["Placed"], tuple[()]]:
        return Placed, ()


def split(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with every leaf's first axis spread over the mesh. The number of devices must divide it."""
    sharding = NamedSharding(mesh, P(BATCH))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), tree)


def over_batch(function: Callable, mesh: Mesh, batched: tuple[bool, ...]) -> Callable:
    """Returns `function` for use inside `jax.jit`: every device of the mesh runs it on its part of the batch.

    If `batched[i]`, argument i is spread along the first axis of its leaves; else each device has the whole argument.
    All outputs are batched.
    """
    specs = tuple(P(BATCH) if flag else P() for flag in batched)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(BATCH), check_vma=False)


def pmapped(function: Callable, mesh: Mesh, batched: tuple[bool, ...], donate: tuple[int, ...] = ()) -> Callable:
    """Returns `function` under `jax.pmap`. It is called like that of `over_batch`: batches in, batches out.

    The first axis of every batched argument is cut into one part per device; the outputs are joined.
    """
    count = mesh.size
    axes = tuple(0 if flag else None for flag in batched)
    mapped = jax.pmap(function, in_axes=axes, devices=list(mesh.devices.flat), donate_argnums=donate)

    def call(*args: Any) -> Any:
        cut = [
            jax.tree.map(lambda a: a.reshape(count, a.shape[0] // count, *a.shape[1:]), arg) if flag else arg
            for arg, flag in zip(args, batched)
        ]
        return jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), mapped(*cut))

    return call


@functools.lru_cache(maxsize=64)
def compiled(function: Callable, static: Any, mesh: Mesh, batched: tuple[bool, ...], parallel: str) -> Callable:
    """Returns `function(static, *args)` compiled for the mesh. `parallel` is "jit", "pmap" or TOGETHER.

    TOGETHER compiles the function for the whole batch. XLA divides the work by how the arguments are spread, and the
    devices exchange what they need.

    One function is kept for each (function, static, mesh, parallel), which must be hashable. It compiles once for each
    set of shapes. Raises ValueError for an unknown `parallel`.
    """
    if parallel not in (*PARALLEL, TOGETHER):
        raise ValueError(f"parallel is one of {', '.join(PARALLEL)}; got {parallel!r}")
    bound = functools.partial(function, static)
    if parallel == "pmap":
        if rows_of(mesh) > 1:
            raise ValueError("pmap cannot divide one picture: leave parallel or split_picture out")
        return pmapped(bound, mesh, batched)
    if rows_of(mesh) > 1:
        return divided_by_rows(bound, mesh)
    if mesh.size == 1:
        return Traced(function, static)
    return jax.jit(bound if parallel == TOGETHER else over_batch(bound, mesh, batched))


def divided_by_rows(function: Callable, mesh: Mesh) -> Callable:
    """Returns `function` of a batch, compiled so that each picture is divided over the rows of the mesh.

    All outputs are batched, and whole on all devices of a picture.
    """

    def run(*args: Any) -> Any:
        with over_rows(mesh):
            return function(*args)

    return jax.jit(run, out_shardings=NamedSharding(mesh, P(BATCH)))


def host(tree: Any) -> Any:
    """Returns the tree as numpy arrays, gathered from the devices."""
    return jax.tree.map(np.asarray, tree)
