"""What holds every call of sdjax's functions to the shapes in their signatures while the tests run (`conftest.py`)."""

import inspect
import typing
from collections.abc import Callable

import beartype
import jaxtyping


def checked(function: Callable) -> Callable:
    """Returns the function with those of its annotations checked that hold an array; mypy holds the others.

    jaxtyping hands over functions made for the check alone, so that their annotations may be changed.
    """
    hints = {name: hint for name, hint in function.__annotations__.items() if _holds_array(hint)}
    function.__annotations__ = hints
    return beartype.beartype(function) if hints else function


def _holds_array(hint: object) -> bool:
    """Returns whether a jaxtyping array stands in the annotation."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_holds_array(part) for part in typing.get_args(hint))
