"""Computes the memory that a run needs on each device, from shapes. It allocates nothing and needs no device."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import Interceptor, InterceptorContext
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from sdjax.adapters.attached import Attached
from sdjax.adapters.patch import patched
from sdjax.errors import size
from sdjax.nn import UNet
from sdjax.nn.layers.attention import SMALL, cuda_capability, cudnn_takes, head_by_head, in_chunks, splash_takes
from sdjax.nn.layers.conv import Conv, columns, convolution, method_on_cpu
from sdjax.nn.layers.dense import Dense
from sdjax.nn.layers.multihead import Attend
from sdjax.nn.layers.resnet import Resnet
from sdjax.nn.layers.transformer import SpatialTransformer
from sdjax.train.parallel import HOST

A100 = 8.0  # the compute capability for plans on a machine without an NVIDIA GPU


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """Bytes of one part of a run for each device: in the device's memory (`device`) and in its host's (`host`)."""

    name: str
    device: int
    host: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """The memory of a run on `devices` devices, part by part. Its text is a table."""

    devices: int
    parts: tuple[MemoryUse, ...]

    @property
    def total(self) -> MemoryUse:
        """All parts together."""
        return MemoryUse("total", sum(part.device for part in self.parts), sum(part.host for part in self.parts))

    def __str__(self) -> str:
        rows = [*self.parts, self.total]
        columns = [("", [row.name for row in rows]), ("each device", [size(row.device) for row in rows])]
        if self.devices > 1:
            columns.append((f"all {self.devices}", [size(self.devices * row.device) for row in rows]))
        if self.total.host:
            columns.append(("host, for each device", [size(row.host) for row in rows]))
        widths = [max(map(len, [title, *cells])) for title, cells in columns]
        lines = zip(*([title, *cells] for title, cells in columns))
        text = ["  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]) for name, *cells in lines]
        return "\n".join(line.rstrip() for line in text)


def plan(
    *,
    params: PyTree,
    opt_state: PyTree,
    ema: PyTree = None,
    frozen: PyTree = None,
    activations: int = 0,
    accumulate: bool = False,
) -> Plan:
    """Returns the memory that a run holds when a step's backward pass begins.

    Args:
        params, opt_state, ema, frozen: trees of arrays, or of jax.ShapeDtypeStruct as `laid_out` makes them, whose
            shardings say what lies where. Gradients lie as `params` do.
        activations: bytes on each device, from `working_bytes`.
        accumulate: whether gradients are summed over parts of a batch, which takes them twice.

    XLA needs further memory for itself, and for parameters gathered from other devices.
    """
    parameters = held("parameters", params)
    parts = [
        parameters,
        MemoryUse("gradients", (2 if accumulate else 1) * parameters.device),
        held("optimiser", opt_state),
        held("moving average", ema),
        held("fixed parameters", frozen),
        MemoryUse("activations", activations),
    ]
    meshes = {leaf.sharding.num_devices for leaf in jax.tree.leaves((params, opt_state)) if leaf.sharding is not None}
    return Plan(max(meshes, default=1), tuple(parts))


def laid_out(tree: PyTree, layouts: PyTree, sizes: Mapping[str, int], memory_kind: str | None = None) -> PyTree:
    """Returns the tree's shapes with shardings over a mesh of these sizes. The devices need not exist.

    Args:
        tree: arrays or their shapes.
        layouts: a PartitionSpec for each of them, as `sdjax.train.parallel.layouts` gives.
        memory_kind: "pinned_host" for the host's memory.
    """
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))

    def place(leaf: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, spec, memory_kind=memory_kind)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree, layouts)


def held(name: str, tree: PyTree) -> MemoryUse:
    """Returns the bytes of a tree of arrays or shapes on each device. Arrays without sharding are on every device.

    Raises ValueError, naming the array, if an axis cannot be divided by the devices that it is split over.
    """
    total = {True: 0, False: 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        sharding = leaf.sharding
        try:
            shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        except ValueError as error:
            raise ValueError(f"{name}{jax.tree_util.keystr(path)} cannot be split so: {error}") from None
        on_host = sharding is not None and sharding.memory_kind == HOST
        total[on_host] += math.prod(shape) * leaf.dtype.itemsize
    return MemoryUse(name, total[False], total[True])


def working_bytes(
    loss: Callable[..., PyTree], params: PyTree, *args: PyTree, has_aux: bool = True, platform: str | None = None,
    remat: str = "none",
) -> int:  # fmt: skip
    """Returns the bytes that the forward pass of `loss(params, *args)` keeps for the backward pass.

    Arguments are not counted. A recomputed block of the UNet keeps its input. The memory of the largest such block
    during recomputation is added.

    Args:
        args: shapes of what *one* device works on at a time: its part of a batch, or of one of a batch's parts.
        has_aux: whether the loss returns (value, anything).
        platform: "cpu", "cuda" or "tpu", which decides how attention is computed; None for any other.
        remat: what the loss's UNet computes again, of `sdjax.nn.unet.REMATS`.

    XLA may order and fuse operations differently. On CPUs it undoes `jax.checkpoint`, so rematerialisation saves
    nothing there. Inner axes that are split over devices (tensor parallelism) are counted whole.
    """
    value = (lambda *args: loss(*args)[0]) if has_aux else loss
    blocks = _Blocks()
    with nn.intercept_methods(blocks), patched([Attached()]), nn.intercept_methods(_kernels(platform)):
        kept = _kept(value, params, *args)
        again = [_kept(block, shapes) for block, shapes in blocks.found.values()] if remat != "none" else []
    return kept + max(again, default=0)


def _kept(function: Callable[..., PyTree], params: PyTree, *args: PyTree) -> int:
    """Returns the bytes that the gradient of `function(params, *args)` keeps of the forward pass, without arguments."""

    def kept(params: PyTree, *args: PyTree) -> list[jax.Array]:
        _, pullback = jax.vjp(lambda params: function(params, *args), params)  # its leaves are what it keeps
        given = {id(leaf) for leaf in jax.tree.leaves((params, args))}
        leaves = {id(leaf): leaf for leaf in jax.tree.leaves(pullback)}
        return [leaf for name, leaf in leaves.items() if name not in given]

    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.eval_shape(kept, params, *args))


class _Blocks:
    """An interceptor that notes each kind of block, of those that rematerialisation is about, of the UNet."""

    def __init__(self) -> None:
        self.found: dict[Any, tuple[Callable[..., Any], Any]] = {}
        self._depth = 0

    def __call__(
        self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: InterceptorContext
    ) -> Any:
        layer, inside = context.module, self._depth > 0
        kind = next((kind for kind in (Resnet, SpatialTransformer) if isinstance(layer, kind)), None)
        if kind is not None and inside and context.method_name == "__call__":
            given = {"params": layer.variables["params"]}, args
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), given)
            fields = {field.name: getattr(layer, field.name) for field in dataclasses.fields(kind)}
            block = kind(**{**fields, "parent": None, "name": None})  # the same without rematerialisation
            self.found[str((kind, shapes))] = (lambda given: block.apply(given[0], *given[1])), shapes
        self._depth += isinstance(layer, UNet)
        try:
            return method(*args, **kwargs)
        finally:
            self._depth -= isinstance(layer, UNet)


def _kernels(platform: str | None) -> Interceptor:
    """Returns an interceptor that replaces each layer by a method that keeps as much as the platform's kernel."""
    rules: dict[type[nn.Module], Callable[..., jax.Array]] = {
        Attend: functools.partial(_attend, platform), Conv: functools.partial(_conv, platform), Dense: _dense,
    }  # fmt: skip

    def intercept(
        method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: InterceptorContext
    ) -> Any:
        rule = rules.get(type(context.module))
        if rule is None or context.method_name != "__call__":
            return method(*args, **kwargs)
        return rule(context.module, *args, **kwargs)

    return intercept


def _dense(layer: Dense, x: jax.Array) -> jax.Array:
    params = layer.variables["params"]
    y = x.astype(layer.dtype) @ params["kernel"].astype(layer.dtype)
    return y + params["bias"].astype(layer.dtype) if layer.use_bias else y


def _conv(platform: str | None, layer: Conv, x: jax.Array) -> jax.Array:
    params = layer.variables["params"]
    x, kernel = x.astype(layer.dtype), params["kernel"].astype(layer.dtype)
    strides, padding = layer.strides, layer.padding
    on_cpu = platform == "cpu" and method_on_cpu(x.shape, kernel.shape, strides, padding, x.dtype)
    # Winograd's products keep what XLA's convolution does: the map and the kernel
    y = (columns if on_cpu == "columns" else convolution)(x, kernel, strides=strides, padding=padding)
    return y + params["bias"].astype(layer.dtype) if layer.use_bias else y


def _attend(
    platform: str | None, layer: Attend, q: jax.Array, k: jax.Array, v: jax.Array, key_length: jax.Array | None = None
) -> jax.Array:
    n, m, d = q.shape[1], k.shape[1], q.shape[-1]
    fused = {
        "cuda": cudnn_takes(d, q.dtype, cuda_capability() or A100),
        "tpu": splash_takes(n, m, q.dtype),
    }
    if n * m > SMALL and fused.get(platform or "", False):
        return _fused(q, k, v)
    kernel = head_by_head if platform == "cpu" and n * m > SMALL else in_chunks
    return kernel(q, k, v, key_length, causal=layer.causal)


@jax.custom_vjp
def _fused(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Returns an array of the result's shape, and keeps what fused kernels keep."""
    return q


def _fused_forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out = q + 1
    return out, (q, k, v, out, jnp.zeros(q.shape[:-1]))  # the last: the logarithm of each query's sum of weights


def _fused_backward(kept: tuple[jax.Array, ...], slope: jax.Array) -> tuple[jax.Array, ...]:
    return kept[:3]


_fused.defvjp(_fused_forward, _fused_backward)
