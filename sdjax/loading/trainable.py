"""What of a model a training changes, and the whole model that follows from it.

It lives in loading because both need it: a training writes what learned into its folder, and `sdjax.load` makes a model
of that. TRAINABLES is the table of kinds.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from sdjax.config import ConfigError
from sdjax.description import build
from sdjax.typing import Key, Params


class Trainable(Protocol):
    """Which parameters learn. A frozen dataclass whose fields are its settings.

    The base is a tree of the parts that a run trains (`train`), such as {"unet": ...}. What learns is a tree of its
    own; optimiser, moving average and checkpoints hold that tree and nothing else.
    """

    @property
    def kind(self) -> str:
        """Its name in TRAINABLES."""

    def init(self, base: Params, key: Key) -> Params:
        """Returns the parameters that learn, before the first step. Raises ConfigError if there are none."""

    def fixed(self, base: Params) -> Params:
        """Returns the parameters of the base that `assemble` needs and no step changes."""

    def assemble(self, trained: Params, frozen: Params) -> Params:
        """Returns the whole networks. It is differentiated with respect to `trained`.

        `frozen` holds at least what `fixed` returned. Entries of both trees that belong to other networks stay as they
        are.
        """

    def export(self, trained: Params) -> dict[str, Array]:
        """Returns what a file holds that keeps the trained parameters alone: tensors by name."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """All parameters of the parts."""

    kind: Literal["parts"] = "parts"

    def init(self, base: Params, key: Key) -> Params:
        """Returns the base."""
        return dict(base)

    def fixed(self, base: Params) -> Params:
        """Returns nothing."""
        return {}

    def assemble(self, trained: Params, frozen: Params) -> Params:
        """Returns both."""
        return lay_over(trained, frozen)

    def export(self, trained: Params) -> dict[str, Array]:
        """Returns every parameter by its path."""
        return by_path(trained)


@dataclasses.dataclass(frozen=True)
class Leaves:
    """Only the parameters in whose path the regular expression `pattern` is found.

    A path is "unet/up_blocks_0/attentions_0/transformer_blocks_0/attn2/to_k/kernel".
    """

    pattern: str
    kind: Literal["leaves"] = "leaves"

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern is a regular expression; {self.pattern!r} is none ({error})") from None

    def init(self, base: Params, key: Key) -> Params:
        """Returns the parameters that match."""
        found = self._select(base, True)
        if not found:
            raise ConfigError(
                f"trainable.pattern {self.pattern!r} is found in no parameter's path; one is {min(by_path(base))}"
            )
        return found

    def fixed(self, base: Params) -> Params:
        """Returns the parameters that do not match."""
        return self._select(base, False)

    def assemble(self, trained: Params, frozen: Params) -> Params:
        """Returns `frozen` with the trained parameters in their places."""
        return lay_over(trained, frozen)

    def export(self, trained: Params) -> dict[str, Array]:
        """Returns every trained parameter by its path."""
        return by_path(trained)

    def _select(self, base: Params, matching: bool) -> Params:
        kept = {path: leaf for path, leaf in by_path(base).items() if bool(re.search(self.pattern, path)) == matching}
        return unflatten_dict({tuple(path.split("/")): leaf for path, leaf in kept.items()})


TRAINABLES: dict[str, type[Trainable]] = {"parts": Parts, "leaves": Leaves}


def trainable_of(settings: Mapping[str, Any]) -> Trainable:
    """Returns what a run's settings describe; a run without them trains parts. Raises ConfigError for what is none."""
    kind = settings.get("kind", "parts")
    if kind not in TRAINABLES:
        raise ConfigError(f"trainable.kind is one of {', '.join(TRAINABLES)}; got {kind!r}")
    return build(TRAINABLES[kind], settings, "trainable")


def lay_over(upper: Params, lower: Params) -> dict[str, Any]:
    """Returns the leaves of two trees as one tree; where both have a leaf, the upper one's."""
    out = dict(lower)
    for name, node in upper.items():
        below = out.get(name)
        out[name] = lay_over(node, below) if isinstance(node, Mapping) and isinstance(below, Mapping) else node
    return out


def by_path(tree: Params) -> dict[str, jax.Array]:
    """Returns a tree's leaves by their paths, such as "unet/conv_in/kernel"."""
    return flatten_dict(tree, sep="/")
