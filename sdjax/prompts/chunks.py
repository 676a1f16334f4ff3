"""Chunks: a prompt of any length as rows of token ids that a text encoder takes, each with a weight for every token.

A chunk has the encoder's length, 77 for CLIP: start, up to 75 tokens, end, padding.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sdjax.prompts.attention import Piece
from sdjax.prompts.tokenizer import Tokenizer

BACKTRACK = 20  # tokens after a comma that move to the next chunk together (A1111's comma padding backtrack)
WHOLE = 8  # ComfyUI: pieces with fewer tokens are never cut


class Encoder(NamedTuple):
    """What chunks must know of a text encoder."""

    tokenizer: Tokenizer
    length: int = 77
    pad: int = 49407  # the token behind a chunk's end; v2 has 0

    @property
    def room(self) -> int:
        """Tokens of a chunk besides start and end."""
        return self.length - 2

    def chunk(self, tokens: Sequence[int], weights: Sequence[float]) -> "Chunk":
        """Returns a chunk of at most `room` tokens. Behind an end token that the text itself holds is padding."""
        end = self.tokenizer.eos_token_id
        ids = [self.tokenizer.bos_token_id, *tokens, end]
        ids += [self.pad] * (self.length - len(ids))
        if self.pad != end:
            first = ids.index(end) + 1
            ids[first:] = [self.pad] * (self.length - first)
        return Chunk(tuple(ids), (1.0, *weights, *[1.0] * (self.length - 1 - len(tokens))), len(tokens))


class Chunk(NamedTuple):
    """Token ids and weights, each `Encoder.length` long, and the number of tokens between start and end."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    used: int


def web_ui_chunks(pieces: Sequence[Piece], encoder: Encoder, *, backtrack: int = BACKTRACK) -> list[Chunk]:
    """Returns the chunks of pieces, at least one, cut as A1111 cuts them.

    A full chunk ends behind its last comma if at most `backtrack` tokens follow it; they move to the next chunk. BREAK
    ends a chunk. Each piece is tokenized apart. A word with several tokens of its own that does not fit moves whole.
    """
    comma = encoder.tokenizer.encode(",")
    out: list[Chunk] = []
    tokens: list[int] = []
    weights: list[float] = []
    last_comma: int | None = None

    def end_chunk(at: int) -> None:
        nonlocal last_comma
        out.append(encoder.chunk(tokens[:at], weights[:at]))
        del tokens[:at], weights[:at]
        last_comma = None

    for piece in pieces:
        if piece.is_break:
            end_chunk(len(tokens))
            continue
        for unit in encoder.tokenizer.units(piece.text):
            is_comma = unit == comma
            if len(tokens) == encoder.room:
                behind = encoder.room if last_comma is None else len(tokens) - last_comma
                moves = backtrack and last_comma is not None and not is_comma and behind <= backtrack
                end_chunk(last_comma + 1 if moves and last_comma is not None else len(tokens))
            if len(tokens) + len(unit) > encoder.room:
                end_chunk(len(tokens))
            if is_comma:
                last_comma = len(tokens)
            tokens += unit
            weights += [piece.weight] * len(unit)
    if tokens or not out:
        end_chunk(len(tokens))
    return out


def comfyui_chunks(pieces: Sequence[Piece], encoder: Encoder) -> list[Chunk]:
    """Returns the chunks of pieces, at least one, cut as ComfyUI cuts them.

    A piece of `WHOLE` tokens or more continues in the next chunk; a shorter one moves there whole. A word with tokens
    of its own is a piece.
    """
    out: list[Chunk] = []
    tokens: list[int] = []
    weights: list[float] = []

    def end_chunk() -> None:
        out.append(encoder.chunk(tokens, weights))
        tokens.clear()
        weights.clear()

    runs = [(ids, piece.weight) for piece in pieces for ids in encoder.tokenizer.runs(piece.text)]
    for left, weight in runs:
        is_cut = len(left) >= WHOLE or len(left) > encoder.room
        while len(left) > encoder.room - len(tokens):
            taken = encoder.room - len(tokens) if is_cut else 0
            tokens += left[:taken]
            weights += [weight] * taken
            left = left[taken:]
            end_chunk()
        tokens += left
        weights += [weight] * len(left)
    end_chunk()
    return out


def plain_chunk(text: str, encoder: Encoder) -> Chunk:
    """Returns the one chunk of a text without syntax. What does not fit is left out (`Tokenizer.cut` returns it)."""
    tokens = encoder.tokenizer.encode(text)[: encoder.room]
    return Chunk(tuple(encoder.tokenizer(text, length=encoder.length, pad_token_id=encoder.pad)[0].tolist()),
                 (1.0,) * encoder.length, len(tokens))  # fmt: skip
