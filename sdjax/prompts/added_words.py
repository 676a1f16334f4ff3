"""A tokenizer with words that have tokens of their own: those whose vectors a training learned."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sdjax.prompts.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class AddedWords(Tokenizer):
    """A tokenizer that gives each word in `added` as many tokens as its number says, after its own last token.

    A word is found anywhere in a text, in capitals too, unless letters or digits go on where it begins or ends with
    one. If two words begin at the same place, the longer is taken.
    """

    added: tuple[tuple[str, int], ...] = ()

    @classmethod
    def to(cls, tokenizer: Tokenizer, words: Mapping[str, int]) -> "AddedWords":
        """Returns the tokenizer with these words, behind those that it has already."""
        before = tokenizer.added if isinstance(tokenizer, AddedWords) else ()
        return cls(tokenizer.files, (*before, *words.items()))

    @functools.cached_property
    def _ids(self) -> dict[str, list[int]]:
        first, ids = self.vocab_size, {}
        for word, count in self.added:
            ids[word.lower()] = list(range(first, first + count))
            first += count
        return ids

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        return _pattern(tuple(word for word, _ in self.added))

    def _pieces(self, text: str) -> Iterator[tuple[str, list[int]]]:
        """Yields texts without added words, and added words, each with its tokens."""
        at = 0
        for found in self._pattern.finditer(text):
            before = text[at : found.start()]
            yield before, super().encode(before)
            yield found.group(), self._ids[found.group().lower()]
            at = found.end()
        yield text[at:], super().encode(text[at:])

    def encode(self, text: str) -> list[int]:
        """Returns all tokens of the text, without start, end and padding."""
        return [token for _, tokens in self._pieces(text) for token in tokens]

    def units(self, text: str) -> list[list[int]]:
        """Returns the tokens of the text in groups that are never cut: all tokens of an added word, or one other."""
        return [
            unit for piece, ids in self._pieces(text)
            for unit in ([ids] if piece.lower() in self._ids else [[token] for token in ids])
        ]  # fmt: skip

    def runs(self, text: str) -> list[list[int]]:
        """Returns the tokens of the text, cut before and after every added word."""
        return [ids for _, ids in self._pieces(text)]

    def words(self, ids: Sequence[int]) -> list[str]:
        """Returns the text of each token (see `Tokenizer`)."""
        names = {token: word for word, tokens in self._ids.items() for token in tokens}
        return [names[one] + " " if one in names else super(AddedWords, self).words([one])[0] for one in ids]

    def cut(self, text: str, *, length: int = 77) -> str:
        """Returns the end of the text that does not fit into `length` tokens; empty if all fits."""
        room, left = length - 2, ""
        for piece, tokens in self._pieces(text):
            if left or room == 0:
                left += piece
            elif len(tokens) > room:
                left = piece if piece.lower() in self._ids else super().cut(piece, length=room + 2)
            room -= min(len(tokens), room)
        return left.strip()


def words_in(text: str, words: Iterable[str]) -> list[str]:
    """Returns the words that stand in a text, spelled as there, as `AddedWords` finds them."""
    several = tuple(words)
    return [found.group() for found in _pattern(several).finditer(text)] if several else []


def without_words(text: str, words: Iterable[str]) -> str:
    """Returns a text with x in the place of words that `words_in` finds."""
    several = tuple(words)
    return _pattern(several).sub("x", text) if several else text


@functools.lru_cache(maxsize=8)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(_whole, sorted(words, key=len, reverse=True))), re.IGNORECASE)


def _whole(word: str) -> str:
    before, after = (r"(?<!\w)" if word[0].isalnum() else ""), (r"(?!\w)" if word[-1].isalnum() else "")
    return before + re.escape(word) + after
