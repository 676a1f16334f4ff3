"""A tokenizer with words that have tokens of their own, for training their embeddings."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from sdjax.prompts.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class AddedWords:
    """Gives each of `words` as many tokens as its number says, after the last token of the tokenizer.

    A word is found anywhere in a text, in capitals too, unless letters or digits go on where it begins or ends with
    one. If two words begin at the same place, the longer is taken.
    """

    tokenizer: Tokenizer
    words: Mapping[str, int]

    @functools.cached_property
    def ids(self) -> dict[str, list[int]]:
        """The tokens of each word, in lower case."""
        first, ids = self.tokenizer.vocab_size, {}
        for word, count in self.words.items():
            ids[word.lower()] = list(range(first, first + count))
            first += count
        return ids

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest = sorted(self.words, key=len, reverse=True)
        return re.compile("|".join(map(_whole, longest)), re.IGNORECASE)

    def encode(self, text: str) -> list[int]:
        """Returns all tokens of the text, without start, end and padding."""
        tokens, at = [], 0
        for found in self._pattern.finditer(text):
            tokens += [*self.tokenizer.encode(text[at : found.start()]), *self.ids[found.group().lower()]]
            at = found.end()
        return tokens + self.tokenizer.encode(text[at:])

    def __call__(
        self, texts: str | Sequence[str], *, length: int = 77, pad_token_id: int | None = None
    ) -> Int[np.ndarray, "b n"]:
        """Returns int32 [b, length]: start, tokens, end, padding (see `Tokenizer`)."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids = self.tokenizer([""] * len(texts), length=length, pad_token_id=pad_token_id)
        for row, text in zip(ids, texts):
            tokens = [*self.encode(text)[: length - 2], self.tokenizer.eos_token_id]
            row[1 : 1 + len(tokens)] = tokens
        return ids


def _whole(word: str) -> str:
    before, after = (r"(?<!\w)" if word[0].isalnum() else ""), (r"(?!\w)" if word[-1].isalnum() else "")
    return before + re.escape(word) + after
