"""The one exception of the converter, and how text out of a file is shown in it."""

import dataclasses
import os
from collections.abc import Sequence

DIFFERENCES = 20  # of a list of them that a message repeats
SHOWN = 80  # characters of a file's own text that a message repeats


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or is of another kind than expected. The message names the file and the reason."""

    def __init__(self, reason: str, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(reason if path is None else f"{printable(str(path), limit=4096)}: {reason}")


class OtherKindError(CheckpointError):
    """A file that is known to be something else than a checkpoint; `what` says so, and `advice` what to do."""

    def __init__(self, what: str, advice: str, reason: str, path: str | os.PathLike[str]) -> None:
        super().__init__(reason, path)
        self.what, self.advice = what, advice


@dataclasses.dataclass(frozen=True)
class FileKind:
    """The kind of a file and advice for its user, as two halves of one sentence."""

    what: str
    advice: str

    def __str__(self) -> str:
        return f"it is {self.what}; {self.advice}"


def printable(text: str, *, limit: int = SHOWN) -> str:
    """Returns `text` cut to `limit` characters, every unprintable one escaped: fit for a terminal whatever it holds."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def shown(value: object) -> str:
    """Returns how a message names a value read from a file: text in quotes, small numbers, else its kind alone.

    Nothing is followed into containers and no long integer is printed: a file can make both take for ever.
    """
    if type(value) is str:
        return f"'{printable(value)}'"
    if value is None or type(value) is bool or (type(value) is int and abs(value) < 2**64):
        return str(value)
    return f"a value of type {type(value).__name__}"


def listed(lines: Sequence[str], separator: str = "; ") -> str:
    """Returns the first of many differences, joined, and how many more there are."""
    more = len(lines) - DIFFERENCES
    return separator.join([*lines[:DIFFERENCES], *([f"and {more} more"] if more > 0 else [])])
