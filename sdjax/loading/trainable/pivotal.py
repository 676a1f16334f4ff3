"""Pivotal tuning: embeddings of new words and an adapter learn together."""

import dataclasses
from typing import Literal

from jaxtyping import Array

from sdjax.adapters.delta import Adapter
from sdjax.config import ModelConfig
from sdjax.description import kinds
from sdjax.loading.trainable.changes import Changes
from sdjax.loading.trainable.low_rank import LoRATraining
from sdjax.loading.trainable.products import LoHaTraining, LoKrTraining, OFTTraining
from sdjax.loading.trainable.protocol import Addition, lay_over
from sdjax.loading.trainable.words import WordsTraining
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.typing import Key, Params

ADAPTERS: dict[str, type[Changes]] = {
    "lora": LoRATraining, "loha": LoHaTraining, "lokr": LoKrTraining, "oft": OFTTraining,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PivotalTraining(Addition):
    """Both `words` (textual inversion) and an `adapter` learn, each at its own rate if `optim` says so."""

    words: WordsTraining = WordsTraining()
    adapter: Changes = kinds(LoRATraining(), ADAPTERS)
    kind: Literal["pivotal"] = "pivotal"

    @property
    def held(self) -> str | None:
        """See Addition."""
        return self.adapter.held

    @property
    def added(self) -> dict[str, int]:
        """The words."""
        return self.words.added

    def prepared(self, model: ModelConfig, tokenizer: Tokenizer | None = None) -> "PivotalTraining":
        """See Addition."""
        return dataclasses.replace(self, words=self.words.prepared(model, tokenizer))

    def init(self, base: Params, key: Key) -> Params:
        """Returns the vectors and the factors."""
        return lay_over(self.words.init(base, key), self.adapter.init(base, key))

    def assemble(self, trained: Params, frozen: Params) -> Params:
        """Returns the networks with the changes merged, and with the vectors beside the table."""
        return self.adapter.assemble(trained, frozen)

    def attach(self, trained: Params, frozen: Params) -> Params:
        """See Addition."""
        return self.adapter.attach(trained, frozen)

    def changes(self, trained: Params) -> Adapter:
        """Returns the changes."""
        return self.adapter.changes(trained)

    def embeddings(self, trained: Params) -> dict[str, Array]:
        """Returns the vectors of each word."""
        return self.words.embeddings(trained)
