"""Contexts: texts of any length, encoded chunk by chunk, with emphasis and clip skip."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from sdjax.nn.jax_settings import pinned
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline
from sdjax.prompts.chunks import Chunk, Encoder
from sdjax.prompts.emphasis import RULES, Parts, lowered, without
from sdjax.prompts.language import Language

Ids = tuple[int, ...]
Encoded = Float[np.ndarray, "_ d"]


class Text(NamedTuple):
    """The chunks of a text, its rule of emphasis, and the number of the text encoder's blocks that are used."""

    chunks: tuple[Chunk, ...]
    emphasis: str
    layers: int

    @property
    def is_weighted(self) -> bool:
        """Whether emphasis changes anything."""
        return any(weight != 1 for chunk in self.chunks for weight in chunk.weights)


def encoder_of(pipe: Pipeline) -> Encoder:
    """Returns what chunks must know of the model's text encoder."""
    return Encoder(pipe.tokenizer, pipe.config.text.max_length, pipe.config.text.pad_token_id)


def read_text(pipe: Pipeline, text: str, language: Language, layers: int | None = None) -> Text:
    """Returns a text as chunks. `layers` None is the model's own number of blocks."""
    layers = pipe.config.text.layers if layers is None else layers
    return Text(tuple(language.chunks(text, encoder_of(pipe))), language.rule, layers)


@pinned()
def encode_texts(
    pipe: Pipeline,
    texts: Sequence[Text],
    *,
    at_a_time: int,
    mesh: Mesh | None = None,
    parallel: placement.Parallel = "jit",
    exact: bool = False,
) -> list[Encoded]:
    """Returns the context of each text, float32 [chunks * length, width].

    The text encoder gets `at_a_time` chunks a call, so that one program encodes any number of them. `mesh`, whose size
    divides `at_a_time`, `parallel` and `exact` are as for `Pipeline.encode_prompt`.
    """
    encoder = encoder_of(pipe)
    empty = encoder.chunk([], [])
    rows: dict[int, dict[Ids, Encoded | None]] = {}
    for text in texts:
        needed = rows.setdefault(text.layers, {})
        for chunk in text.chunks:
            needed.update(dict.fromkeys(_needed(chunk, text.emphasis, encoder, empty)))
    for layers, needed in rows.items():
        encoded = _encode(pipe, list(needed), layers, at_a_time, mesh=mesh, parallel=parallel, exact=exact)
        needed.update(zip(needed, encoded, strict=True))
    return [
        np.concatenate([_emphasised(chunk, text.emphasis, encoder, empty, rows[text.layers]) for chunk in text.chunks])
        for text in texts
    ]


def _needed(chunk: Chunk, emphasis: str, encoder: Encoder, empty: Chunk) -> Iterable[Ids]:
    """Yields the rows of token ids that a chunk's context is computed from."""
    yield chunk.ids
    rule = RULES[emphasis]
    if all(weight == 1 for weight in chunk.weights):
        return
    if rule.needs_empty:
        yield empty.ids
    if rule.needs_without:
        for _, start, end in lowered(chunk):
            yield without(chunk, start, end, encoder).ids


def _emphasised(chunk: Chunk, emphasis: str, encoder: Encoder, empty: Chunk, rows: dict[Ids, Any]) -> Encoded:
    encoded: Encoded = rows[chunk.ids]
    if all(weight == 1 for weight in chunk.weights):
        return encoded
    rule, low = RULES[emphasis], lowered(chunk)
    parts = Parts(
        encoded,
        np.asarray(chunk.weights, np.float32),
        rows[empty.ids] if rule.needs_empty else None,
        tuple(rows[without(chunk, start, end, encoder).ids] for _, start, end in low) if rule.needs_without else (),
        tuple(weight for weight, _, _ in low),
    )
    return rule.apply(parts)


def _encode(
    pipe: Pipeline, rows: Sequence[Ids], layers: int, at_a_time: int, *, mesh: Mesh | None, **how: Any
) -> list[Encoded]:
    """Returns the encoded rows, [length, width] each."""
    out: list[Encoded] = []
    for start in range(0, len(rows), at_a_time):
        part = list(rows[start : start + at_a_time])
        ids = np.asarray(part + part[-1:] * (at_a_time - len(part)), np.int32)
        out += list(np.asarray(pipe.encode_tokens(ids, layers=layers, mesh=mesh, **how)))[: len(part)]
    return out
