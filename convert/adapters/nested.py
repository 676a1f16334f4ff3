"""Flattens what torch.save or JSON nests: arrays by dotted names, and texts and numbers beside them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sdjax.convert.containers.stored import MAX_TENSORS
from sdjax.convert.errors import CheckpointError

DEEPEST = 4  # levels of mappings and sequences


def flattened(data: Mapping[Any, Any]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the arrays of nested mappings and tuples by names joined with dots, and the top level's other values.

    So it names them as `sdjax.convert.read` does. Raises CheckpointError for more entries than a file may have.
    """
    arrays: dict[str, np.ndarray] = {}
    texts: dict[str, str] = {}
    waiting: list[tuple[str, Any, int]] = [("", data, 0)]
    seen = 0
    while waiting:
        before, value, depth = waiting.pop()
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            seen += 1
            if seen > MAX_TENSORS:
                raise CheckpointError(f"it has more than {MAX_TENSORS} entries")
            name = f"{before}{key}"
            if isinstance(item, np.ndarray):
                arrays[name] = item
            elif isinstance(item, Mapping | list | tuple) and depth < DEEPEST:
                waiting.append((f"{name}.", item, depth + 1))
            elif depth == 0 and isinstance(item, bool | int | float | str):
                texts[name] = str(item)
    return arrays, texts
