"""Checks the shapes in signatures at every call of sdjax's functions while the tests run (`conftest.py`)."""

import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable
from typing import Any

import beartype
import jax
import jaxtyping
import numpy as np


def checked(function: Callable) -> Callable:
    """Returns the function with the shapes and dtypes in its annotations checked; mypy holds what has none.

    jaxtyping hands over functions made for the check alone, so that their annotations may be changed. What a dataclass
    is made of goes unchecked: JAX puts shapes, shardings and its own placeholders where arrays stand.
    """
    if function.__name__ == "__init__":
        return function
    function.__annotations__ = {name: _of_any(h) for name, h in function.__annotations__.items() if _holds_array(h)}
    return beartype.beartype(function) if function.__annotations__ else function


def _is_array(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)


def _holds_array(hint: Any) -> bool:
    """Returns whether a jaxtyping array stands in the annotation."""
    return _is_array(hint) or any(_holds_array(part) for part in typing.get_args(hint))


def _of_any(hint: Any) -> Any:
    """Returns the annotation with NumPy's arrays let in where JAX's are, as JAX itself does it."""
    if _is_array(hint):
        return hint.dtype[jax.Array | np.ndarray, hint.dim_str] if hint.array_type is jax.Array else hint
    parts = tuple(_of_any(part) for part in typing.get_args(hint))
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return functools.reduce(operator.or_, parts)
    return hint if typing.get_origin(hint) not in (list, tuple, dict) else typing.get_origin(hint)[parts]
