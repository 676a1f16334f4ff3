"""Emphasis: how the weights of a prompt change the encoded text. One rule for each tool, by name."""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from sdjax.prompts.chunks import Chunk, Encoder

Encoded: TypeAlias = Float[np.ndarray, "n d"]  # one chunk
Weights: TypeAlias = Float[np.ndarray, "n"]


class Parts(NamedTuple):
    """An encoded chunk and what the rules need besides.

    `without[i]` is the chunk encoded without the tokens of its i-th piece whose weight is below 1 (`lowered`), and
    `empty` is the encoded empty prompt. Only rules that ask for them get them.
    """

    encoded: Encoded
    weights: Weights
    empty: Encoded | None = None
    without: tuple[Encoded, ...] = ()
    lowered: tuple[float, ...] = ()


class Rule(NamedTuple):
    """A rule of emphasis."""

    apply: Callable[[Parts], Encoded]
    purpose: str
    needs_empty: bool = False
    needs_without: bool = False


def _original(parts: Parts) -> Encoded:
    """A1111's default: every vector is multiplied by its weight; then the mean over the chunk is restored."""
    scaled = parts.encoded * parts.weights[:, None]
    mean = scaled.mean(dtype=np.float64)
    return scaled * np.float32(parts.encoded.mean(dtype=np.float64) / mean) if mean else scaled


def _no_norm(parts: Parts) -> Encoded:
    """A1111's "No norm": every vector is multiplied by its weight."""
    return parts.encoded * parts.weights[:, None]


def _ignore(parts: Parts) -> Encoded:
    """A1111's "Ignore": brackets are removed and change nothing."""
    return parts.encoded


def _comfyui(parts: Parts) -> Encoded:
    """ComfyUI's: z0 + weight (z - z0), where z0 is the empty prompt."""
    assert parts.empty is not None
    moved = parts.empty + parts.weights[:, None] * (parts.encoded - parts.empty)
    return np.where(parts.weights[:, None] == 1, parts.encoded, moved)


def _compel(parts: Parts) -> Encoded:
    """Compel's: weights above 1 as in ComfyUI; a piece with a weight w below 1 is mixed with the prompt without it.

    The mixture is (z + sum of t_i z_i) / (1 + sum of t_i), where z_i is the chunk without piece i and t_i is
    tan((1 - w_i) pi / 2). So weight 0 is the prompt without the piece, and 1 is the prompt with it.
    """
    raised = _comfyui(parts._replace(weights=np.maximum(parts.weights, 1)))
    shares = np.array([1.0, *(math.tan((1 - max(w, 1e-9)) * math.pi / 2) for w in parts.lowered)])
    shares /= shares.sum()
    return np.einsum("i,ind->nd", shares, np.stack([raised, *parts.without])).astype(np.float32)


RULES = {
    "original": Rule(_original, "multiply, then restore the chunk's mean (A1111's default)"),
    "no_norm": Rule(_no_norm, "multiply (A1111's \"No norm\")"),
    "ignore": Rule(_ignore, "remove the brackets, change nothing (A1111's \"Ignore\")"),
    "none": Rule(_ignore, "read round brackets as text (A1111's \"None\")"),
    "comfyui": Rule(_comfyui, "move away from the empty prompt (ComfyUI)", needs_empty=True),
    "compel": Rule(
        _compel, "as comfyui; below 1 mix with the prompt without the word (compel)", needs_empty=True,
        needs_without=True,
    ),
}  # fmt: skip


def lowered(chunk: Chunk) -> list[tuple[float, int, int]]:
    """Returns the runs of tokens with one weight below 1: weight, first token, and the token behind the last."""
    out: list[tuple[float, int, int]] = []
    for at, weight in enumerate(chunk.weights):
        if weight >= 1:
            continue
        if out and out[-1][0] == weight and out[-1][2] == at:
            out[-1] = (weight, out[-1][1], at + 1)
        else:
            out.append((weight, at, at + 1))
    return out


def without(chunk: Chunk, start: int, end: int, encoder: Encoder) -> Chunk:
    """Returns the chunk without the tokens from `start` to `end`."""
    last = chunk.used + 1
    keep = [at for at in range(1, last) if not start <= at < end]
    return encoder.chunk([chunk.ids[at] for at in keep], [chunk.weights[at] for at in keep])
