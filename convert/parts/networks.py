"""Networks that are no part of a model, read from diffusers' and transformers' files by Flax's names alone."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sdjax.convert.containers.casting import Loss, advice, told
from sdjax.convert.containers.lazy import LazyTensor, aligned_copy, is_floating
from sdjax.convert.errors import listed, printable, shown
from sdjax.convert.names import keys, layouts
from sdjax.convert.sources import Source
from sdjax.typing import Params

_NOTHING = re.compile(r"$^")


def network_params(
    source: Source,
    shapes: Params,
    prefix: str,
    what: str,
    *,
    kind: np.dtype | None = None,
    canonical: Callable[[str], str] = str,
    unused: re.Pattern[str] = _NOTHING,
) -> dict[str, Any]:
    """Returns the parameters of these shapes, a tree, from the tensors whose names begin with `prefix`.

    `canonical` turns a file's name, without the prefix, into the one that Flax's path gives; tensors that match
    `unused` are known to lie beside. Raises CheckpointError for missing and misshapen tensors, naming unknown ones too.
    """
    tensors = source.extra if source.extra is not None and prefix and not _has(source.tensors, prefix) else None
    tensors = source.tensors if tensors is None else tensors
    stored = {canonical(name[len(prefix) :]): name for name in tensors if name.startswith(prefix)}
    missing: list[str] = []
    misfits: list[str] = []

    def read(path: Any, leaf: jax.ShapeDtypeStruct) -> Any:
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        wanted, flax_kind = keys.torch_name(path), layouts.kind_of(path, leaf.shape)
        name, shape = stored.pop(wanted, None), layouts.stored_shape(flax_kind, leaf.shape)
        if name is None:
            missing.append(f"{prefix}{wanted} is missing")
        elif tensors.shapes[name] != shape:
            misfits.append(f"{printable(name)} has the shape {list(tensors.shapes[name])} instead of {list(shape)}")
        elif not is_floating(tensors.dtypes[name]):
            misfits.append(f"{shown(name)} holds {tensors.dtypes[name].name} numbers instead of floating-point ones")
        else:
            return functools.partial(_array, tensors, name, flax_kind, kind)
        return lambda losses: None

    reads = jax.tree_util.tree_map_with_path(read, shapes)
    missing.sort(key=lambda name: name.count("."))  # the outermost first: they say most, and not all are shown
    if problems := missing + misfits:  # among what is unknown, and lies idle otherwise, may be what is missing
        problems += [f"{printable(name)} is unknown" for wanted, name in stored.items() if not unused.fullmatch(wanted)]
        many = "s" if len(problems) > 1 else ""
        raise source.error(f"it does not hold {what}, with {len(problems)} difference{many}: {listed(problems)}")
    losses: dict[str, Loss] = {}
    params = jax.tree.map(lambda one: one(losses), reads)
    if losses:
        raise source.error(f"{told(losses, kind.name)}; {advice(kind.name)}")
    return params


def _array(
    tensors: Any, name: str, flax_kind: layouts.Kind, kind: np.dtype | None, losses: dict[str, Loss]
) -> np.ndarray:
    array = layouts.to_flax(flax_kind, tensors[name])
    leaf = LazyTensor(array.shape, array.dtype, lambda: array, name=name).cast(kind)
    copy = aligned_copy(leaf.read_noting(losses))
    tensors.release(name)
    return copy


def place_of(source: Source, *places: tuple[str, str]) -> str | None:
    """Returns the prefix of the first of the places (prefix, tensor's name) at which the source has that tensor."""
    everywhere = [source.tensors, *([source.extra] if source.extra is not None else [])]
    return next((prefix for prefix, name in places if any(prefix + name in tensors for tensors in everywhere)), None)


def file_of(source: Source, name: str) -> Any:
    """Returns the contents of a JSON file of a folder, of whatever layout; None if there is none."""
    files = (source.native or {}).get("files", {}) if source.layout == "native" else source.configs
    return files.get(name)


def _has(tensors: Any, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)
