"""Training on many devices: the mesh, the layout of every array, and the compiled step.

The mesh has three axes. "data": each device works on its part of the batch and holds all parameters. "fsdp": the same,
but each device holds only its part of every parameter and gathers the others when it needs them. "tensor": a layer's
products are split among devices. The results are the same as on one device, up to the order of sums.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from sdjax.checks.effects import needs
from sdjax.config import ConfigError
from sdjax.nn.layers.attention import over_mesh
from sdjax.train.state import TrainState
from sdjax.typing import Params

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
BATCH = P(BATCH_AXES)  # a batch's first axis
HOST = "pinned_host"  # JAX's name for a host's memory that devices read
LARGEST: Literal["largest"] = "largest"  # a rule's layout: split the largest divisible axis over "fsdp"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Axis = str | tuple[str, ...] | None
Layout = tuple[Axis, ...] | Literal["largest"]
Rules = Sequence[tuple[str, Layout]]

# The first rule that matches in a parameter's path applies; "in" projections split outputs, those after them inputs
RULES: Rules = (
    (r"(to_[qkv]|[qkv]_proj|net_0/proj|fc1)/kernel$", ("fsdp", "tensor")),
    (r"(to_out_0|out_proj|net_2|fc2)/kernel$", ("tensor", "fsdp")),
    (r"(net_0/proj|fc1)/bias$", ("tensor",)),
    (r".", LARGEST),
)

# XLA's options for a step, by platform. On CPUs: a step donates its state. By default XLA does not see that the old
# values are read before the new ones are written in their place, and copies all parameters and moments first
OPTIONS: dict[str, tuple[str, ...]] = {"cpu": ("xla_cpu_copy_insertion_use_region_analysis",)}

# Those by which devices compute while they exchange numbers. The one for GPUs is off by default (openxla/xla:
# docs/flags_guidance.md); NVIDIA's images for JAX set it. XLA for TPUs needs none (benchmarks/overlap.py)
OVERLAP: dict[str, tuple[str, ...]] = {"gpu": ("xla_gpu_enable_latency_hiding_scheduler",)}


SPLIT = (lambda c: (c.fsdp, c.tensor) != (1, 1), "where no parameter is split (fsdp, tensor)")


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How devices are used.

    `data`, `fsdp` and `tensor` are the mesh's sides; one may be -1, for all remaining devices. `rules` None is RULES.
    `mode` "pmap" runs the step by `jax.pmap` instead of `jax.jit`, on the data axis only. Arrays with fewer than
    `whole` numbers are not split. `overlap` sets XLA's option (OVERLAP) by which several GPUs compute while they
    exchange numbers. False leaves it as XLA_FLAGS has it.
    """

    mode: Literal["jit", "pmap"] = "jit"
    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: Rules | None = needs(None, *SPLIT)
    whole: int = needs(4096, *SPLIT)
    overlap: bool = needs(True, lambda c: c.mode == "jit", 'with the mode "pmap"')

    def __post_init__(self) -> None:
        sides = self.data, self.fsdp, self.tensor
        if self.mode not in ("jit", "pmap"):
            raise ValueError(f'the mode is "jit" or "pmap"; got {self.mode!r}')
        if sides.count(-1) > 1 or any(side < 1 and side != -1 for side in sides):
            raise ValueError(f"data, fsdp and tensor are at least 1, one of them may be -1; got {sides}")
        if self.mode == "pmap" and (self.fsdp, self.tensor) != (1, 1):
            raise ValueError('pmap keeps every parameter on every device: use mode "jit" for fsdp and tensor')

    def sizes(self, devices: int) -> dict[str, int]:
        """Returns the mesh's sides for this number of devices. Raises ValueError if they do not fit."""
        sides = [self.data, self.fsdp, self.tensor]
        known = int(np.prod([side for side in sides if side != -1]))
        if -1 in sides and devices % known == 0:
            sides[sides.index(-1)] = devices // known
        if int(np.prod(sides)) != devices:
            raise ValueError(
                f"data x fsdp x tensor is the number of devices, {devices}; got {self.data} x {self.fsdp} x "
                f"{self.tensor}: use -1 for one of them (the rest), and for the others numbers that divide {devices}"
            )
        return dict(zip(AXES, sides))


def training_mesh(config: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over `devices`, by default all devices of all processes."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = config.sizes(len(devices))
    auto = (AxisType.Auto,) * len(AXES)  # with Explicit axes linen's convolutions fail
    return jax.make_mesh(tuple(sizes.values()), AXES, devices=devices, axis_types=auto)


def examples_each(batch_size: int, accumulate: int, sizes: Mapping[str, int]) -> int:
    """Returns how many examples a device processes at a time. Raises ConfigError if a batch cannot be split so."""
    shards = sizes["data"] * sizes["fsdp"]
    unit = shards * accumulate
    if batch_size % unit:
        below = batch_size // unit * unit
        raise ConfigError(
            f"batch_size is a multiple of {unit} with {shards} device{'s' * (shards > 1)} and accumulate = "
            f"{accumulate}; got {batch_size}: use {f'{below} or ' if below else ''}{below + unit}"
        )
    return batch_size // unit


def layout(path: str, shape: Sequence[int], sizes: Mapping[str, int], config: ParallelConfig) -> P:
    """Returns how an array is split over a mesh with these sides. An axis that is not divisible is not split.

    `path` contains the parameter's path. An optimiser's array for a parameter is split like the parameter if it has its
    shape, and otherwise along its largest axis.
    """
    if int(np.prod(shape)) < config.whole:
        return P()
    rules = RULES if config.rules is None else config.rules
    spec = next((spec for pattern, spec in rules if re.search(pattern, path)), ())
    if spec == LARGEST or len(spec) > len(shape):
        n = sizes["fsdp"]
        fitting = [i for i, side in enumerate(shape) if side % n == 0]
        if n == 1 or not fitting:
            return P()
        best = max(fitting, key=lambda i: shape[i])
        return P(*[None] * best, "fsdp")
    fits = [side % _size(axis, sizes) == 0 for axis, side in zip(spec, shape)]
    return P(*[axis if fit and _size(axis, sizes) > 1 else None for axis, fit in zip(spec, fits)])


def _size(axis: Axis, sizes: Mapping[str, int]) -> int:
    names = () if axis is None else (axis,) if isinstance(axis, str) else axis
    unknown = [name for name in names if name not in sizes]
    if unknown:
        raise ValueError(f"the mesh's axes are {', '.join(AXES)}; a rule names {unknown[0]!r}")
    return int(np.prod([sizes[name] for name in names]))


def layouts(tree: PyTree, sizes: Mapping[str, int], config: ParallelConfig) -> PyTree:
    """Returns the layout of every array of a tree of arrays or their shapes."""

    def of(path: tuple, leaf: Any) -> P:
        return layout(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, sizes, config)

    return jax.tree_util.tree_map_with_path(of, tree)


def shardings(tree: PyTree, mesh: Mesh, config: ParallelConfig) -> PyTree:
    """Returns the sharding of every array of a tree of arrays or their shapes."""
    specs = layouts(tree, mesh.shape, config)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch's arrays: examples over the data and fsdp axes."""
    return NamedSharding(mesh, BATCH)


def on_host(where: PyTree) -> PyTree:
    """Returns shardings that keep the same parts in the host's memory, beside each device."""
    return jax.tree.map(lambda sharding: sharding.with_memory_kind(HOST), where)


def move_ema(where: PyTree) -> Callable[[Params, bool], Params]:
    """Returns a function for compiled steps: it moves a tree from `where` on the host to the devices (True) or back."""
    near = jax.tree.map(lambda sharding: sharding.with_memory_kind("device"), where)
    return lambda tree, there: jax.device_put(tree, near if there else where)


def on_devices(tree: Params) -> Params:
    """Returns a tree of arrays moved from the host's memory to their devices."""
    return jax.device_put(tree, jax.tree.map(lambda leaf: leaf.sharding.with_memory_kind("device"), tree))


def place(tree: PyTree, where: PyTree) -> PyTree:
    """Returns a tree of arrays placed by the shardings. Each process gives its devices their parts."""

    def put(leaf: Any, sharding: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, where)


def replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns a tree of numbers put on every device of the mesh."""
    return place(tree, jax.tree.map(lambda _: NamedSharding(mesh, P()), tree))


def compile_step(step: Callable, mesh: Mesh, state: PyTree, frozen: PyTree, config: ParallelConfig) -> Callable:
    """Returns the compiled step (state, frozen, batch, numbers) -> (state, metrics). It consumes the state.

    `state` and `frozen` are the shardings of these arguments. For mode "pmap" the step averages over the axis "data".
    """
    if config.mode == "pmap":
        return _pmapped(step, mesh)
    whole = NamedSharding(mesh, P())
    return jax.jit(
        over(mesh, step),
        in_shardings=(state, frozen, batch_sharding(mesh), whole),
        out_shardings=(state, whole),
        donate_argnums=0,
        compiler_options=step_options(list(mesh.devices.flat), overlap=config.overlap),
    )


def step_options(devices: Sequence[jax.Device], *, overlap: bool = True) -> dict[str, bool]:
    """Returns XLA's options for a step, of OPTIONS and OVERLAP. One that this XLA does not have is left out.

    The devices may be described ones (`jax.experimental.topologies`). `overlap` is `ParallelConfig.overlap`.
    """
    device = next((one for one in devices if one.process_index == jax.process_index()), devices[0])
    wanted = OPTIONS.get(device.platform, ())
    if overlap and len(devices) > 1:
        wanted += OVERLAP.get(device.platform, ())
    return {name: True for name in wanted if _has_option(device, name)}


@functools.cache
def _has_option(device: jax.Device, name: str) -> bool:
    where = SingleDeviceSharding(device)
    try:
        jax.jit(lambda: 0, out_shardings=where, compiler_options={name: True}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def over(mesh: Mesh, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Returns a function for `jax.jit` whose arrays lie on a training mesh: its attention is divided like its batch."""

    @functools.wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with over_mesh(mesh, BATCH_AXES, "tensor"):
            return function(*args, **kwargs)

    return run


def _pmapped(step: Callable, mesh: Mesh) -> Callable:
    devices = list(mesh.devices.flat)
    mapped = jax.pmap(
        step, axis_name="data", in_axes=(None, None, 0, None), out_axes=None, devices=devices, donate_argnums=0
    )

    def call(state: TrainState, frozen: Params, batch: Any, numbers: Any) -> PyTree:
        cut = jax.tree.map(lambda a: a.reshape(len(devices), -1, *a.shape[1:]), batch)
        return mapped(state, frozen, cut, numbers)

    return call
