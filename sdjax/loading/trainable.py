"""Trainables: which parameters of a model a training changes, and how the whole model is assembled from them.

It is in `loading` because training and `sdjax.load` both need it: a training writes the learned parameters into its
folder, and `sdjax.load` makes a model from them. TRAINABLES is the table of kinds.
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
    """Chooses the parameters that learn. A frozen dataclass whose fields are its settings.

    The base is a tree of the parts that a run trains (`train`), such as {"unet": ...}. The learned parameters are a
    separate tree. Optimiser, moving average and checkpoints contain only this tree.
    """

    @property
    def kind(self) -> str:
        """Its name in TRAINABLES."""

    def init(self, base: Params, key: Key) -> Params:
        """Returns the parameters that learn, before the first step. Raises ConfigError if there are none."""

    def fixed(self, base: Params) -> Params:
        """Returns the parameters of the base that `assemble` needs and training does not change."""

    def assemble(self, trained: Params, frozen: Params) -> Params:
        """Returns the whole networks. Training differentiates it with respect to `trained`.

        `frozen` has at least the parameters that `fixed` returned. Entries of other networks, in either tree, are
        passed through.
        """

    def export(self, trained: Params) -> dict[str, Array]:
        """Returns the tensors, by name, of a file with only the trained parameters."""


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
    """Only the parameters whose path matches the regular expression `pattern` somewhere.

    A path looks like "unet/up_blocks_0/attentions_0/transformer_blocks_0/attn2/to_k/kernel".
    """

    pattern: str
    kind: Literal["leaves"] = "leaves"

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern must be a regular expression; got {self.pattern!r} ({error})") from None

    def init(self, base: Params, key: Key) -> Params:
        """Returns the parameters that match."""
        found = self._select(base, True)
        if not found:
            raise ConfigError(
                f"trainable.pattern {self.pattern!r} matches no parameter's path, such as {min(by_path(base))}"
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
    """Returns the trainable of a run's settings (default: `Parts`). Raises ConfigError if they describe none."""
    kind = settings.get("kind", "parts")
    if kind not in TRAINABLES:
        raise ConfigError(f"trainable.kind is one of {', '.join(TRAINABLES)}; got {kind!r}")
    return build(TRAINABLES[kind], settings, "trainable")


def lay_over(upper: Params, lower: Params) -> dict[str, Any]:
    """Returns the leaves of two trees as one tree. If both have a leaf, `upper` wins."""
    out = dict(lower)
    for name, node in upper.items():
        below = out.get(name)
        out[name] = lay_over(node, below) if isinstance(node, Mapping) and isinstance(below, Mapping) else node
    return out


def by_path(tree: Params) -> dict[str, jax.Array]:
    """Returns a tree's leaves by their paths, such as "unet/conv_in/kernel"."""
    return flatten_dict(tree, sep="/")
