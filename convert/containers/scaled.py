"""Weights of 8 bits in safetensors files, with or without scales beside them.

sdjax writes "NAME.weight" as int8 or float8_e4m3 with float32 "NAME.scale_weight", a number for each output. ComfyUI's
files have one number for all outputs under that name or "NAME.weight_scale", and beside it what is not needed here:
scales of inputs, and a mark that the file is of this kind. Others have float8 without scales.
"""

import functools
from collections.abc import Iterable

import numpy as np

from sdjax.convert.containers.casting import cast
from sdjax.convert.containers.lazy import LazyTensor, Packed
from sdjax.nn.quantised.kinds import KINDS
from sdjax.nn.quantised.leaf import FLOAT8, Quantised

WEIGHT, SCALE = "weight", "scale_weight"  # ends of names
SCALES = (SCALE, "weight_scale")
NOT_NEEDED = ("scale_input", "input_scale", "comfy_quant")
MARK = "scaled_fp8"  # an empty tensor
KIND_OF = {np.dtype(np.int8): KINDS["int8"], FLOAT8: KINDS["fp8"]}


def with_scales(tensors: Iterable[LazyTensor]) -> list[LazyTensor]:
    """Returns a file's tensors, those of 8 bits as quantised weights, joined with the scales beside them."""
    by_name = {tensor.name: tensor for tensor in tensors}
    out, used = dict(by_name), False
    for name, tensor in by_name.items():
        stem, kind = name.removesuffix(WEIGHT), KIND_OF.get(tensor.dtype)
        if stem == name or kind is None or len(tensor.shape) not in (2, 4):
            continue
        found = next((stem + end for end in SCALES if stem + end in by_name), None)
        if found is not None and _fits(by_name[found], tensor):
            out[name] = _joined(tensor, by_name[found], kind.name)
            used = True
            for beside in (found, *(stem + end for end in NOT_NEEDED)):
                out.pop(beside, None)
        elif kind.name == "fp8":
            read = functools.partial(_leaf, tensor, None, kind.name)
            out[name] = LazyTensor(
                tensor.shape, tensor.dtype, tensor.read, tensor.release, name, packed=Packed(kind, read)
            )
    return [tensor for name, tensor in out.items() if not (used and name.rpartition(".")[2] == MARK)]


def _fits(scale: LazyTensor, weight: LazyTensor) -> bool:
    """Returns whether a tensor may hold the scales of a weight: one number, or one for each output."""
    rest = scale.shape[1:]
    return scale.dtype.kind == "f" and set(rest) <= {1} and scale.shape[:1] in ((), (1,), weight.shape[:1])


def _joined(weight: LazyTensor, scale: LazyTensor, kind: str) -> LazyTensor:
    def read() -> np.ndarray:
        factors = scale.read().astype(np.float32).reshape(-1, *(1,) * (len(weight.shape) - 1))
        return cast(weight.read(), np.dtype(np.float32)) * factors

    def release() -> None:
        weight.release()
        scale.release()

    packed = Packed(KINDS[kind], functools.partial(_leaf, weight, scale, kind))
    return LazyTensor(weight.shape, np.dtype(np.float32), read, release, weight.name, packed=packed)


def _leaf(weight: LazyTensor, scale: LazyTensor | None, kind: str) -> Quantised:
    """Returns a weight [d, c] or [d, c, h, w] as a leaf [c, d] or [h, w, c, d]."""
    codes = weight.read()
    codes = codes.transpose(2, 3, 1, 0) if codes.ndim == 4 else codes.T
    factors = np.ones(1, np.float32) if scale is None else scale.read().astype(np.float32).reshape(-1)
    codes = np.ascontiguousarray(codes)
    return Quantised((codes.view(np.int8 if kind == "int8" else np.uint8),), factors, kind=kind, shape=codes.shape)


def separated(name: str, tensor: LazyTensor) -> dict[str, LazyTensor]:
    """Returns what a file holds for a tensor by name: weights of 8 bits and their scales, or the tensor as it is.

    A quantised tensor that was cast to another type is that type's, and float8 without scales stays so.
    """
    packed = tensor.packed
    dtype = next((dtype for dtype, kind in KIND_OF.items() if packed is not None and kind is packed.kind), None)
    if packed is None or packed.read is None or dtype in (None, tensor.dtype) or tensor.stored is not None:
        return {name: tensor}
    read = packed.read
    d, *rest = tensor.shape

    def codes() -> np.ndarray:
        array = np.asarray(read().codes[0]).view(dtype)
        return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T

    def scales() -> np.ndarray:
        return np.broadcast_to(np.asarray(read().scale), (d,)).reshape(d, *(1,) * len(rest))

    beside = name.removesuffix(WEIGHT) + SCALE
    return {
        name: LazyTensor(tensor.shape, dtype, codes, tensor.release, tensor.name),
        beside: LazyTensor((d, *(1,) * len(rest)), np.dtype(np.float32), scales, tensor.release, tensor.name),
    }
