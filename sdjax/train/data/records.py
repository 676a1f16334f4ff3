"""Records of a training set: a picture's file, its captions and what else is known of it; and what gives them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from sdjax.train.data.table import Table

CAPTION_COLUMNS = ("text", "caption", "captions", "prompt")  # where captions are looked for unless a column is named


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
    shown, 0 if its head cannot be read. `_repeats` in it, where there is one, is how often an epoch shows a record.
    `notices` say what was passed over or taken in another way than it seems; `place(i)` says where record i lies.
    """

    name: str
    notices: Sequence[str]

    def place(self, i: int) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Record: ...

    @property
    def table(self) -> Table: ...


def place_of(source: Any, i: int) -> str:
    """Returns where a record lies, as its source says: a file, or a file and what of it."""
    place = getattr(source, "place", None)
    return f"record {i} of {source.name}" if place is None else place(i)


def captions_in(columns: Mapping[str, Any], column: str | None, place: str = "the record") -> tuple[str, ...]:
    """Returns the captions in a record's columns: one text, or a list of them in `column`, else in the first column
    of CAPTION_COLUMNS that there is. Raises SourceError, naming the `place`, for what is no text.
    """
    names = CAPTION_COLUMNS if column is None else (column,)
    value = next((columns[name] for name in names if _is_there(columns.get(name))), ())
    return as_captions(value, place)


def as_captions(value: str | bytes | Sequence[str | bytes | None], place: str = "the record") -> tuple[str, ...]:
    """Returns the texts that are not empty, without white space around them, of one or of several.

    Raises SourceError, naming the `place`, for anything that is no text.
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
