"""Reads captions to judge a model by, from COCO's JSON, Parquet, JSON lines, tables and texts; gives each its seed."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdjax.checks.arguments import shown
from sdjax.errors import printable
from sdjax.storage import text_files

COLUMNS = ("caption", "prompt", "text")  # the first that exists is used
MAX_BYTES = 512 * 2**20  # of a file; COCO's captions of 2014 have 66 MB
MAX_TEXT = 10_000  # characters of one caption
MAX_COUNT = 10_000_000
SEED_BYTES = 6  # seeds below 2**48, which JSON readers keep exactly


class Caption(NamedTuple):
    """A caption: its number in the file, counted from 0, its text, and the seed of all pictures that are made of it."""

    number: int
    text: str
    seed: int


def read_captions(path: str | os.PathLike[str], column: str | None = None) -> list[str]:
    """Returns the captions of a file, in its order. The file's ending says how it is read:

    - .json: COCO's annotations; of each picture the caption with the lowest id, pictures in the file's order;
    - .jsonl, .ndjson: a text in each line, or an object with the caption in `column`;
    - .csv, .tsv: a table whose first line names the columns;
    - .parquet: a table (needs pyarrow);
    - any other: a caption in each line.

    `column` None is the first of COLUMNS that the file has, in upper or lower case. Empty lines of texts are ignored.

    Raises ValueError, naming the place, for a file that is something else, an empty caption, and one of more than
    10,000 characters.
    """
    path = Path(path)
    name, ending = f"the file of captions {printable(path)}", path.suffix.casefold()
    readers: dict[str, Callable[[Path, str, str | None], Iterator[tuple[str, Any]]]] = {
        ".json": _coco, ".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _table, ".tsv": _table,
        ".parquet": _parquet,
    }  # fmt: skip
    if column is not None and ending not in (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"):
        raise ValueError(f"{name} has no columns, so {shown(column)} cannot be chosen: leave the column out")
    texts: list[str] = []
    for place, text in readers.get(ending, _lines)(path, name, column):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{place} of {name} has no caption: expected a text; got {shown(text)}")
        if len(text) > MAX_TEXT:
            raise ValueError(f"{place} of {name} has {len(text)} characters; a caption has at most {MAX_TEXT}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{place} of {name} has half of a UTF-16 character, which is no text")
        if len(texts) == MAX_COUNT:
            raise ValueError(f"{name} has more than {MAX_COUNT} captions")
        texts.append(text.strip())
    if not texts:
        raise ValueError(f"{name} holds no caption")
    return texts


def choose(texts: Sequence[str], count: int | None = None, seed: int = 0) -> list[Caption]:
    """Returns `count` of the captions with their seeds, in their order; all of them for None.

    The choice depends on `seed` and the captions only. A smaller choice is a part of a larger one, so an evaluation can
    be extended. Raises ValueError if there are not as many.
    """
    found: list[tuple[bytes, Caption]] = []
    before: dict[str, int] = {}
    for number, text in enumerate(texts):
        digest = _digest(seed, before.get(text, 0), text)
        before[text] = before.get(text, 0) + 1
        found.append((digest[SEED_BYTES:], Caption(number, text, int.from_bytes(digest[:SEED_BYTES], "big"))))
    if count is None:
        return [caption for _, caption in found]
    if not 1 <= count <= len(found):
        raise ValueError(f"the number of captions is from 1 to {len(found)}, as many as there are; got {count}")
    return sorted(caption for _, caption in sorted(found)[:count])


def digest_of(captions: Iterable[Caption]) -> str:
    """Returns a SHA-256 of captions and their seeds: two evaluations with the same one can be compared in pairs."""
    digest = hashlib.sha256()
    for caption in captions:
        digest.update(json.dumps([caption.text, caption.seed]).encode())
    return digest.hexdigest()


def _digest(seed: int, before: int, text: str) -> bytes:
    """Returns the hash that decides seed and choice of a caption that came `before` times before in the file."""
    return hashlib.blake2b(json.dumps([seed, before, text]).encode(), digest_size=32).digest()


def _lines(path: Path, name: str, column: str | None) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text_files.lines(text_files.read(path, name, MAX_BYTES)), 1):
        if line.strip():
            yield f"line {number}", line


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON ({str(error) or 'nested too deeply'})") from None


def _coco(path: Path, name: str, column: str | None) -> Iterator[tuple[str, Any]]:
    found = _json(text_files.read(path, name, MAX_BYTES), name)
    entries = found.get("annotations") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise ValueError(
            f'{name} is not COCO\'s, {{"annotations": [{{"image_id": ..., "id": ..., "caption": ...}}, ...]}}; '
            "write other captions as JSON lines (.jsonl)"
        )
    first: dict[int | str, tuple[int, int, Any]] = {}
    for number, entry in enumerate(entries, 1):
        own = entry if isinstance(entry, dict) else {}
        image, order = own.get("image_id"), own.get("id", number)
        if not isinstance(image, int | str) or not isinstance(order, int):
            raise ValueError(f"annotation {number} of {name} has no image_id, or its id is no whole number")
        if image not in first or order < first[image][0]:
            first[image] = order, number, own.get("caption")
    for _, number, text in first.values():
        yield f"annotation {number}", text


def _json_lines(path: Path, name: str, column: str | None) -> Iterator[tuple[str, Any]]:
    for place, line in _lines(path, name, None):
        entry = _json(line, f"{place} of {name}")
        if isinstance(entry, dict):
            yield place, entry.get(_column(entry, column, f"{place} of {name}"))
        elif column is not None:
            raise ValueError(f"{place} of {name} is no object, so it has no {shown(column)}")
        else:
            yield place, entry


def _table(path: Path, name: str, column: str | None) -> Iterator[tuple[str, Any]]:
    text = text_files.read(path, name, MAX_BYTES)
    tabs = path.suffix.casefold() == ".tsv"
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), dialect="excel-tab" if tabs else "excel")
        chosen = _column(dict.fromkeys(rows.fieldnames or ()), column, f"the first line of {name}")
        for row in rows:
            yield f"line {rows.line_num}", row[chosen]
    except csv.Error as error:
        raise ValueError(f"{name} is no table ({error})") from None


def _parquet(path: Path, name: str, column: str | None) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{name} is read with pyarrow (pip install pyarrow); or write it as JSON lines") from None
    try:
        with parquet.ParquetFile(path) as file:
            chosen = _column(dict.fromkeys(file.schema_arrow.names), column, name)
            number, total = 0, 0
            for part in file.iter_batches(1024, columns=[chosen]):
                total += part.nbytes
                if total > MAX_BYTES:
                    raise ValueError(f"{name} has more than {MAX_BYTES} bytes of captions")
                for text in part.column(0).to_pylist():
                    number += 1
                    yield f"row {number}", text
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{name} cannot be read as Parquet ({error})") from None


def _column(row: Mapping[str, Any], column: str | None, place: str) -> str:
    """Returns the name of the column of captions. Raises ValueError if there is none."""
    lower = {str(name).strip().casefold(): name for name in reversed(list(row))}
    for wanted in COLUMNS if column is None else (column,):
        if wanted in row:
            return wanted
        if wanted.casefold() in lower:
            return lower[wanted.casefold()]
    what = " or ".join(COLUMNS) if column is None else shown(column)
    raise ValueError(f"{place} has no {what}; it has {', '.join(shown(name) for name in list(row)[:20]) or 'nothing'}")
