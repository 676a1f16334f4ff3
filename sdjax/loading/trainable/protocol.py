"""The protocol of what learns, and what all kinds share."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from sdjax.adapters.delta import Adapter
from sdjax.config import ModelConfig
from sdjax.prompts.tokenizer import Tokenizer
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


class Addition(Trainable):
    """What learns beside a base that stays as it is: adapters and embeddings."""

    @property
    def held(self) -> str | None:
        """A regular expression for the paths of trained parameters that the optimiser does not change, if any."""
        return None

    @property
    def added(self) -> Mapping[str, int]:
        """The words that it adds, each with its number of tokens (`sdjax.prompts.added_words.AddedWords`)."""
        return {}

    def prepared(self, model: ModelConfig, tokenizer: Tokenizer | None = None) -> "Addition":
        """Returns it with what `init` needs to know of the model. Without a tokenizer only shapes are asked for."""
        return self

    def fixed(self, base: Params) -> Params:
        """Returns the base."""
        return dict(base)

    def attach(self, trained: Params, frozen: Params) -> Params:
        """Returns the networks for the loss, which run with the patch `sdjax.adapters.attached.Attached`.

        They compute what `assemble`'s networks do. Changes may lie beside the parameters that they change.
        """
        return self.assemble(trained, frozen)

    def changes(self, trained: Params) -> Adapter:
        """Returns the changes of kernels, by their paths."""
        return {}

    def embeddings(self, trained: Params) -> dict[str, Array]:
        """Returns the vectors [n, d] of each word that it adds."""
        return {}

    def export(self, trained: Params) -> dict[str, Array]:
        """Returns every trained parameter by its path."""
        return by_path(trained)


def attach(trainable: Trainable, trained: Params, frozen: Params) -> Params:
    """Returns the networks for the loss."""
    how = trainable.attach if isinstance(trainable, Addition) else trainable.assemble
    return how(trained, frozen)


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
