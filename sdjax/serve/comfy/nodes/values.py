"""Nodes that hold a value."""

import dataclasses

from sdjax.serve.comfy.definitions import node, real, switch, text, whole
from sdjax.serve.comfy.host import Run

LIMIT = 2**53


WHOLE = dataclasses.replace(whole("value", 0), low=-LIMIT, high=LIMIT, after=True)


@node("PrimitiveInt", "utils/primitive", (WHOLE,), ("INT",), title="Int")
def integer(run: Run, value: int) -> tuple[int]:
    """Holds a whole number."""
    return (value,)


@node("PrimitiveFloat", "utils/primitive", (real("value", 0.0, -LIMIT, LIMIT),), ("FLOAT",), title="Float")
def number(run: Run, value: float) -> tuple[float]:
    """Holds a number."""
    return (value,)


@node("PrimitiveString", "utils/primitive", (text("value"),), ("STRING",), title="String")
def words(run: Run, value: str) -> tuple[str]:
    """Holds a text."""
    return (value,)


@node(
    "PrimitiveStringMultiline",
    "utils/primitive",
    (text("value", multiline=True),),
    ("STRING",),
    title="String (Multiline)",
)
def long_text(run: Run, value: str) -> tuple[str]:
    """Holds a text of several lines."""
    return (value,)


@node("PrimitiveBoolean", "utils/primitive", (switch("value", False),), ("BOOLEAN",), title="Boolean")
def boolean(run: Run, value: bool) -> tuple[bool]:
    """Holds yes or no."""
    return (value,)
