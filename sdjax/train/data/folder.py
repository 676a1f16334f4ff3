"""A folder of pictures with captions, as Hugging Face's imagefolder and the community's trainers lay them out."""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from sdjax.pictures.folder import MASKS, SUFFIXES, natural
from sdjax.train.data.records import Record, SourceError, as_captions, captions_in, scalars
from sdjax.train.data.table import Table, index_path, kept, picture_size

METADATA = ("metadata.jsonl", "metadata.csv")
_FILES = ("file_name", "mask_file_name")


class Folder:
    """The pictures of a folder and its subfolders, sorted by name.

    Where a folder holds metadata.jsonl or metadata.csv, its rows name the pictures (`file_name`, relative to it), their
    captions and other columns, and `mask_file_name`; pictures that no row names are left out. Elsewhere every JPEG, PNG
    and WebP file is taken, with the lines of `NAME.txt` beside it as captions, and `NAME_mask.png` or `NAME.mask.png`
    as mask.

    Args:
        caption: the column that holds the captions, by default text, caption or captions.
        default: the caption of pictures that have none; without it, they are an error.
        index_folder: where the table is kept, by default in the folder itself.
    """

    def __init__(
        self, path: str | os.PathLike, *, caption: str | None = None, default: str | None = None,
        index_folder: str | os.PathLike | None = None,
    ):  # fmt: skip
        self.path = Path(path)
        self.name = str(path)
        if not self.path.is_dir():
            raise SourceError(f"{path} is no folder of pictures: there is no folder of that name")
        self.rows = sorted(_rows(self.path), key=lambda row: natural(row["file_name"]))
        if not self.rows:
            raise SourceError(
                f"{path} holds no pictures: neither a metadata.jsonl or metadata.csv with rows, nor JPEG, PNG or WebP "
                "files"
            )
        self.captions = [captions_in(row, caption) for row in self.rows]
        self._fill_captions(caption, default)
        self.index_folder = index_folder
        self.table = self._index()

    def _fill_captions(self, caption: str | None, default: str | None) -> None:
        without = [row["file_name"] for row, captions in zip(self.rows, self.captions) if not captions]
        if without and default is None:
            where = "in a column text, caption or captions" if caption is None else f"in the column {caption!r}"
            raise SourceError(
                f"{len(without)} of {len(self.rows)} pictures in {self.path} have no caption ({', '.join(without[:3])}"
                f"{', ...' if len(without) > 3 else ''}): give them {where} or a NAME.txt beside each, or set a default"
            )
        if default is not None:
            self.captions = [captions or (default,) for captions in self.captions]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Record:
        row = self.rows[i]
        image = (self.path / row["file_name"]).read_bytes()
        mask = (self.path / row["mask_file_name"]).read_bytes() if row.get("mask_file_name") else None
        columns = {name: value for name, value in row.items() if name not in _FILES}
        return Record(row["file_name"], image, self.captions[i], columns, mask)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "table": None}  # worker processes only read records

    def _index(self) -> Table:
        paths = [self.path / row["file_name"] for row in self.rows]
        with ThreadPoolExecutor(16) as pool:
            stamp = [list(stat) for stat in pool.map(_stat, paths)]
        # The metadata may have changed and the pictures not: only their sizes, which take long, are kept
        names = [row["file_name"] for row in self.rows]
        sizes = kept(index_path(self.path, self.index_folder), [names, stamp], lambda: _sizes(paths))
        width, height = (sizes[name] for name in ("width", "height"))
        rows = []
        for row, captions, w, h in zip(self.rows, self.captions, width, height):
            rows.append({**scalars(row), "caption": captions[0], "width": w, "height": h})
        return Table.from_rows(rows)


def _sizes(paths: list[Path]) -> Table:
    from tqdm.auto import tqdm

    def size(path: Path) -> tuple[int, int]:
        try:
            with open(path, "rb") as file:
                return picture_size(file)
        except OSError:  # counted when it is read
            return 0, 0

    with ThreadPoolExecutor(16) as pool:
        found = list(tqdm(pool.map(size, paths), "measuring", len(paths), delay=2, unit=" pictures", leave=False))
    return Table.from_rows([{"width": w, "height": h} for w, h in found])


def _stat(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _rows(root: Path) -> Iterator[dict[str, Any]]:
    """Yields a row for each picture; its `file_name` is relative to the root, with slashes."""
    for folder, subfolders, files in os.walk(root, followlinks=True):
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        listed = [name for name in METADATA if name in files]
        if len(listed) > 1:
            raise SourceError(f"{folder} holds both {listed[0]} and {listed[1]}; one of them has to go")
        if listed:
            subfolders.clear()  # the rows name what lies below too
            yield from _metadata(Path(folder) / listed[0], relative)
        else:
            yield from _beside(Path(folder), relative, set(files))


def _beside(folder: Path, relative: PurePosixPath, files: set[str]) -> Iterator[dict[str, Any]]:
    pictures = {name for name in files if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")}
    masks: dict[str, str] = {}
    stems = {os.path.splitext(name)[0] for name in pictures}
    for name in sorted(pictures):
        stem = os.path.splitext(name)[0]
        of = next((stem.removesuffix(mark) for mark in MASKS if stem.endswith(mark)), None)
        if of in stems:
            masks[of] = name
    for name in pictures - set(masks.values()):
        stem = os.path.splitext(name)[0]
        row: dict[str, Any] = {"file_name": str(relative / name)}
        if f"{stem}.txt" in files:
            row["captions"] = list(as_captions(_text(folder / f"{stem}.txt").splitlines()))
        if stem in masks:
            row["mask_file_name"] = str(relative / masks[stem])
        yield row


def _metadata(path: Path, relative: PurePosixPath) -> Iterator[dict[str, Any]]:
    parse = _json_lines if path.suffix == ".jsonl" else _csv_rows
    for number, row in parse(path):
        if not isinstance(row.get("file_name"), str) or not row["file_name"]:
            raise SourceError(
                f"line {number} of {path} has no file_name; each row names its picture there, as Hugging Face's "
                "imagefolder has it"
            )
        for name in _FILES:
            if row.get(name):
                row[name] = _inside(row[name], relative, f"line {number} of {path}")
        yield row


def _inside(name: Any, relative: PurePosixPath, where: str) -> str:
    path = PurePosixPath(str(name).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise SourceError(f"{where} names {name!r}, which does not lie in the folder of the metadata")
    return str(relative / path)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"line {number} of {path} is no JSON ({error})") from None
        if not isinstance(row, dict):
            raise SourceError(f"line {number} of {path} is no JSON object with a file_name")
        yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(_text(path).splitlines(keepends=True))
    try:
        lines = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise SourceError(f"line {reader.line_num} of {path} is no CSV ({error})") from None
    extra = [number for number, row in lines if None in row]
    if extra:
        raise SourceError(f"line {extra[0]} of {path} has more fields than the first line names")
    numeric = {name for name in reader.fieldnames or () if name not in _FILES and _all_numbers(lines, name)}
    for number, row in lines:
        values = {name: value for name, value in row.items() if value not in (None, "")}
        yield number, {name: float(value) if name in numeric else value for name, value in values.items()}


def _all_numbers(lines: list[tuple[int, Mapping[str, Any]]], name: str) -> bool:
    """Whether every value of a column is a number: in CSV only its values say what a column is."""
    values = [row[name] for _, row in lines if row[name] not in (None, "")]
    try:
        return bool([float(value) for value in values])
    except ValueError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from None
