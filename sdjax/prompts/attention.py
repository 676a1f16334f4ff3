"""Emphasis in brackets: a prompt as pieces of text with weights, as AUTOMATIC1111's web UI and ComfyUI read it.

Both functions take any text. Brackets without a partner have the meaning that they have in these tools.
"""

import math
import re
from typing import NamedTuple

import numpy as np

ROUND = 1.1  # the factor of (word); [word] has its reciprocal
DEEPEST = 100  # nested brackets that ComfyUI's syntax resolves; deeper ones are text

_BREAK = re.compile(r"\bBREAK\b")
_TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]\\]?)"
    r"|:\s*(?P<number>[+-]?[.\d]+)\s*\)"
    r"|(?P<mark>[()\[\]])"
    r"|[^\\()\[\]:]+|:"
)


class Piece(NamedTuple):
    """Text with one weight. `BREAK` is the piece ("BREAK", -1)."""

    text: str
    weight: float

    @property
    def is_break(self) -> bool:
        """Whether it is the word BREAK, which ends a chunk."""
        return self.text == "BREAK" and self.weight == -1


def web_ui_pieces(text: str) -> list[Piece]:
    r"""Returns the pieces of a prompt in A1111's syntax.

    `(a)` multiplies by 1.1, `(a:1.3)` by 1.3, `[a]` divides by 1.1. Nested weights are multiplied. A backslash takes a
    bracket or a backslash as text. Brackets that are never closed reach to the end. BREAK is a piece of its own; inside
    brackets its weight is multiplied too, which makes it a word. `(a:1.2.3)`, which A1111 refuses, is text with 1.1.
    """
    texts: list[str] = []
    weights = np.ones(2 * len(text) + 1)
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def add(piece: str, weight: float = 1.0) -> None:
        weights[len(texts)] = weight
        texts.append(piece)

    def close(bracket: str, factor: float) -> None:
        with np.errstate(all="ignore"):  # a thousand nested (a:99) are infinite
            weights[opened[bracket].pop() : len(texts)] *= factor

    for token in _TOKEN.finditer(text):
        escaped, number, mark = token.group("escaped", "number", "mark")
        factor = None if number is None else _finite(number)
        if escaped is not None:
            add(escaped)
        elif mark is not None and mark in opened:
            opened[mark].append(len(texts))
        elif number is not None and opened["("]:
            if factor is None:
                add(token[0][:-1])
            close("(", ROUND if factor is None else factor)
        elif mark == ")" and opened["("]:
            close("(", ROUND)
        elif mark == "]" and opened["["]:
            close("[", 1 / ROUND)
        else:
            parts = _BREAK.split(token[0])
            for at, part in enumerate(parts):
                if at > 0:
                    add("BREAK", -1.0)
                    part = part.lstrip()
                add(part.rstrip() if at < len(parts) - 1 else part)
    for bracket, factor in ("(", ROUND), ("[", 1 / ROUND):
        while opened[bracket]:
            close(bracket, factor)
    return _merged(texts, weights[: len(texts)]) or [Piece("", 1.0)]


def _merged(texts: list[str], weights: np.ndarray) -> list[Piece]:
    """Returns pieces, with neighbours of equal weight joined."""
    starts = [0, *(np.flatnonzero(weights[1:] != weights[:-1]) + 1)] if texts else []
    return [
        Piece("".join(texts[start:end]), float(weights[start])) for start, end in zip(starts, [*starts[1:], len(texts)])
    ]


def comfyui_pieces(text: str) -> list[Piece]:
    r"""Returns the pieces of a prompt in ComfyUI's syntax; none for an empty prompt.

    `(a)` multiplies by 1.1; `(a:1.3)` sets the weight 1.3, also inside other brackets. `\(` and `\)` are text, and
    other backslashes stay. There are no square brackets and no BREAK.
    """
    out: list[Piece] = []
    # What is still to be read, the next one last: tokens, their weight, and the number of brackets around them
    work: list[tuple[list[str], float, int]] = [(re.findall(r"\\[()]|[()]|[^\\()]+|\\", text), 1.0, 0)]
    while work:
        tokens, weight, depth = work.pop()
        if depth > DEEPEST:
            out.append(Piece("".join(_unescaped(token) for token in tokens), weight))
            continue
        for item in reversed(_top_level(tokens)):
            work.append((*_inside(item, weight), depth + 1) if _is_group(item) else (item, weight, DEEPEST + 1))
    return out


def _top_level(tokens: list[str]) -> list[list[str]]:
    """Returns the tokens, cut before and after every outermost pair of brackets.

    A closing bracket without a partner makes the next opening one its partner, as in ComfyUI.
    """
    out: list[list[str]] = [[]]
    level = 0
    for token in tokens:
        if token == "(":
            if level == 0:
                out.append([])
            level += 1
        elif token == ")":
            level -= 1
        out[-1].append(token)
        if token == ")" and level == 0:
            out.append([])
    return [item for item in out if item]


def _is_group(tokens: list[str]) -> bool:
    return len(tokens) > 1 and tokens[0] == "(" and tokens[-1] == ")"


def _inside(group: list[str], weight: float) -> tuple[list[str], float]:
    """Returns what is inside a group's brackets, without its number, and its weight."""
    tokens = group[1:-1]
    before, colon, number = tokens[-1].rpartition(":") if tokens else ("", "", "")
    factor = _finite(number) if colon and (before or len(tokens) > 1) else None
    if factor is None:
        return tokens, weight * ROUND
    return [*tokens[:-1], before] if before else tokens[:-1], factor


def _unescaped(token: str) -> str:
    return token[1:] if len(token) == 2 and token[0] == "\\" else token


def _finite(text: str) -> float | None:
    """Returns the number that a text is, None if it is none or not finite."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
