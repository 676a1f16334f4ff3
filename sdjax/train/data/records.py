"""Records of a training set (a picture's file, its captions and other columns), and the protocol of their sources."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from sdjax.train.data.table import Table

CAPTION_COLUMNS = ("text", "caption", "captions", "prompt")  # where captions are looked for, in this order


class SourceError(ValueError):
    """A training set cannot be used; the message says in one sentence why and what to do."""


class Record(NamedTuple):
    """One record of a training set.

    `key` names it and does not depend on where the set is stored; random crops are drawn from it. `image`, `mask`
    (white where the loss counts) and `hint` (what a ControlNet sees) are the bytes of files, not decoded. One of the
    `captions` is used each time.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    columns: Mapping[str, Any]
    mask: bytes | None = None
    hint: bytes | None = None


class Source(Protocol):
    """Records by number. A source is read from several threads and pickled into worker processes.

    Getting a record raises OSError if its file cannot be read. `table` has a row of columns for each record: its
    metadata, `caption` (the first one), and `width` and `height` of the picture in pixels, as it is shown, or 0 if its
    header cannot be read. The optional column `_repeats` is how often an epoch shows the record. `notices` reports what
    was skipped or read in an unexpected way. `place(i)` returns the place of record i, for messages.
    """

    name: str
    notices: Sequence[str]

    def place(self, i: int) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Record: ...

    @property
    def table(self) -> Table: ...


def place_of(source: Any, i: int) -> str:
    """Returns the place of a record, as its source names it: a file, or a file and the record's place in it."""
    place = getattr(source, "place", None)
    return f"record {i} of {source.name}" if place is None else place(i)


def captions_in(columns: Mapping[str, Any], column: str | None, place: str = "the record") -> tuple[str, ...]:
    """Returns the captions in a record's columns: the text or the list of texts in `column`.

    Without `column` it is the first of CAPTION_COLUMNS that exists. Raises SourceError, naming the `place`, if a
    caption is not text.
    """
    names = CAPTION_COLUMNS if column is None else (column,)
    value = next((columns[name] for name in names if _is_there(columns.get(name))), ())
    return as_captions(value, place)


def as_captions(value: str | bytes | Sequence[str | bytes | None], place: str = "the record") -> tuple[str, ...]:
    """Returns a text, or several, as a tuple, stripped of white space and without empty ones.

    Raises SourceError, naming the `place`, for anything that is not text.
    """
    texts = tuple(value) if isinstance(value, list | tuple) else (value,)
    stripped = (_text(text, place).strip() for text in texts if text is not None)
    return tuple(text for text in stripped if text)


def _is_there(value: Any) -> bool:
    return value is not None and not (isinstance(value, str | bytes | list | tuple) and not value)


def _text(value: Any, place: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise SourceError(f"{place} has a caption that is not UTF-8 text; save it as UTF-8") from None
    if not isinstance(value, str):
        shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:60]}..."
        raise SourceError(
            f"{place} has a caption that is no text but {shown} ({type(value).__name__}); give texts there, or name "
            "the column of the captions"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SourceError(f"{place} has a caption with half a character (a lone surrogate): {value!r:.60}") from None
    return value


def scalars(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns that a table can hold: numbers, truth values and texts."""
    return {name: value for name, value in columns.items() if isinstance(value, str | int | float | bool)}
