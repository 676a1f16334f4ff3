"""Reads networks outside a model from diffusers' and transformers' files, with names from Flax's paths."""

import dataclasses
from collections.abc import Callable, Collection, Mapping

import numpy as np

from sdjax.convert.checkpoint import Checkpoint
from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.describe.other_kinds import kind_of_folder, kind_of_tensors
from sdjax.convert.errors import printable
from sdjax.convert.names.matching import match, refuse
from sdjax.convert.names.tables import grouped_table, network_table
from sdjax.convert.parts.lone import leaves_in, read_whole
from sdjax.typing import Params


def network_params(
    checkpoint: Checkpoint,
    shapes: Params,
    prefix: str,
    what: str,
    *,
    dtype: np.dtype | None = None,
    canonical: Callable[[str], str] = str,
    unused: str = "$^",
) -> Params:
    """Returns the parameters of these shapes, a tree, from the tensors whose names begin with `prefix`.

    `canonical` turns a file's name, without the prefix, into the one that Flax's path gives; tensors that match
    `unused` are known to lie beside. Raises CheckpointError for missing and misshapen tensors, naming unknown ones too.
    """
    every = checkpoint.tensors
    if prefix and not any(name.startswith(prefix) for name in every):
        every = checkpoint.extra
    tensors = {name: tensor for name, tensor in every.items() if name.startswith(prefix)}
    table = network_table("network", shapes, prefix, canonical, unused)
    return read_whole(leaves_in(checkpoint, tensors, table, what, dtype), dtype, "network")


def every_leaf(
    checkpoint: Checkpoint,
    tensors: Mapping[str, LazyTensor],
    shapes: Params,
    part: str,
    what: str,
    dtype: np.dtype | None,
) -> dict[str, LazyTensor]:
    """Returns the parameters of these shapes by path, which begins with `part`.

    `tensors` are all of the network's, by the names that Flax's paths give. Raises CheckpointError for missing,
    misshapen and unknown ones.
    """
    found = match(tensors, network_table(part, shapes, "", str, "$^"))
    unknown = (tensors[name] for name in found.unknown)
    problems = [f"{printable(one.name)} {list(one.shape)} is unknown" for one in unknown]
    more = tuple(problem for problem in problems if problem not in found.problems)
    refuse(dataclasses.replace(found, problems=(*found.problems, *more)), what, checkpoint.error)
    return found.leaves(tensors, dtype)


def every_tensor(
    checkpoint: Checkpoint, shapes: Params, name: Callable[[str], str], what: str, *, bare: Collection[str] = (),
    prefix: str | tuple[str, ...] = "", unused: str = "$^",
) -> Params:  # fmt: skip
    """Returns the parameters of these shapes, a float32 tree, from all tensors whose names begin with `prefix`.

    There may be several prefixes. `name`, `bare` and `unused` are those of `grouped_table`. Raises CheckpointError for
    missing, misshapen and unknown tensors.
    """
    tensors = {one: tensor for one, tensor in checkpoint.tensors.items() if one.startswith(prefix)}
    table, dtype = grouped_table("network", shapes, name, bare=bare, unused=unused), np.dtype("float32")
    return read_whole(leaves_in(checkpoint, tensors, table, what, dtype, complete=True), dtype, "network")


def kind_given(checkpoint: Checkpoint) -> str:
    """Returns the words " and is ..." of a message if the kind of the checkpoint is known, else nothing."""
    kind = kind_of_folder(checkpoint.configs) or kind_of_tensors(checkpoint.shapes)
    return " and holds none" if kind is None else f" and is {kind.what}"


def prefix_of(checkpoint: Checkpoint, *places: tuple[str, str]) -> str | None:
    """Returns the prefix of the first of the places (prefix, tensor's name) at which there is that tensor."""
    names = checkpoint.tensors.keys() | checkpoint.extra.keys()
    return next((prefix for prefix, name in places if prefix + name in names), None)
