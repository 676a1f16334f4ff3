"""Tables of the tensors in a file of each layout: one entry a stored tensor, generated from the model's shapes.

Reading runs a table forwards, writing the same one backwards.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sdjax.config import ModelConfig
from sdjax.convert.containers.lazy import LazyTensor, Packed, nothing
from sdjax.convert.names import axes, beside, naming, vision
from sdjax.convert.names.naming import LAYOUTS, Layout
from sdjax.nn import parts as model_parts
from sdjax.nn.quantised.leaf import side_by_side
from sdjax.typing import Params

PARTS = {name: part.title for name, part in model_parts.PARTS.items()}
OPTIONAL = {name: part.without for name, part in model_parts.PARTS.items() if part.without is not None}


def described(config: ModelConfig) -> dict[str, Any]:
    """Returns the descriptions of a model's parts by name: of the optional parts, those that it has."""
    return {part: getattr(config, part) for part in model_parts.parts_of(config)}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A leaf of Flax's tree."""

    path: str  # "unet/conv_in/kernel"
    shape: tuple[int, ...]
    kind: axes.Kind

    @property
    def part(self) -> str:
        return self.path.partition("/")[0]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A stored tensor: its name and shape, and the parameters whose rows it holds one after the other."""

    name: str
    shape: tuple[int, ...]
    parameters: tuple[Parameter, ...]
    pointwise: bool = False
    native: bool = False

    @property
    def part(self) -> str:
        return self.parameters[0].part

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Returns whether a file's tensor may have this shape: some tools store 1x1 convolutions as matrices."""
        if not self.native and self.parameters[0].kind == "matrix" and len(shape) == 4:
            return shape[2:] == (1, 1) and shape[:2] == self.shape[:2]
        return shape == self.shape or (self.pointwise and shape == self.shape[:2])

    def split(self, tensor: LazyTensor) -> dict[str, LazyTensor]:
        """Returns the parameters by path, in Flax's layout, as views of the stored tensor when they are read."""
        last = len(self.parameters) - 1
        return {
            parameter.path: LazyTensor(
                parameter.shape,
                tensor.dtype,
                functools.partial(self._piece, tensor, index),
                tensor.release if index == last else nothing,
                tensor.name,
                packed=self._packed(tensor, index),
            )
            for index, parameter in enumerate(self.parameters)
        }

    def _piece(self, tensor: LazyTensor, index: int) -> np.ndarray:
        array = tensor.read()
        if self.native:
            return array
        piece = np.split(array, len(self.parameters))[index] if len(self.parameters) > 1 else array
        return axes.to_flax(self.parameters[index].kind, piece)

    def _packed(self, tensor: LazyTensor, index: int) -> Packed | None:
        """Returns the quantised form of a parameter: only kernels stay quantised when they are read."""
        parameter, packed = self.parameters[index], tensor.packed
        if packed is None or packed.read is None or self.native or parameter.kind == "same":
            return None
        if parameter.kind == "convolution" and len(tensor.shape) != 4:
            return None
        read, count = packed.read, len(self.parameters)
        return Packed(packed.kind, lambda: read().outputs(index, count).reshaped(parameter.shape))

    def join_packed(self, leaves: list[LazyTensor]) -> Packed | None:
        """Returns the stored tensor's quantised form, None unless all parameters have the same."""
        reads = [leaf.packed.read for leaf in leaves if leaf.packed is not None and leaf.packed.read is not None]
        kinds = {leaf.packed.kind for leaf in leaves if leaf.packed is not None}
        if len(reads) < len(leaves) or len(kinds) != 1 or self.native:
            return None
        d, c, *outer = self.shape
        return Packed(kinds.pop(), lambda: side_by_side([read() for read in reads]).reshaped((*outer, c, d)))

    def join(self, arrays: list[np.ndarray]) -> np.ndarray:
        """Returns the stored tensor of the parameters' arrays, the other way round than `split`."""
        if self.native:
            return arrays[0]
        pieces = [
            axes.to_torch(parameter.kind, array, pointwise=self.pointwise)
            for parameter, array in zip(self.parameters, arrays)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def parameters_of(part: str, shapes: Params) -> tuple[Parameter, ...]:
    """Returns a network's parameters, whose paths begin with `part`, in their order. `shapes` is their tree."""
    out = []
    for place, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        path = f"{part}/{jax.tree_util.keystr(place, simple=True, separator='/')}"
        out.append(Parameter(path, leaf.shape, axes.kind_of(path, leaf.shape)))
    return tuple(sorted(out, key=lambda parameter: parameter.path))


@functools.lru_cache(maxsize=64)
def part_parameters(part: str, description: Any) -> tuple[Parameter, ...]:
    """Returns the parameters of a part of a model in the order of their paths, without allocating any."""
    return parameters_of(part, model_parts.PARTS[part].shapes(description))


def parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Returns the parameters of a whole model, part by part."""
    return tuple(p for part, description in described(config).items() for p in part_parameters(part, description))


@functools.lru_cache(maxsize=64)
def part_entries(part: str, description: Any, layout: Layout) -> tuple[Entry, ...]:
    """Returns the tensors that a file of this layout holds for the parameters of a part of a model."""
    return tuple(_ENTRIES[layout](part_parameters(part, description), description))


def entries(config: ModelConfig, layout: Layout) -> tuple[Entry, ...]:
    """Returns the tensors that a file of this layout holds for the parameters of a whole model."""
    parts = sorted(described(config).items())
    return tuple(entry for part, description in parts for entry in part_entries(part, description, layout))


def tensor_shapes(config: ModelConfig, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the parameters in a file of a layout: "native", "ldm" or "diffusers"."""
    if layout not in LAYOUTS:
        raise ValueError(f"a layout is one of {', '.join(LAYOUTS)}; got {layout!r}")
    return {entry.name: entry.shape for entry in entries(config, layout)}


def _native(parameters: Sequence[Parameter], description: Any) -> Iterable[Entry]:
    return (Entry(p.path, p.shape, (p,), native=True) for p in parameters)


def _diffusers(parameters: Sequence[Parameter], description: Any) -> Iterable[Entry]:
    for p in parameters:
        pointwise = _is_v1_projection(p, description)
        yield Entry(
            naming.diffusers_name(p.path), axes.stored_shape(p.kind, p.shape, pointwise=pointwise), (p,), pointwise
        )


def _ldm(parameters: Sequence[Parameter], description: Any) -> Iterable[Entry]:
    stored: dict[str, list[Parameter]] = {}
    for p in parameters:
        stored.setdefault(naming.ldm_name(p.path, description), []).append(p)
    for name, group in stored.items():
        group.sort(key=_row)
        if name == _VISION + vision.PROJECTION:
            group = [dataclasses.replace(p, kind="same") for p in group]  # never transposed, though it is a matrix
        first = group[0]
        pointwise = _is_v1_projection(first, description) or (first.part == "vae" and first.kind == "matrix")
        shape = axes.stored_shape(first.kind, first.shape, pointwise=pointwise)
        yield Entry(name, (shape[0] * len(group), *shape[1:]), tuple(group), pointwise)


def _is_v1_projection(p: Parameter, description: Any) -> bool:
    """Returns whether v1 stores this matrix of a UNet's transformer block as a 1x1 convolution."""
    return p.part == "unet" and not description.linear_projection and p.path.endswith(PROJECTIONS)


_VISION = naming.LDM_PREFIXES["vision"]
PROJECTIONS = ("/proj_in/kernel", "/proj_out/kernel")


_ENTRIES: dict[str, Callable[[Sequence[Parameter], Any], Iterable[Entry]]] = {
    "native": _native, "ldm": _ldm, "diffusers": _diffusers,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Table:
    """The tensors that a file should hold for some networks.

    `parts` are the networks, in the order in which messages name them. `canonical` returns a tensor's name as the
    entries spell it, `beside` whether a tensor that is no parameter belongs there all the same.
    """

    entries: tuple[Entry, ...]
    parts: tuple[str, ...]
    canonical: Callable[[str], str] = str
    beside: Callable[[str], bool] = lambda name: False


def model_table(config: ModelConfig, layout: Layout) -> Table:
    """Returns the table of a whole model in this layout."""
    return _table(entries(config, layout), described(config), layout)


def part_table(part: str, description: Any, layout: Layout) -> Table:
    """Returns the table of one part of a model in this layout."""
    return _table(part_entries(part, description, layout), {part: description}, layout)


def _table(entries: tuple[Entry, ...], parts: Mapping[str, Any], layout: Layout) -> Table:
    canonical = functools.partial(beside.canonical, layout=layout)
    known = functools.partial(beside.is_known, layout=layout, parts=parts)
    return Table(entries, tuple(parts), canonical, known)


def network_table(part: str, shapes: Params, prefix: str, canonical: Callable[[str], str], unused: str) -> Table:
    """Returns the table of a network outside a model, with names from Flax's paths.

    `prefix` stands before the names in the file. `canonical` and the pattern `unused` are for names without it.
    """
    entries = [
        Entry(prefix + naming.torch_name(p.path.partition("/")[2]), axes.stored_shape(p.kind, p.shape), (p,))
        for p in parameters_of(part, shapes)
    ]
    entries.sort(key=lambda entry: entry.name.count("."))  # the outermost first: not all of a message's are shown
    known = re.compile(unused)
    return Table(
        tuple(entries),
        (part,),
        lambda name: prefix + canonical(name.removeprefix(prefix)),
        lambda name: known.fullmatch(name.removeprefix(prefix)) is not None,
    )


def grouped_table(
    part: str, shapes: Params, name: Callable[[str], str], *, bare: Collection[str] = (), unused: str = "$^"
) -> Table:
    """Returns the table of a network whose file has names of its own, some of them for several parameters.

    `name` gives a parameter's name there from the one of Flax's path. Parameters of one name are rows of one tensor:
    queries, keys and values. Matrices that are `bare` there are not transposed. Names that match `unused` may lie
    beside.
    """
    stored: dict[str, list[Parameter]] = {}
    for p in parameters_of(part, shapes):
        stored.setdefault(name(naming.torch_name(p.path.partition("/")[2])), []).append(p)
    entries = []
    for one, group in stored.items():
        group.sort(key=_row)
        if one in bare:
            group = [dataclasses.replace(p, kind="same") for p in group]
        shape = axes.stored_shape(group[0].kind, group[0].shape)
        entries.append(Entry(one, (shape[0] * len(group), *shape[1:]) if len(group) > 1 else shape, tuple(group)))
    known = re.compile(unused)
    return Table(tuple(entries), (part,), str, lambda name: known.fullmatch(name) is not None)


def _row(p: Parameter) -> int:
    """Returns the place of a parameter among those that share a tensor."""
    return next((i for i, row in enumerate(naming.FUSED) if f"/{row}/" in p.path), 0)
