"""An adapter's changes as the tensors of files: one module after the other, with LyCORIS' suffixes and axis order."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sdjax.adapters.delta import Adapter, Difference, LowRank
from sdjax.adapters.dora import WeightDecomposed
from sdjax.adapters.orthogonal import Orthogonal
from sdjax.adapters.products import Hadamard, Kronecker
from sdjax.config import ModelConfig
from sdjax.convert.containers.lazy import is_floating
from sdjax.convert.errors import listed
from sdjax.convert.names import axes, tables

PARTS = ("unet", "text")  # the networks that adapters change


@dataclasses.dataclass(frozen=True)
class Module:
    """The change of one layer, as files store it.

    Attributes:
        part: "unet" or "text".
        name: the layer's name in diffusers, "down_blocks.0.attentions.0.proj_in".
        tensors: by suffix, such as "lora_down.weight"; without alpha.
        rank: the rank that alpha is divided by; None for kinds without one.
        alpha: the stored alpha; None for kinds without one.
    """

    part: str
    name: str
    tensors: Mapping[str, np.ndarray]
    rank: int | None = None
    alpha: float | None = None

    @property
    def is_low_rank(self) -> bool:
        """Whether it is a LoRA or DoRA, the kinds that PEFT's and diffusers' names can hold."""
        return set(self.tensors) <= {*LOW_RANK, "dora_scale"} and set(LOW_RANK) <= set(self.tensors)


LOW_RANK = ("lora_down.weight", "lora_up.weight")


def stored_modules(adapter: Adapter, config: ModelConfig) -> list[Module]:
    """Returns the changes of each layer of a model, in the order of their names.

    Raises ValueError, naming all of them, for changes of parameters that the model does not have, that have another
    shape, that are not finite, or that no file has names for.
    """
    entries = {
        entry.parameters[0].path: entry
        for part in PARTS
        for entry in tables.part_entries(part, getattr(config, part), "diffusers")
    }
    problems: list[str] = []
    leaves: dict[str, dict[str, Any]] = {}
    for path, delta in adapter.items():
        if path not in entries:
            problems.append(f"the model has no parameter {path!r}")
        else:
            module, _, leaf = path.rpartition("/")
            leaves.setdefault(module, {})[leaf] = delta
    modules = []
    for path in sorted(leaves):
        try:
            modules.append(_module(path, leaves[path], entries))
        except ValueError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise ValueError(f"the adapter cannot be written: {listed(problems)}")
    return modules


def _module(path: str, leaves: Mapping[str, Any], entries: Mapping[str, tables.Entry]) -> Module:
    """Returns the stored form of a layer's changes, by leaf."""
    found: dict[str, np.ndarray] = {}
    rank, alpha, is_norm = None, None, f"{path}/scale" in entries
    for leaf, delta in leaves.items():
        entry = entries[f"{path}/{leaf}"]
        if leaf == "kernel":
            kernel = _stored(delta, entry)
            found |= kernel.tensors
            rank, alpha = kernel.rank, kernel.alpha
        elif not isinstance(delta, Difference):
            raise ValueError(f"files have no form for a change of {leaf} of type {type(delta).__name__}")
        else:
            suffix = ("w_norm" if leaf == "scale" else "b_norm") if is_norm else "diff_b" if leaf == "bias" else "diff"
            found[suffix] = _checked(np.asarray(delta.value), entry.shape)
    for suffix, array in found.items():
        if is_floating(array.dtype) and not np.isfinite(array.astype(np.float32)).all():
            raise ValueError(f"{suffix} holds numbers that are not finite")
    part, _, name = next(iter(entries[f"{path}/{leaf}"] for leaf in leaves)).name.partition("/")
    return Module("text" if part == "text_encoder" else part, name.rpartition(".")[0], found, rank, alpha)


@dataclasses.dataclass(frozen=True)
class _Kernel:
    tensors: dict[str, np.ndarray]
    rank: int | None = None
    alpha: float | None = None


def _stored(delta: Any, entry: tables.Entry) -> _Kernel:
    """Returns the stored form of a kernel's change. Raises ValueError for a change that files have no form for."""
    for kind, store in _STORED.items():
        if isinstance(delta, kind):
            return store(delta, entry)
    raise ValueError(f"files have no form for a change of type {type(delta).__name__}")


def _low_rank(delta: LowRank, entry: tables.Entry) -> _Kernel:
    down, up = np.asarray(delta.down), np.asarray(delta.up)
    rank = up.shape[0]
    parameter = entry.parameters[0]
    _checked_shape((*down.shape[:-1], up.shape[-1]), parameter.shape)
    tensors = {
        "lora_down.weight": axes.to_torch(parameter.kind, down, pointwise=entry.pointwise),
        "lora_up.weight": up.T if len(entry.shape) == 2 else up.T[:, :, None, None],
    }
    return _Kernel(tensors, rank, alpha_of(delta.scale, rank))


def _difference(delta: Difference, entry: tables.Entry) -> _Kernel:
    parameter = entry.parameters[0]
    value = _checked(np.asarray(delta.value), parameter.shape)
    return _Kernel({"diff": axes.to_torch(parameter.kind, value, pointwise=entry.pointwise)})


def _weight_decomposed(delta: WeightDecomposed, entry: tables.Entry) -> _Kernel:
    kernel = _low_rank(delta.change, entry)
    scale = np.asarray(delta.magnitude).reshape(-1, *(1,) * (len(entry.shape) - 1))
    return dataclasses.replace(kernel, tensors={**kernel.tensors, "dora_scale": scale})


def _hadamard(delta: Hadamard, entry: tables.Entry) -> _Kernel:
    tensors: dict[str, np.ndarray] = {}
    for i, change in (1, delta.first), (2, delta.second):
        stored = _low_rank(change, entry).tensors
        rank = stored["lora_down.weight"].shape[0]
        tensors[f"hada_w{i}_a"] = stored["lora_up.weight"].reshape(-1, rank)
        tensors[f"hada_w{i}_b"] = stored["lora_down.weight"].reshape(rank, -1)
    return _Kernel(tensors, rank, alpha_of(delta.scale, rank))


def _kronecker(delta: Kronecker, entry: tables.Entry) -> _Kernel:
    kind = entry.parameters[0].kind
    tensors = {"lokr_w1": np.asarray(delta.first).T}
    if not isinstance(delta.second, LowRank):
        second = axes.to_torch(kind, np.asarray(delta.second), pointwise=entry.pointwise)
        return _Kernel({**tensors, "lokr_w2": second}, 1, alpha_of(delta.scale, 1))
    down = axes.to_torch(kind, np.asarray(delta.second.down), pointwise=entry.pointwise)
    tensors |= {"lokr_w2_a": np.asarray(delta.second.up).T, "lokr_w2_b": down.reshape(len(down), -1)}
    return _Kernel(tensors, len(down), alpha_of(delta.scale, len(down)))


def _orthogonal(delta: Orthogonal, entry: tables.Entry) -> _Kernel:
    blocks = np.asarray(delta.blocks)
    return _Kernel({"oft_blocks": blocks}, blocks.shape[1], delta.constraint / entry.shape[0])


_STORED: dict[type, Callable[[Any, tables.Entry], _Kernel]] = {
    LowRank: _low_rank, Difference: _difference, WeightDecomposed: _weight_decomposed, Hadamard: _hadamard,
    Kronecker: _kronecker, Orthogonal: _orthogonal,
}  # fmt: skip


def alpha_of(scale: Any, rank: int) -> float:
    """Returns the number with the fewest digits whose quotient by the rank is the scale in float32."""
    wanted, product = np.float32(scale), float(scale) * rank
    for digits in range(17):
        short = round(product, digits)
        if np.float32(short / rank) == wanted:
            return float(short)
    return product


def _checked(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    _checked_shape(array.shape, shape)
    return array


def _checked_shape(got: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(got) != tuple(wanted):
        raise ValueError(f"the change is {list(got)}, the parameter {list(wanted)}")
