"""Parameters in memory as a model's leaves: those that are still what was read keep their stored type."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdjax.config import ModelConfig
from sdjax.convert.containers.casting import cast
from sdjax.convert.errors import listed
from sdjax.convert.leaves import Leaf, is_floating
from sdjax.convert.names import tables
from sdjax.typing import Params


def leaves_of(config: ModelConfig, params: Params, before: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Returns the parameters by path; `before` are the leaves that they were read from.

    A parameter that is the same still is the stored one. Another is cast to the type of the stored one only if this
    loses nothing. Raises ValueError if they are not the description's.
    """
    leaves, problems = {}, []
    order = tuple(tables.PARTS)
    for parameter in sorted(tables.parameters(config), key=lambda parameter: order.index(parameter.part)):
        path, array = parameter.path, _at(params, parameter.path)
        if array is None or tuple(array.shape) != parameter.shape:
            got = "nothing" if array is None else list(array.shape)
            problems.append(f"{path} is {list(parameter.shape)}, got {got}")
            continue
        leaf = Leaf(parameter.shape, np.dtype(array.dtype), functools.partial(np.asarray, array), name=path)
        old = before.get(path)
        if old is not None and old.shape == leaf.shape:
            leaf = _like(leaf, old.stored or old)
        leaves[path] = leaf
    if problems:
        raise ValueError(f"the parameters are not the description's: {listed(problems)}")
    return leaves


def _like(leaf: Leaf, stored: Leaf) -> Leaf:
    """Returns the stored leaf if the other was cast from it, else the other, in the stored type if it fits exactly."""
    now, then = leaf.read(), stored.read()
    if _same(cast(then, now.dtype), now):
        stored.release()
        return stored
    exact = is_floating(now.dtype) and _same(cast(cast(now, stored.dtype), now.dtype), now)
    return leaf.cast(stored.dtype) if exact else leaf


def _at(tree: Params, path: str) -> Any:
    for module in path.split("/"):
        tree = tree.get(module) if isinstance(tree, Mapping) else None
    return tree


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether two arrays of one shape and type hold the same bytes."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8))
