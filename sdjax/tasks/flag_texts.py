"""Texts of flags that name files and options, FILE,NAME=VALUE,..., and the one rule for commas and = in file names.

A comma starts an option only if a word and = follow. A file whose name has more of these stands in double quotes:
"cat,weight=1.png",weight=0.5.
"""

import re
from collections.abc import Collection

from sdjax.checks.arguments import shown

QUOTE = '"'
_PIECE = re.compile(r'(?:"[^"]*"|[^",])*')
_OPTION = re.compile(r"\s*([a-zA-Z_]+)=(.*)", re.DOTALL)


def read_options(what: str, text: str, names: Collection[str]) -> tuple[str, list[tuple[str, str]]]:
    """Returns what stands before the options of a text, and the options in order. Quotes are taken away.

    Raises ValueError, with `what` it is a text for, for unknown names, names without a value, a name that is given
    twice, and an open quote.
    """
    head, options = split_options(what, text, names)
    given = [name for name, _ in options]
    for name in given:
        if given.count(name) > 1:
            raise ValueError(f"{what} gives {name} twice: give it once; got {shown(text)}")
    return unquoted(head), options


def split_options(what: str, text: str, names: Collection[str] | None = None) -> tuple[str, list[tuple[str, str]]]:
    """As `read_options`, but names may stand several times, and the part before the options keeps its quotes.

    `names` None: all words are names.
    """
    if text.count(QUOTE) % 2:
        raise ValueError(f"{what} has a quote that is not closed: {shown(text)}")
    head, *rest = _pieces(text)
    options: list[tuple[str, str]] = []
    for piece in rest:
        found = _OPTION.fullmatch(piece)
        if found is None:  # the comma belongs to the name of a file
            if options:
                options[-1] = (options[-1][0], f"{options[-1][1]},{piece}")
            else:
                head = f"{head},{piece}"
            continue
        name, value = found.groups()
        if names is not None and name not in names:
            raise ValueError(
                f"{what} has no {shown(name)}; it has {', '.join(names)}. A file whose name has , and = stands in "
                "double quotes"
            )
        options.append((name, value))
    for name, value in options:
        if not unquoted(value):
            raise ValueError(f"{what} gives {name} no value: {shown(text)}")
    if not unquoted(head):
        raise ValueError(f"{what} names a file first; got {shown(text)}")
    return head, [(name, unquoted(value)) for name, value in options]


def split_at(text: str, mark: str) -> tuple[str, str, str]:
    """Returns the text before the first `mark` that is not in quotes, the mark, and the rest: as `str.partition`."""
    quoted = False
    for i, letter in enumerate(text):
        quoted ^= letter == QUOTE
        if letter == mark and not quoted:
            return text[:i], mark, text[i + 1 :]
    return text, "", ""


def unquoted(text: str) -> str:
    """Returns the text without double quotes and the space around it."""
    return text.replace(QUOTE, "").strip()


def quoted(text: str) -> str:
    """Returns the name of a file as it stands in a flag's text."""
    return f"{QUOTE}{text}{QUOTE}" if any(mark in text for mark in ",=") else text


def _pieces(text: str) -> list[str]:
    """Returns the parts of a text between the commas that are not in quotes."""
    out, at = [], 0
    while at <= len(text):
        found = _PIECE.match(text, at)
        assert found is not None
        out.append(found[0])
        at = found.end() + 1
    return out
