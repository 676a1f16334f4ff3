"""Opens the training set and the held-out set of a run, once: first the parts that need no model."""

import dataclasses
import functools
from collections.abc import Callable

from sdjax.config import ModelConfig
from sdjax.train import training_set
from sdjax.train.config import DataConfig, TrainConfig
from sdjax.train.data.pictures import Part


@dataclasses.dataclass(frozen=True)
class RunSet:
    """One of the sets: its configuration, batch size, whether captions are needed, and a function for the model."""

    config: DataConfig
    batch_size: int
    captions: bool
    describe: Callable[[], ModelConfig]

    @functools.cached_property
    def opened(self) -> training_set.Latents | list[Part]:
        """The opened sources or latents. Raises as `training_set.open_parts`."""
        return training_set.open_parts(self.config, self.batch_size, captions=self.captions)

    @functools.cached_property
    def examples(self) -> training_set.Examples:
        """The set's examples, in the sizes of the model. Raises as `training_set.make_examples`."""
        return training_set.make_examples(self.config, self.opened, self.describe(), self.batch_size)

    @property
    def text(self) -> str:
        """How batches hold captions: "ids" or "context"."""
        return training_set.text_of(self.examples)


@dataclasses.dataclass(frozen=True)
class RunData:
    """Both sets of a run. `describe` returns the model. The held-out set has the same batches in every run."""

    config: TrainConfig
    describe: Callable[[], ModelConfig]

    @functools.cached_property
    def training(self) -> RunSet:
        """The training set."""
        return self._set(self.config.data)

    @functools.cached_property
    def held_out(self) -> RunSet | None:
        """The set that the loss is measured on; None if there is none."""
        data = self.config.validation.data
        return None if data is None else self._set(training_set.held_out(data))

    def open(self) -> None:
        """Opens both. Raises as `training_set.open_parts`."""
        for data in self.training, self.held_out:
            if data is not None:
                _ = data.opened

    def _set(self, data: DataConfig) -> RunSet:
        return RunSet(data, self.config.batch_size, self.config.minimised.captions, self.describe)
