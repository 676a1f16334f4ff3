"""An adapter's changes as the tensors of files: one module after the other, with LyCORIS' suffixes and axis order."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdjax.adapters.delta import Adapter, Difference
from sdjax.config import ModelConfig
from sdjax.convert.adapters.spelling import PARTS
from sdjax.convert.adapters.write_kernels import checked, stored_kernel
from sdjax.convert.containers.lazy import is_finite, is_floating
from sdjax.convert.errors import listed
from sdjax.convert.names import tables


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
            kernel = stored_kernel(delta, entry)
            found |= kernel.tensors
            rank, alpha = kernel.rank, kernel.alpha
        elif not isinstance(delta, Difference):
            raise ValueError(f"files have no form for a change of {leaf} of type {type(delta).__name__}")
        else:
            suffix = ("w_norm" if leaf == "scale" else "b_norm") if is_norm else "diff_b" if leaf == "bias" else "diff"
            found[suffix] = checked(np.asarray(delta.value), entry.shape)
    for suffix, array in found.items():
        if is_floating(array.dtype) and not is_finite(array):
            raise ValueError(f"{suffix} holds numbers that are not finite")
    part, _, name = next(iter(entries[f"{path}/{leaf}"] for leaf in leaves)).name.partition("/")
    return Module("text" if part == "text_encoder" else part, name.rpartition(".")[0], found, rank, alpha)
