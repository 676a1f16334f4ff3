"""A byte pair vocabulary of CLIP's kind, learned from captions."""

import collections
import re
from collections.abc import Iterable

from tokenizers import pre_tokenizers

from sdjax.prompts.tokenizer import BOS, EOS, Tokenizer, clean, clip_files

_WORDS = re.compile(r"[^\W\d_]+|\d|[^\s\w]+")  # letters, one digit, or a run of neither, as CLIP splits plain text


def learn(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Returns a tokenizer with every byte and up to `vocab_size` tokens in all. The most frequent pairs merge first.

    The vocabulary has CLIP's layout: 256 bytes, the same bytes at the end of a word, the merges in order, start and
    end. If the captions have too few pairs, unused names fill it. Of equally frequent pairs the one that sorts first
    is merged first, so the result depends only on the captions. Source: Sennrich et al. 2016 (arXiv 1508.07909).

    Raises ValueError if `vocab_size` leaves no room for the bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    room = vocab_size - len(names) - 2
    if room < 0:
        raise ValueError(f"a byte pair vocabulary has at least {len(names) + 2} tokens, got vocab_size = {vocab_size}")
    counts = collections.Counter(word for caption in captions for word in _WORDS.findall(clean(caption)))
    if not all(word.isascii() for word in counts):
        raise ValueError("a vocabulary is learned from captions in ASCII")
    merges = _merges({(*word[:-1], word[-1] + "</w>"): count for word, count in counts.items()}, room)
    names += ["".join(pair) for pair in merges]
    names += [f"<|unused{i}|>" for i in range(room - len(merges))] + [BOS, EOS]
    return Tokenizer(tuple(clip_files({name: i for i, name in enumerate(names)}, merges).items()))


def _merges(words: dict[tuple[str, ...], int], limit: int) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {_merged(word, best): count for word, count in words.items()}
    return merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    i = 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out.append("".join(pair))
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)
