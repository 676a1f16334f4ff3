"""Tables of a folder's pictures: metadata.jsonl, metadata.csv and metadata.parquet, as Hugging Face's imagefolder."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sdjax.storage.text_files import lines
from sdjax.train.data.captions import read_text
from sdjax.train.data.records import CAPTION_COLUMNS, SourceError

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILE_COLUMNS = ("file_name", "filename", "file", "image", "path")  # the first that exists is used
CONDITIONING = "conditioning_image"  # what diffusers' scripts call hints
FILES = ("file_name", "mask_file_name", "hint_file_name")


def listed(files: Iterable[str]) -> list[str]:
    """Returns those of a folder's files that are tables, in upper or lower case."""
    return [name for name in sorted(files) if name.casefold() in NAMES]


def rows(path: Path, relative: PurePosixPath) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, row) of a table: FILES relative to the root, with slashes.

    `place` is the row's place, for messages. Raises SourceError, naming the place, for an invalid row.
    """
    parse = {".jsonl": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows}[path.suffix.casefold()]
    for place, row in parse(path):
        row = _known_names(row)
        if not isinstance(row.get("file_name"), str) or not row["file_name"].strip():
            raise SourceError(
                f"{place} has no file_name; each row must name its picture there, as in Hugging Face's imagefolder"
            )
        for name in FILES:
            if row.get(name):
                row[name] = _inside(row[name], relative, place)
        yield place, row


def _known_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row with the picture's column called file_name, and known columns in lower case."""
    lower = {str(name).strip().casefold(): name for name in row}
    wanted = {known: lower[known] for known in (*FILES, *CAPTION_COLUMNS) if known in lower and known not in row}
    if "file_name" not in lower:
        other = next(
            (lower[name] for name in FILE_COLUMNS if name in lower and isinstance(row[lower[name]], str)), None
        )
        wanted |= {} if other is None else {"file_name": other}
    if "hint_file_name" not in lower and isinstance(row.get(name := lower.get(CONDITIONING, "")), str):
        wanted["hint_file_name"] = name
    renamed = {old: new for new, old in wanted.items()}
    return {renamed.get(name, name): value for name, value in row.items()}


def _inside(name: Any, relative: PurePosixPath, place: str) -> str:
    path = PurePosixPath(str(name).strip().replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0] or "\0" in str(name):
        raise SourceError(f"{place} names {name!r}, which does not lie in the folder of the metadata")
    return str(relative / path)


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines(read_text(path)), 1):
        if not line.strip():
            continue
        place = f"line {number} of {path}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{place} is no JSON ({error})") from None
        if not isinstance(row, dict):
            raise SourceError(f"{place} is no JSON object with a file_name")
        yield place, row


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = read_text(path)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    try:
        found = [(f"line {reader.line_num} of {path}", row) for row in reader]
    except csv.Error as error:
        raise SourceError(f"line {reader.line_num} of {path} is no CSV ({error})") from None
    extra = [place for place, row in found if None in row]
    if extra:
        raise SourceError(f"{extra[0]} has more fields than the first line names")
    names = [name for name in reader.fieldnames or () if name is not None]
    plain = {name for name in names if name.strip().casefold() in (*FILES, *FILE_COLUMNS)}
    numeric = {name for name in names if name not in plain and _all_numbers([row for _, row in found], name)}
    for place, row in found:
        values = {name: value for name, value in row.items() if value not in (None, "")}
        yield place, {name: float(value) if name in numeric else value for name, value in values.items()}


def _delimiter(text: str) -> str:
    """Returns the delimiter: a comma, or a semicolon or tab if only that splits the header into known columns."""
    head = lines(text)[0]
    known = {*FILES, *FILE_COLUMNS}
    return next(
        (mark for mark in ",;\t" if known & {name.strip(' "').casefold() for name in head.split(mark)}), ","
    )  # fmt: skip


def _all_numbers(found: list[dict[str, Any]], name: str) -> bool:
    """Returns whether every value of a column is a number. In CSV only the values show a column's type."""
    values = [row[name] for row in found if row[name] not in (None, "")]
    try:
        return bool([float(value) for value in values])
    except ValueError:
        return False


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise SourceError(
            f"{path} is read with pyarrow (pip install pyarrow); or write its rows as metadata.jsonl"
        ) from None
    try:
        found = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read as Parquet ({error})") from None
    for number, row in enumerate(found, 1):
        yield f"row {number} of {path}", {name: value for name, value in row.items() if value is not None}
