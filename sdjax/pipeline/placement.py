"""Devices: meshes, and spreading a batch over them. The one place that knows of devices.

A function that works on a batch and shares nothing between its entries is spread in one of two ways: `jit` over a mesh
(each device runs the function on its part of the batch, by `jax.shard_map`), or `pmap`. Both compile the same function
for the same local shapes, so both give the same numbers, and neither program holds a collective.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Parallel = Literal["jit", "pmap"]
PARALLEL: tuple[str, ...] = ("jit", "pmap")
BATCH = "data"  # the name of the mesh axis that a batch is spread over


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a one-axis mesh, "data", over `devices` (default: this process's own)."""
    devices = jax.local_devices() if devices is None else devices
    if isinstance(devices, str) or not isinstance(devices, Sequence) or not devices:
        raise ValueError(f"devices are a sequence of JAX's, as jax.devices('cpu'); got {devices!r}")
    for device in devices:
        if not isinstance(device, jax.Device):
            raise ValueError(f"devices are a sequence of JAX's, as jax.devices('cpu'); got {device!r}")
    # Auto: with the Explicit axes that JAX makes by default, linen's convolutions fail
    return jax.make_mesh((len(devices),), (BATCH,), devices=devices, axis_types=(AxisType.Auto,))


def default_dtype(platform: str | None = None) -> str:
    """Returns the type to compute in where none is chosen: float32 on "cpu", bfloat16 on accelerators.

    `platform` None is JAX's default.
    """
    return "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"


def fitting_mesh(mesh: Mesh | None, count: int) -> Mesh:
    """Returns the mesh; for None the default: as many of this process's devices as divide a batch of `count`."""
    if mesh is not None:
        return mesh
    devices = jax.local_devices()
    return make_mesh(devices[: next(n for n in range(min(len(devices), max(count, 1)), 0, -1) if count % n == 0)])


def padded(count: int, parts: int) -> int:
    """Returns the smallest multiple of `parts` that is at least `count`."""
    return -(-count // parts) * parts


def fill(items: list, parts: int) -> list:
    """Returns the items with the last one repeated until `parts` divides their number."""
    return items + items[-1:] * (padded(len(items), parts) - len(items))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with every leaf whole on every device of the mesh; leaves that are there already stay."""
    sharding = NamedSharding(mesh, P())
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), tree)


class Placed:
    """A tree put on devices once: put there again when a leaf of it is another object, or the devices are others.

    A copy of it, made by `copy` or `pickle`, is empty, so that copies of its owner put their own parameters.
    """

    def __init__(self) -> None:
        self._held: tuple[Any, list[Any], Any, Any] | None = None

    def get(self, tree: Any, where: Any, put: Callable[[Any], Any]) -> Any:
        """Returns put(tree), from the last call if it was for the same leaves and the same `where`."""
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
    """Returns the tree with every leaf's first axis spread over the mesh; its length is a multiple of the devices'."""
    sharding = NamedSharding(mesh, P(BATCH))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), tree)


def over_batch(function: Callable, mesh: Mesh, batched: tuple[bool, ...]) -> Callable:
    """Returns `function` run by every device of the mesh on its part of the batch, for use inside `jax.jit`.

    `batched[i]` says whether argument i is spread along the first axis of its leaves or whole everywhere. All outputs
    are batched.
    """
    specs = tuple(P(BATCH) if flag else P() for flag in batched)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(BATCH), check_vma=False)


def pmapped(function: Callable, mesh: Mesh, batched: tuple[bool, ...], donate: tuple[int, ...] = ()) -> Callable:
    """Returns `function` under `jax.pmap` with the calling convention of `over_batch`: batches in, batches out.

    The first axis of every batched argument is cut into one part a device, and outputs are joined again.
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
    """Returns `function(static, *args)` compiled for the mesh in the way that `parallel` names.

    One compiled function is kept for each (function, static, mesh, parallel), all hashable; it then compiles once for
    each set of shapes. Raises ValueError for an unknown `parallel`.
    """
    if parallel not in PARALLEL:
        raise ValueError(f"parallel is one of {', '.join(PARALLEL)}; got {parallel!r}")
    bound = functools.partial(function, static)
    if parallel == "pmap":
        return pmapped(bound, mesh, batched)
    return jax.jit(bound if mesh.size == 1 else over_batch(bound, mesh, batched))


def host(tree: Any) -> Any:
    """Returns the tree as numpy arrays, gathered from the devices."""
    return jax.tree.map(np.asarray, tree)
