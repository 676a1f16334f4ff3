r"""Prompts that change while a picture is sampled, and prompts that are joined, in A1111's syntax.

`[from:to:when]` replaces one text by another, `[a|b]` alternates, and `a AND b :0.5` are two prompts with weights. A
text that does not follow the grammar stays as it is:

    prompt     := (group | change | alternate | plain)*
    group      := "(" prompt ")" | "(" prompt ":" prompt ")" | "[" prompt "]"
    change     := "[" [prompt ":"] prompt ":" number "]"
    alternate  := "[" prompt ("|" prompt)+ "]"
    plain      := characters other than []():| and \, or a backslash with the character behind it

Around complete brackets, single [](): are text; a single | or a backslash at the end makes the whole text plain.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

Schedule: TypeAlias = list[tuple[int, str]]  # the last step of each text, and the text


class Change(NamedTuple):
    """`[before:after:when]`; `when` as typed."""

    before: "list[Part]"
    after: "list[Part]"
    when: str


class Alternate(NamedTuple):
    """`[a|b|c]`."""

    options: "list[list[Part]]"


Part: TypeAlias = "str | Change | Alternate"

_AND = re.compile(r"\bAND\b")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?|\d*\.\d+)")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_TOKEN = re.compile(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|\\]")
_CLOSES = {"]": "[", ")": "("}


class NotAPrompt(ValueError):
    """A text does not follow the grammar."""


def split_and(text: str) -> list[tuple[str, float]]:
    """Returns the prompts that AND joins, with their weights. A prompt's end `:number` is its weight, by default 1."""
    out = []
    for part in _AND.split(text):
        part = part.rstrip()
        before, colon, number = part.rpartition(":")
        weight = float(number) if colon and _NUMBER.fullmatch(number.strip()) else math.nan
        out.append((before.rstrip(), weight) if math.isfinite(weight) else (part, 1.0))
    return out


def schedule(text: str, steps: int, *, after: int | None = None, old: bool = False) -> Schedule:
    """Returns the texts of a run of `steps` steps, in order, each with its last step. The last one is `steps`.

    `when` is a step, or a share of the steps if it has a point. In a second pass (`after`: the number of steps of the
    first one), steps count from the first pass on, and shares from 1.0 on. `old`: numbers below 1 are shares, and a
    second pass counts like a first (A1111's setting "old prompt editing timelines").
    """
    try:
        read = _parse(text)
    except NotAPrompt:
        return [(steps, text)]
    first = 0 if after is None or old else after
    times = {id(change): _step(change.when, steps, first, old) for change in read.changes}
    ends = {steps, *(time for time in times.values() if time >= 1)}
    if read.alternates:
        ends.update(range(1, steps + 1))
    return [(end, _text(read.parts, end, times)) for end in sorted(ends)]


def text_at(texts: Schedule, call: int) -> str:
    """Returns the text for a call of the network, counted from 0. Calls behind the last step get the first text."""
    return next((text for end, text in texts if call <= end), texts[0][1])


def _step(when: str, steps: int, first: int, old: bool) -> int:
    """Returns the last step before a change."""
    value = float(when)
    if old:
        value = value * steps if value < 1 else value
    else:
        value = (value - (first > 0)) * steps if "." in when else value - first
    return int(max(min(value, steps), -1))


def _text(parts: Sequence[Part], step: int, times: dict[int, int]) -> str:
    """Returns the text at a step."""
    out, work = [], list(reversed(parts))
    while work:
        part = work.pop()
        if isinstance(part, str):
            out.append(part)
        elif isinstance(part, Change):
            work.extend(reversed(part.before if step <= times[id(part)] else part.after))
        else:
            work.extend(reversed(part.options[(step - 1) % len(part.options)]))
    return "".join(out)


def _parse(text: str) -> "_Reader":
    """Returns a reader with the parts of a text. Raises NotAPrompt."""
    reader = _Reader()
    for token in _TOKEN.findall(text):
        reader.read(token)
    reader.give_up()
    return reader


class _Reader:
    """The parts of a text read so far, and the brackets that are open in it."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.changes: list[Change] = []
        self.alternates: list[Alternate] = []
        self.opened: list[tuple[int, list[int]]] = []  # places of a bracket and of the : and | in it

    def read(self, token: str) -> None:
        """Adds a token."""
        if token == "\\" or (token == "|" and not self.opened):
            raise NotAPrompt
        if token in _CLOSES:
            return self.close(token)
        if token in _CLOSES.values():
            self.opened.append((len(self.parts), []))
        elif token in (":", "|") and self.opened:
            self.opened[-1][1].append(len(self.parts))
        self.parts.append(token)

    def close(self, token: str) -> None:
        """Adds a closing bracket."""
        start, marks = self.opened[-1] if self.opened else (0, [])
        separators = "".join(str(self.parts[mark]) for mark in marks)
        if not self.opened or self.parts[start] != _CLOSES[token] or not self._is_group(token, separators, marks):
            self.give_up()
            self.parts.append(token)
            return
        self.opened.pop()
        if token == ")" or not separators:
            self.parts.append(token)
            return
        cuts = [start, *marks, len(self.parts)]
        pieces = [self.parts[a + 1 : b] for a, b in zip(cuts, cuts[1:])]
        if separators[0] == "|":
            self.alternates.append(Alternate(pieces))
            self.parts[start:] = self.alternates[-1:]
        else:
            before = pieces[0] if len(pieces) == 3 else []
            self.changes.append(Change(before, pieces[-2], str(pieces[-1][0])))
            self.parts[start:] = self.changes[-1:]

    def give_up(self) -> None:
        """Makes all open brackets text. Raises NotAPrompt if one holds a |, which cannot be text."""
        if any(self.parts[mark] == "|" for _, marks in self.opened for mark in marks):
            raise NotAPrompt
        self.opened.clear()

    def _is_group(self, token: str, separators: str, marks: list[int]) -> bool:
        if token == ")":
            return separators in ("", ":")
        if separators in (":", "::"):
            last = self.parts[marks[-1] + 1 :]
            return len(last) == 1 and isinstance(last[0], str) and _WHEN.fullmatch(last[0]) is not None
        return set(separators) in (set(), {"|"})
