"""Context variables that have a value inside a `with` block."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def scoped(variable: ContextVar[T], value: T) -> Iterator[T]:
    """Returns a context in which the variable has the value, for this thread."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)
