"""Textual inversion: training of embeddings of new words, and of adapters together with them."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jaxtyping import Array

from sdjax.adapters.attached import ROWS, table_of
from sdjax.config import ConfigError, ModelConfig
from sdjax.loading.trainable.protocol import Addition, by_path, lay_over
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.typing import Key, Params

MOST = 75  # vectors of a word: a prompt holds no more


@dataclasses.dataclass(frozen=True)
class WordsTraining(Addition):
    """Learns the vectors of new words. All other vectors of the text encoder stay as they are.

    - `words`: how many vectors each word has, such as {"<cat>": 2}.
    - `initial`: a text for each word, from whose tokens its vectors start, in turn, such as {"<cat>": "cat"}. Words
      without one start from random vectors with the mean and the spread of the others.

    Source: Gal et al. 2022 (arXiv 2208.01618).
    """

    words: dict[str, int] = dataclasses.field(default_factory=dict)
    initial: dict[str, Any] = dataclasses.field(default_factory=dict)
    kind: Literal["textual_inversion"] = "textual_inversion"

    def __post_init__(self) -> None:
        for word, count in self.words.items():
            if not isinstance(word, str) or not word.strip() or word != word.strip() or any(map(str.isspace, word)):
                raise ValueError(f"words are texts without spaces; got {word!r}")
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
                raise ValueError(f"a word has from 1 to {MOST} vectors; got {count!r} for {word!r}")
        if len({word.lower() for word in self.words}) != len(self.words):
            raise ValueError("words differ only in capitals, which the model does not see")
        for word, text in self.initial.items():
            if word not in self.words:
                raise ValueError(f"initial names {word!r}, which is none of words ({', '.join(self.words)})")
            if not isinstance(text, str | list | tuple) or not text:
                raise ValueError(f"initial holds texts; got {text!r} for {word!r}")

    @property
    def added(self) -> dict[str, int]:
        """The words."""
        return self.words

    def prepared(self, model: ModelConfig, tokenizer: Tokenizer | None = None) -> "WordsTraining":
        """Returns the same with the tokens of the initial texts. Raises ConfigError for a text without tokens."""
        if tokenizer is None:
            return self
        tokens = {
            word: tokenizer.encode(text) if isinstance(text, str) else text for word, text in self.initial.items()
        }
        for word, ids in tokens.items():
            if not ids:
                raise ConfigError(f"trainable.initial: the text for {word!r} has no tokens")
        return dataclasses.replace(self, initial=tokens)

    def init(self, base: Params, key: Key) -> Params:
        """Returns the vectors of all words, [n, d] below the path of the table. Raises ConfigError without any."""
        path = table_of(by_path(base))
        if not path or not self.words:
            missing = "trainable.words" if path else '"text" in train'
            raise ConfigError(f"textual inversion needs {missing}")
        table = jnp.asarray(by_path(base)[path], jnp.float32)
        rows = []
        for i, (word, count) in enumerate(self.words.items()):
            tokens = self.initial.get(word)
            if tokens is None or isinstance(tokens, str):  # a text: only the shape is asked for
                drawn = jax.random.normal(jax.random.fold_in(key, i), (count, table.shape[1]))
                rows.append(table.mean(0) + table.std(0) * drawn)
            else:
                rows.append(table[jnp.asarray([tokens[j % len(tokens)] for j in range(count)])])
        parent = tuple(path.split("/")[:-1])
        return unflatten_dict({(*parent, ROWS): jnp.concatenate(rows)})

    def assemble(self, trained: Params, frozen: Params) -> Params:
        """Returns `frozen` with the vectors beside the table (`sdjax.adapters.attached.Attached`)."""
        return lay_over(trained, frozen)

    def embeddings(self, trained: Params) -> dict[str, Array]:
        """Returns the vectors [n, d] of each word."""
        rows = next(leaf for path, leaf in by_path(trained).items() if path.endswith(f"/{ROWS}"))
        found, at = {}, 0
        for word, count in self.words.items():
            found[word] = rows[at : at + count]
            at += count
        return found
