"""Memory that a training needs on each device, reckoned from shapes: nothing is allocated, and no device is needed."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from sdjax.storage.files import size
from sdjax.train.parallel import HOST
from sdjax.train.planning.flops import branch_of

# XLA never lays these out in memory: they are read through, or made where they are used
VIEWS = {"reshape", "squeeze", "broadcast_in_dim", "copy", "name", "optimization_barrier", "stop_gradient", "iota"}


@dataclasses.dataclass(frozen=True)
class Part:
    """Bytes of one part of a training, for each device: in its own memory (`device`) and in its host's (`host`)."""

    name: str
    device: int
    host: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """The memory of a training on so many `devices`, part by part; as a text, a table."""

    devices: int
    parts: tuple[Part, ...]

    @property
    def total(self) -> Part:
        """All parts together."""
        return Part("total", sum(part.device for part in self.parts), sum(part.host for part in self.parts))

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
    *, params: Any, opt_state: Any, ema: Any = None, frozen: Any = None, activations: int = 0, accumulate: bool = False
) -> Plan:
    """Returns what a training holds when a step's backward pass begins.

    Args:
        params, opt_state, ema, frozen: trees of arrays, or of jax.ShapeDtypeStruct as `laid_out` makes them, whose
            shardings say what lies where. Gradients lie as `params` do.
        activations: bytes on each device, from `working_bytes`.
        accumulate: whether gradients are summed over parts of a batch, which takes them twice.

    XLA needs some memory of its own on top, and what is gathered of other devices' parameters.
    """
    parameters = held("parameters", params)
    parts = [
        parameters,
        Part("gradients", (2 if accumulate else 1) * parameters.device),
        held("optimiser", opt_state),
        held("moving average", ema),
        held("fixed parameters", frozen),
        Part("activations", activations),
    ]
    meshes = {leaf.sharding.num_devices for leaf in jax.tree.leaves((params, opt_state)) if leaf.sharding is not None}
    return Plan(max(meshes, default=1), tuple(parts))


def laid_out(tree: Any, layouts: Any, sizes: Mapping[str, int], memory_kind: str | None = None) -> Any:
    """Returns the tree's shapes as they would lie on a mesh with axes of these sizes, of devices that need not exist.

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


def held(name: str, tree: Any) -> Part:
    """Returns what each device holds of a tree of arrays or shapes; what has no sharding is whole on every device.

    Raises ValueError, naming the array, where devices do not divide an axis that is split over them.
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
    return Part(name, total[False], total[True])


def working_bytes(loss: Callable, params: Any, *args: Any, has_aux: bool = True, platform: str | None = None) -> int:
    """Returns the most bytes that the gradient of `loss(params, *args)` has in use at one time, beside what it is given
    and the gradients themselves: mostly what the forward pass keeps for the backward pass.

    Args:
        args: shapes of what *one* device works on at a time: its part of a batch, or of one of a batch's parts.
        has_aux: whether the loss returns (value, anything).
        platform: "cpu", "cuda" or "tpu": which kernels run, where there is a choice.

    Operations are taken in the order of the program, and what is not used any more is given back; XLA may order and
    fuse them otherwise. On CPUs it undoes `jax.checkpoint`, so that what this saves there is not saved in fact. Inner
    axes that are split over devices (tensor parallelism) are counted whole.
    """
    jaxpr = jax.make_jaxpr(jax.grad(loss, has_aux=has_aux))(params, *args).jaxpr
    return _peak(jaxpr, [True] * len(jaxpr.outvars), platform, given=jaxpr.outvars)


def _peak(jaxpr: Any, wanted: list[bool], platform: str | None, given: list[Any]) -> int:
    """Returns the most bytes in use while a jaxpr makes its wanted outputs, without its inputs and what is `given`."""
    steps, _ = _live(jaxpr, wanted, platform)
    root: dict[Any, Any] = {}  # a view -> what it is a view of, None for a constant
    for eqn, _ in steps:
        if eqn.primitive.name in VIEWS:
            sources = [v if _is_variable(v) else None for v in eqn.invars] or [None]
            root |= {out: root.get(source, source) for out, source in zip(eqn.outvars, sources)}
    owned = {root.get(v, v) for v in [*jaxpr.invars, *jaxpr.constvars, *given] if _is_variable(v)}

    last = {root.get(v, v): i for i, (eqn, _) in enumerate(steps) for v in eqn.invars if _is_variable(v)}
    last |= {root.get(v, v): len(steps) for v, want in zip(jaxpr.outvars, wanted) if want and _is_variable(v)}
    in_use, now, most = {}, 0, 0
    for i, (eqn, outs) in enumerate(steps):
        made = {v: _bytes(v) for v, out in zip(eqn.outvars, outs) if out and v not in root and v not in owned}
        most = max(most, now + max(sum(made.values()), _inside(eqn, outs, platform, sum(made.values()))))
        in_use |= {v: count for v, count in made.items() if last.get(v, i) > i}
        done = {root.get(v, v) for v in eqn.invars if _is_variable(v)}
        for v in done:
            if last[v] == i:
                in_use.pop(v, None)
        now = sum(in_use.values())
    return most


def _inside(eqn: Any, outs: list[bool], platform: str | None, results: int) -> int:
    """Returns the most bytes in use inside an equation that runs other jaxprs, its results included."""
    name = eqn.primitive.name
    inner = _runs(eqn, outs, platform)
    if inner is None:
        return 0
    peaks = [_peak(jaxpr, wanted, platform, given=[]) for jaxpr, wanted in inner]
    return max(peaks) + (results if name == "scan" else 0)  # a scan's results are filled beside its rounds' own


def _live(jaxpr: Any, wanted: list[bool], platform: str | None) -> tuple[list[tuple[Any, list[bool]]], list[bool]]:
    """Returns the equations that wanted outputs depend on, each with which of its outputs are; and which inputs are."""
    live = {v for v, want in zip(jaxpr.outvars, wanted) if want and _is_variable(v)}
    steps = []
    for eqn in reversed(jaxpr.eqns):
        outs = [v in live for v in eqn.outvars]
        if any(outs):
            steps.append((eqn, outs))
            live.update(v for v, used in zip(eqn.invars, _used(eqn, outs, platform)) if used and _is_variable(v))
    return steps[::-1], [v in live for v in jaxpr.invars]


def _used(eqn: Any, outs: list[bool], platform: str | None) -> list[bool]:
    """Returns which inputs of an equation those of its outputs depend on."""
    inner = _runs(eqn, outs, platform)
    if inner is None:
        return [True] * len(eqn.invars)
    used = [any(flags) for flags in zip(*(_live(jaxpr, wanted, platform)[1] for jaxpr, wanted in inner))]
    return [True, *used] if eqn.primitive.name == "cond" else used


def _runs(eqn: Any, outs: list[bool], platform: str | None) -> list[tuple[Any, list[bool]]] | None:
    """Returns the jaxprs whose inputs and outputs are the equation's, each with its wanted outputs; None if not so."""
    if eqn.primitive.name == "cond":
        branch = branch_of(eqn, platform)
        return [(one, outs) for one in ([branch] if branch else [b.jaxpr for b in eqn.params["branches"]])]
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    inner = getattr(inner, "jaxpr", inner)
    if inner is None or (len(inner.invars), len(inner.outvars)) != (len(eqn.invars), len(outs)):
        return None
    if eqn.primitive.name == "scan":  # what one round hands to the next is wanted if the next round uses it
        first, count = _carried(eqn, inner)
        while True:
            used = _live(inner, outs, platform)[1][first : first + count]
            more = [out or use for out, use in zip(outs, used)] + outs[count:]
            if more == outs:
                break
            outs = more
    return [(inner, outs)]


def _carried(scan: Any, body: Any) -> tuple[int, int]:
    """Returns where among its inputs those begin that a scan's rounds hand on, and how many they are.

    Inputs are constants, then these, then what is scanned over, which in the body has an axis less; JAX's releases
    spell the counts themselves in different ways.
    """
    count = sum(outer.aval.ndim == inner.aval.ndim for outer, inner in zip(scan.outvars, body.outvars))
    return sum(outer.aval.ndim == inner.aval.ndim for outer, inner in zip(scan.invars, body.invars)) - count, count


def _is_variable(atom: Any) -> bool:
    return atom is not None and not hasattr(atom, "val")  # a literal has a value


def _bytes(variable: Any) -> int:
    aval = variable.aval
    return aval.size * aval.dtype.itemsize if hasattr(aval, "dtype") else 0
