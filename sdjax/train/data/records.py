"""Records of a training set: a picture's file, its captions and what else is known of it; and what gives them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from sdjax.train.data.table import Table

CAPTION_COLUMNS = ("text", "caption", "captions")  # where captions are looked for unless a column is named


class SourceError(ValueError):
    """A training set that cannot be used, and what to do about it, in one sentence."""


class Record(NamedTuple):
    """One record. `key` names it wherever its set lies, and random crops are drawn from it; `image` and `mask` (white
    where the loss counts) are the bytes of files, not decoded; `captions` are variants of which one is taken each time.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    columns: Mapping[str, Any]
    mask: bytes | None = None


class Source(Protocol):
    """Records by number: read from several threads at a time, and pickled into worker processes.

    Getting a record raises OSError if its file cannot be read. `table` holds a row of columns for each record: its
    metadata, `caption` (the first one), and `width` and `height` of the picture's own file in pixels, turned as it is
    shown, 0 if its head cannot be read.
    """

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Record: ...

    @property
    def table(self) -> Table: ...


def captions_in(columns: Mapping[str, Any], column: str | None) -> tuple[str, ...]:
    """Returns the captions in a record's columns: one text, or a list of them in `column`, else in the first column
    of CAPTION_COLUMNS that there is.
    """
    names = CAPTION_COLUMNS if column is None else (column,)
    value = next((columns[name] for name in names if columns.get(name) not in (None, "")), ())
    return as_captions(value)


def as_captions(value: str | bytes | Sequence[str | bytes]) -> tuple[str, ...]:
    """Returns the texts that are not empty, without white space around them, of one or of several."""
    texts = (value,) if isinstance(value, str | bytes) else tuple(value)
    texts = (text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in texts if text)
    return tuple(stripped for text in texts if (stripped := text.strip()))


def scalars(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns that a table can hold: numbers, truth values and texts."""
    return {name: value for name, value in columns.items() if isinstance(value, str | int | float | bool)}
