"""The protocol of training objectives. OBJECTIVES in `sdjax.train.objectives.table` lists them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import ModelConfig
from sdjax.loading.trainable.control import ControlTraining
from sdjax.loading.trainable.image_prompt import ImagePromptTraining
from sdjax.nn.jax_settings import make_key
from sdjax.train.objectives.draws import keys_of
from sdjax.typing import Key, Keys, Params

SEED = 20221124  # of the noise for held-out sets; the same in every run

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]

# (whole, average, batch, keys, step) -> (loss, metrics). `whole` are the parameters of all networks that the objective
# reads; `average` the same with their moving average in place of what learns (a teacher), None in a run without one
Loss = Callable[[Params, Params | None, Batch, Keys, jax.Array], tuple[jax.Array, Metrics]]

# (whole, average, batch, first row) -> what a batch of a held-out set is measured by, with fixed draws
Losses = Callable[[Params, Params | None, Batch, jax.Array], Metrics]


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """The facts about a run that its objective may use.

    `cached`, `masks`, `hints` and `captions` have an entry for the training set and, if there is one, for the held-out
    set: whether it is a cache of latents, whether it has masks or hints, and how its batches hold captions ("ids" or
    "context"). `timesteps` is the number of timesteps that a held-out set is measured at. `average` says whether the
    run has a moving average. `control` is the ControlNet that learns, if one does, and `image_prompt` the IP-Adapter.
    """

    model: ModelConfig
    train: tuple[str, ...]
    cached: tuple[bool, ...] = (False,)
    masks: tuple[bool, ...] = (False,)
    hints: tuple[bool, ...] = (False,)
    captions: tuple[str, ...] = ("ids",)
    dtype: str = "float32"
    remat: str = "none"
    timesteps: int = 4
    average: bool = True
    control: ControlTraining | None = None
    image_prompt: ImagePromptTraining | None = None


class Objective(Protocol):
    """An objective of a run: a frozen dataclass that inherits from this class. Its fields are its settings.

    `kind` is its name in OBJECTIVES. `captions` says whether it reads captions. `without_effect` names the run's
    settings that it does not use, each with the reason.
    """

    captions: ClassVar[bool] = True
    without_effect: ClassVar[Mapping[str, str]] = {}

    @property
    def kind(self) -> str:
        """See above."""

    def check_parts(self, train: tuple[str, ...]) -> None:
        """Raises ValueError unless it can train these parts of a model."""

    def check_files(self) -> None:
        """Raises ValueError if a file is missing that `networks` would read."""
        return

    def check(self, facts: RunFacts) -> None:
        """Raises ConfigError for a model or data that it cannot use."""

    def reads(self, facts: RunFacts) -> tuple[str, ...]:
        """Returns which parts of the model its loss needs."""
        return facts.train

    def copies(self) -> Mapping[str, str]:
        """Returns the names under which the loss finds trained parts of the model as they were at the start."""
        return {}

    def networks(self, key: Key) -> tuple[Params, Params]:
        """Returns the parameters of networks outside the model: the trained ones and the fixed ones.

        Raises sdjax.convert.CheckpointError for a file that cannot be used.
        """
        return {}, {}

    def network_shapes(self) -> tuple[Params, Params]:
        """Returns the shapes of what `networks` returns, without reading files."""
        return {}, {}

    def make_loss(self, facts: RunFacts, empty: np.ndarray, axis: str | None = None) -> Loss:
        """Returns the loss.

        `empty` holds the tokens or the context of the empty caption; `axis` is the axis over which a `pmap` averages.
        """
        raise NotImplementedError

    def make_losses(self, facts: RunFacts, empty: np.ndarray) -> Losses:
        """Returns the losses that a held-out set is measured with: by default the loss's own numbers."""
        loss = self.make_loss(facts, empty)

        def losses(whole: Params, average: Params | None, batch: Batch, row: jax.Array) -> Metrics:
            return loss(whole, average, batch, held_out_keys(batch, row), jnp.int32(0))[1]

        return losses


def held_out_keys(batch: Batch, row: jax.Array) -> Keys:
    """Returns the keys [b] of a held-out batch's examples. The first example is number `row` of the set."""
    b = jax.tree.leaves(batch)[0].shape[0]
    return keys_of(make_key(SEED), jnp.int32(0), row + jnp.arange(b))
