"""What a node is: a function, and a table of its inputs and outputs. `NODES` has all of them by ComfyUI's names.

    @node("LatentFlip", "latent/transform", (link("samples", "LATENT"), choice("flip_method", FLIPS)), ("LATENT",))
    def flip(run: Run, samples: Latent, flip_method: str) -> tuple[Latent]:
        ...

To add a node, write such a function in a file of `sdjax.serve.comfy.nodes`. `/object_info`, the reading of workflow
files, the checks before a run and the table in the docs follow from it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

MOST_SEED = 2**64 - 1
LARGEST_SIDE = 16384
VALUES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")  # kinds that are set in the node itself


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of a node. `kind` is "INT", "FLOAT", "STRING", "BOOLEAN", "COMBO" (one of `choices`), or a link's type.

    `files`: the choices are the library's files of this kind, "input" pictures, or "latent" files. `after`: the editor
    shows a choice of what happens to the value after a run. `lazy_default` of an optional link is None.
    """

    name: str
    kind: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    files: str | None = None
    optional: bool = False
    multiline: bool = False
    after: bool = False
    upload: bool = False

    @property
    def is_value(self) -> bool:
        """Whether it is set in the node itself unless it is linked."""
        return self.kind in VALUES


@dataclasses.dataclass(frozen=True)
class Definition:
    """A node: its inputs, its outputs' types and names, and the function that computes them.

    The function gets the run (`sdjax.serve.comfy.running.Run`) and the inputs by name, and returns the outputs. Those
    of an `output` node are what the editor shows (`Shown`).
    """

    name: str
    category: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    names: tuple[str, ...]
    function: Callable[..., Any]
    title: str
    output: bool = False

    def input(self, name: str) -> Input | None:
        """Returns the input of this name, None if there is none."""
        return next((one for one in self.inputs if one.name == name), None)

    @property
    def purpose(self) -> str:
        """One sentence about the node: the first line of its function's docstring."""
        return (self.function.__doc__ or "").strip().split("\n")[0]


@dataclasses.dataclass(frozen=True)
class Shown:
    """What an output node shows: {"images": [{"filename", "subfolder", "type"}, ...]} or {"text": [...]}."""

    ui: dict[str, list[Any]]


NODES: dict[str, Definition] = {}


def node(
    name: str,
    category: str,
    inputs: Sequence[Input],
    outputs: Sequence[str] = (),
    names: Sequence[str] = (),
    *,
    title: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a decorator that adds a function to NODES. A node without outputs shows something."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        assert name not in NODES
        NODES[name] = Definition(
            name, category, tuple(inputs), tuple(outputs), tuple(names or outputs), function, title or name, not outputs
        )
        return function

    return add


def link(name: str, kind: str, *, optional: bool = False) -> Input:
    """Returns an input that comes from another node."""
    return Input(name, kind, optional=optional)


def whole(
    name: str, default: int, low: int = 0, high: int = LARGEST_SIDE, step: int = 1, *, optional: bool = False
) -> Input:
    """Returns an input of whole numbers."""
    return Input(name, "INT", default, low, high, step, optional=optional)


def seed(name: str) -> Input:
    """Returns an input of a seed."""
    return Input(name, "INT", 0, 0, MOST_SEED, 1, after=True)


def real(
    name: str, default: float, low: float = 0.0, high: float = 1.0, step: float = 0.01, *, optional: bool = False
) -> Input:
    """Returns an input of numbers."""
    return Input(name, "FLOAT", float(default), float(low), float(high), step, optional=optional)


def text(name: str, default: str = "", *, multiline: bool = False, optional: bool = False) -> Input:
    """Returns an input of text."""
    return Input(name, "STRING", default, multiline=multiline, optional=optional)


def switch(name: str, default: bool, *, optional: bool = False) -> Input:
    """Returns an input that is true or false."""
    return Input(name, "BOOLEAN", default, optional=optional)


def choice(name: str, choices: Sequence[str], default: str | None = None, *, optional: bool = False) -> Input:
    """Returns an input with a few values; the first one is the default."""
    return Input(name, "COMBO", default or choices[0], choices=tuple(choices), optional=optional)


def file(name: str, kind: str, *, extra: Sequence[str] = (), upload: bool = False, optional: bool = False) -> Input:
    """Returns an input that names a file. `kind` is of the library, or "input" or "latent"; `extra`: other values."""
    return Input(name, "COMBO", None, choices=tuple(extra), files=kind, upload=upload, optional=optional)


def converted(one: Input, value: Any) -> Any:
    """Returns a value of an input, converted and checked as ComfyUI does. Raises ValueError with a short reason.

    Files are not looked up here.
    """
    if one.kind == "INT":
        return _number(one, value, int)
    if one.kind == "FLOAT":
        return _number(one, value, float)
    if one.kind == "BOOLEAN":
        if isinstance(value, str):
            return value.strip().lower() in ("true", "1", "yes", "on", "enable")
        return bool(value)
    if not isinstance(value, str | int | float | bool) or (one.kind == "COMBO" and isinstance(value, bool)):
        raise ValueError(f"{one.name} is a text; got {type(value).__name__}")
    value = str(value)
    if one.kind == "COMBO" and one.files is None and value not in one.choices:
        raise ValueError(f"{one.name} has no {value[:80]!r}; it has {', '.join(one.choices[:60])}")
    return value


def _number(one: Input, value: Any, kind: type) -> int | float:
    try:
        if isinstance(value, bool | list | dict) or value is None:
            raise ValueError
        number = kind(value)
        if not math.isfinite(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{one.name} is {what}; got {str(value)[:40]!r}") from None
    if one.low is not None and number < one.low or one.high is not None and number > one.high:
        raise ValueError(f"{one.name} is from {one.low:g} to {one.high:g}; got {number}")
    return number
