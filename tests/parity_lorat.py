"""Low-rank adapters behind the interface of the parity kit: sums, extraction, singular values."""

import numpy as np

from sdjax.adapters.delta import LowRank
from sdjax.adapters.factoring import Truncation, concatenate, factor, refactor, singular_values
from sdjax.convert.names.axes import to_flax, to_torch


def lora_merged(method, models, options):
    """Returns the tensors that a LoRA method makes of the kit's models, whose names are a file's."""
    return _METHODS[method](models, options)


def _kernel(array):
    return to_flax("matrix" if array.ndim == 2 or array.shape[2:] == (1, 1) else "convolution", array)


def _low_rank(tensors, module):
    down, up = tensors[f"{module}.lora_down.weight"], tensors[f"{module}.lora_up.weight"]
    alpha = float(tensors.get(f"{module}.alpha", down.shape[0]))
    up = _kernel(up)
    return LowRank(_kernel(down), up.reshape(up.shape[-2:]), alpha / down.shape[0])


def _written(module, change):
    kind = "matrix" if change.down.ndim == 2 else "convolution"
    up = np.asarray(change.up).T
    return {
        f"{module}.lora_down.weight": to_torch(kind, np.asarray(change.down)),
        f"{module}.lora_up.weight": up if kind == "matrix" else up[:, :, None, None],
        f"{module}.alpha": np.float32(change.scale * up.shape[1]),
    }


def _sums(models, options):
    pairs = list(zip(models.values(), options["ratios"]))
    modules = {name.partition(".")[0] for model in models.values() for name in model}
    for module in modules:
        yield module, [(_low_rank(t, module), ratio) for t, ratio in pairs if f"{module}.lora_up.weight" in t]


def _concat(models, options):
    return {k: v for module, sums in _sums(models, options) for k, v in _written(module, concatenate(sums)).items()}


def _svd(models, options):
    out = {}
    for module, sums in _sums(models, options):
        keep = Truncation(options["rank"] if sums[0][0].down.ndim == 2 else options["conv_rank"])
        out |= _written(module, refactor(sums, keep, options["clamp_quantile"]).change)
    return out


def _extract(models, options):
    out = {}
    for name in models["original"]:
        module, difference = name.removesuffix(".weight"), _difference(models, name)
        rank = options["rank"] if difference.ndim == 2 else options["conv_rank"]
        if rank is not None:
            out |= _written(module, factor(difference, Truncation(rank), options["clamp_quantile"]).change)
    return out


def _difference(models, name):
    tuned, original = (_kernel(models[key][name]).astype(np.float32) for key in ("tuned", "original"))
    return tuned - original


def _values(models, options):
    return {name: singular_values(_difference(models, name)) for name in models["original"]}


_METHODS = {"lora_concat": _concat, "lora_svd": _svd, "extract_lora": _extract, "extract_singular_values": _values}
