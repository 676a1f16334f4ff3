"""The change of a kernel as the tensors of a file, in LyCORIS' suffixes and axis order: one function for each kind."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdjax.adapters.delta import Difference, LowRank
from sdjax.adapters.dora import WeightDecomposed
from sdjax.adapters.families import IA3, OFT, GLoRA, LoHa, LoKr
from sdjax.convert.names import axes, tables


@dataclasses.dataclass(frozen=True)
class StoredKernel:
    """The tensors by suffix; the rank and the alpha of kinds that have them."""

    tensors: dict[str, np.ndarray]
    rank: int | None = None
    alpha: float | None = None


def stored_kernel(delta: Any, entry: tables.Entry) -> StoredKernel:
    """Returns the stored form of a kernel's change. Raises ValueError for a change that files have no form for."""
    for kind, store in _STORED.items():
        if isinstance(delta, kind):
            return store(delta, entry)
    raise ValueError(f"files have no form for a change of type {type(delta).__name__}")


def _low_rank(delta: LowRank, entry: tables.Entry) -> StoredKernel:
    down, up = np.asarray(delta.down), np.asarray(delta.up)
    rank = up.shape[0]
    parameter = entry.parameters[0]
    _checked_shape((*down.shape[:-1], up.shape[-1]), parameter.shape)
    tensors = {
        "lora_down.weight": axes.to_torch(parameter.kind, down, pointwise=entry.pointwise),
        "lora_up.weight": up.T if len(entry.shape) == 2 else up.T[:, :, None, None],
    }
    return StoredKernel(tensors, rank, alpha_of(delta.scale, rank))


def _difference(delta: Difference, entry: tables.Entry) -> StoredKernel:
    parameter = entry.parameters[0]
    value = checked(np.asarray(delta.value), parameter.shape)
    return StoredKernel({"diff": axes.to_torch(parameter.kind, value, pointwise=entry.pointwise)})


def _weight_decomposed(delta: WeightDecomposed, entry: tables.Entry) -> StoredKernel:
    kernel, size = stored_kernel(delta.change, entry), np.shape(delta.magnitude)[0]
    sides = (1, size) if delta.per_input else (size, 1)
    scale = np.asarray(delta.magnitude).reshape(*sides, *(1,) * (len(entry.shape) - 2))
    return dataclasses.replace(kernel, tensors={**kernel.tensors, "dora_scale": scale})


def _loha(delta: LoHa, entry: tables.Entry) -> StoredKernel:
    rank = np.shape(delta.w1_b)[0]
    tensors = _given(delta, "hada_", ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"))
    return StoredKernel(tensors, rank, alpha_of(delta.scale, rank))


def _lokr(delta: LoKr, entry: tables.Entry) -> StoredKernel:
    tensors = _given(delta, "lokr_", ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"))
    sides = (("lokr_t2", 0), ("lokr_w1_a", 1), ("lokr_w2_a", 1))  # where readers look for the rank
    rank = next((tensors[name].shape[axis] for name, axis in sides if name in tensors), 1)
    return StoredKernel(tensors, rank, alpha_of(delta.scale, rank))


def _ia3(delta: IA3, entry: tables.Entry) -> StoredKernel:
    return StoredKernel({"weight": np.asarray(delta.factors), "on_input": np.asarray(int(delta.on_input), np.int64)})


def _glora(delta: GLoRA, entry: tables.Entry) -> StoredKernel:
    tensors = {f"{name}.weight": array for name, array in _given(delta, "", ("a1", "a2", "b1", "b2")).items()}
    rank = tensors["a2.weight"].shape[0]
    return StoredKernel(tensors, rank, alpha_of(delta.scale, rank))


def _oft(delta: OFT, entry: tables.Entry) -> StoredKernel:
    tensors = {"oft_blocks": np.asarray(delta.blocks), **_given(delta, "", ("rescale",))}
    if delta.limit == 0:  # nothing is rotated, and alpha 0 would be no limit
        tensors["oft_blocks"] = np.zeros_like(tensors["oft_blocks"])
    return StoredKernel(tensors, tensors["oft_blocks"].shape[-1], (delta.limit or 0.0) / entry.shape[0])


def _given(delta: Any, prefix: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of a change that are not None, by the names that files have for them."""
    return {prefix + name: np.asarray(array) for name in names if (array := getattr(delta, name)) is not None}


_STORED: dict[type, Callable[[Any, tables.Entry], StoredKernel]] = {
    LowRank: _low_rank, Difference: _difference, WeightDecomposed: _weight_decomposed, LoHa: _loha, LoKr: _lokr,
    IA3: _ia3, GLoRA: _glora, OFT: _oft,
}  # fmt: skip


def alpha_of(scale: Any, rank: int) -> float:
    """Returns the number with the fewest digits whose quotient by the rank is the scale in float32."""
    wanted, product = np.float32(scale), float(scale) * rank
    for digits in range(17):
        short = round(product, digits)
        if np.float32(short / rank) == wanted:
            return float(short)
    return product


def checked(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the array. Raises ValueError unless it has this shape."""
    _checked_shape(array.shape, shape)
    return array


def _checked_shape(got: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(got) != tuple(wanted):
        raise ValueError(f"the change is {list(got)}, the parameter {list(wanted)}")
