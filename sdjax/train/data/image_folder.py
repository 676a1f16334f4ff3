"""A folder of pictures with captions, as Hugging Face's imagefolder and the community's trainers lay them out."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sdjax.pictures.listing import MASKS, SUFFIXES, natural
from sdjax.pictures.samples import MAX_BYTES
from sdjax.storage import buckets
from sdjax.train.data import captions as beside
from sdjax.train.data import metadata
from sdjax.train.data.pictures import REPEATS
from sdjax.train.data.records import Record, SourceError, as_captions, captions_in, scalars
from sdjax.train.data.table import Table, index_path, kept, picture_size
from sdjax.train.data.walk import Visited, walk

MARKED = {"mask_file_name": MASKS, "hint_file_name": ("_hint", ".hint")}  # column -> ends of the files' names


class _Stat(NamedTuple):
    """Identifies a file and shows whether it changed; zeros if it does not exist."""

    size: int = 0
    changed: int = 0
    device: int = 0
    number: int = 0

    @property
    def identity(self) -> tuple[int, int] | None:
        """The file's identity, the same under all its names; None if the file system does not say."""
        return (self.device, self.number) if self.number else None


class _Found(NamedTuple):
    """A picture: its row, its captions, and the place of its row if a table names it."""

    row: dict[str, Any]
    captions: tuple[str, ...]
    table: str | None = None
    place: str | None = None


class Folder:
    """The pictures of a folder and its subfolders, sorted by name.

    If a folder has metadata.jsonl, .csv or .parquet, its rows name the pictures (`file_name`, relative to the folder),
    their captions and other columns, `mask_file_name` and `hint_file_name`. Pictures without a row are left out. In
    other folders every JPEG, PNG and WebP file is used. Its captions are the lines of `NAME.txt` beside it (see
    `captions.ENDINGS`), its mask is `NAME_mask.png` or `NAME.mask.png`, its hint for a ControlNet `NAME_hint.png` or
    `NAME.hint.png`. Hidden folders and those of other programs are skipped (`walk.py`). A file with several names
    counts once, under the first name that has captions.

    A subfolder such as "10_sks dog" follows kohya's rule: an epoch shows its pictures ten times, and "sks dog" is the
    caption of those without one.

    Args:
        caption: the column that holds the captions, by default the first of records.CAPTION_COLUMNS that exists.
        default: the caption of pictures without one; if None, such pictures are an error.
        index_folder: where the table is kept, by default in the folder itself.
    """

    def __init__(
        self, path: str | os.PathLike, *, caption: str | None = None, default: str | None = None,
        index_folder: str | os.PathLike | None = None,
    ):  # fmt: skip
        self.path = Path(buckets.here(path, "fetching the pictures of"))
        self.name = str(path)
        if not self.path.is_dir():
            what = "it is a file" if self.path.exists() else "there is no folder of that name"
            raise SourceError(f"{path} is no folder of pictures: {what}")
        self.options = caption, default
        self.notices: list[str] = []
        found = sorted(self._found(caption), key=lambda one: natural(one.row["file_name"]))
        stats = _stats([self.path / one.row["file_name"] for one in found])
        found, stats = self._numbered(*self._once(found, stats))
        if not found:
            raise SourceError(
                f"{path} holds no pictures: neither a metadata.jsonl or metadata.csv with rows, nor JPEG, PNG or WebP "
                f"files{''.join(f'; {notice}' for notice in self.notices)}"
            )
        self.rows = [one.row for one in found]
        self.captions = self._filled(found, caption, default)
        self.identities = [one.identity for one in stats]
        self.index_folder = index_folder
        self.table = self._index(stats)

    def _found(self, caption: str | None) -> Iterator[_Found]:
        passed_over: list[str] = []
        several = 0
        for visited in walk(self.path, passed_over, metadata.listed):
            tables = metadata.listed(visited.files)
            if len(tables) > 1:
                raise SourceError(f"{visited.folder} holds both {tables[0]} and {tables[1]}; one of them has to go")
            if tables:
                path = visited.folder / tables[0]
                for place, row in metadata.rows(path, visited.relative):
                    yield _Found(row, captions_in(row, caption, place), str(path), place)
            else:
                for row, others in _beside(visited):
                    several += bool(others)
                    yield _Found(row, captions_in(row, caption, row["file_name"]))
        self._notice(len(passed_over), "folders are passed over, hidden or not of pictures", passed_over)
        if several:
            self.notices.append(
                f"{several} pictures have several caption files; the first of {', '.join(beside.ENDINGS)} is taken"
            )

    def _once(self, found: list[_Found], stats: list[_Stat]) -> tuple[list[_Found], list[_Stat]]:
        """Keeps one name of each file; rows of one table may repeat a file."""
        chosen: dict[tuple[int, int], int] = {}
        for i in sorted(range(len(found)), key=lambda i: not found[i].captions):  # those with captions first
            if (identity := stats[i].identity) is not None:
                chosen.setdefault(identity, i)
        again = []
        for i, (one, file) in enumerate(zip(found, stats)):
            first = i if file.identity is None else chosen[file.identity]
            if first != i and (one.table is None or one.table != found[first].table):
                again.append(i)
        names = [found[i].row["file_name"] for i in again]
        self._notice(len(again), "further names of the same pictures are passed over: each counts once", names)
        left = set(again)
        kept = [i for i in range(len(found)) if i not in left]
        return [found[i] for i in kept], [stats[i] for i in kept]

    def _numbered(self, found: list[_Found], stats: list[_Stat]) -> tuple[list[_Found], list[_Stat]]:
        """Applies folder names such as "10_sks dog"."""
        kept, counted = [], Counter[tuple[int, str]]()
        if beside.numbered(f"{self.path.name}/x"):
            self.notices.append("this folder's own name says no repeats: name the folder above it for that")
        for one, file in zip(found, stats):
            number = beside.numbered(one.row["file_name"])
            if number is not None:
                counted[number] += 1
                captions = one.captions or as_captions(number[1], f"the folder of {one.row['file_name']}")
                one = one._replace(row={**one.row, REPEATS: number[0]}, captions=captions)
            if number is None or number[0]:
                kept.append((one, file))
        for (repeats, name), count in sorted(counted.items()):
            often = f"shown {repeats} times an epoch" if repeats else "left out"
            self.notices.append(f"{repeats}_{name}: {count} pictures, {often}, as the folder's name says")
        return [one for one, _ in kept], [file for _, file in kept]

    def _notice(self, count: int, what: str, names: list[str]) -> None:
        if count:
            self.notices.append(f"{count} {what} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})")

    def _filled(self, found: list[_Found], caption: str | None, default: str | None) -> list[tuple[str, ...]]:
        """Returns the captions, or the default for pictures without one."""
        without = [one for one in found if not one.captions]
        if without and default is None:
            where = "in a column text, caption or captions" if caption is None else f"in the column {caption!r}"
            names = [one.row["file_name"] for one in without[:3]]
            place = f" ({without[0].place})" if without[0].place else ""
            raise SourceError(
                f"{len(without)} of {len(found)} pictures in {self.path} have no caption ({', '.join(names)}"
                f"{', ...' if len(without) > 3 else ''}): give them {where}{place} or a NAME.txt beside each, or set a "
                f"default{''.join(f'; {notice}' for notice in self.notices)}"
            )
        return [one.captions or (default or "",) if default is not None else one.captions for one in found]

    def place(self, i: int) -> str:
        """Returns the path of a picture's file."""
        return str(self.path / self.rows[i]["file_name"])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Record:
        row = self.rows[i]
        image = _content(self.path / row["file_name"])
        mask, hint = (_content(self.path / row[name]) if row.get(name) else None for name in metadata.FILES[1:])
        columns = {name: value for name, value in row.items() if name not in metadata.FILES}
        return Record(row["file_name"], image, self.captions[i], columns, mask, hint)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "table": None, "identities": ()}  # worker processes only read records

    def _index(self, stats: list[_Stat]) -> Table:
        paths = [self.path / row["file_name"] for row in self.rows]
        stamp = [[file.size, file.changed] for file in stats]
        # Only the pictures' sizes are kept, as they take long: the metadata may change while the pictures do not
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
            with _opened(path) as file:
                return picture_size(file)
        except OSError:  # counted when it is read
            return 0, 0

    with ThreadPoolExecutor(16) as pool:
        found = list(tqdm(pool.map(size, paths), "measuring", len(paths), delay=2, unit=" pictures", leave=False))
    return Table.from_rows([{"width": w, "height": h} for w, h in found])


def _stats(paths: list[Path]) -> list[_Stat]:
    def of(path: Path) -> _Stat:
        try:
            found = path.stat()
        except OSError:
            return _Stat()
        return _Stat(found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino)

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(of, paths))


def _opened(path: Path) -> BinaryIO:
    """Returns a file, open for reading. Raises OSError for a pipe or a device, without waiting for it."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise OSError(errno.EINVAL, f"not a file, but a {'folder' if stat.S_ISDIR(mode) else 'pipe or device'}", path)
    return open(handle, "rb")


def _content(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read(MAX_BYTES + 1)  # a longer file is refused when it is decoded


def _beside(visited: Visited) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Yields each picture of a folder with captions, mask and hint beside it, and the caption files not used."""
    folder, relative, files = visited
    pictures = {name for name in files if os.path.splitext(name)[1].lower() in SUFFIXES}
    texts = beside.by_lower_case(files)
    others_of: dict[str, dict[str, str]] = {column: {} for column in MARKED}
    stems = {os.path.splitext(name)[0] for name in pictures}
    for name in sorted(pictures):
        stem = os.path.splitext(name)[0]
        for column, marks in MARKED.items():
            of = next((stem.removesuffix(mark) for mark in marks if stem.endswith(mark)), None)
            if of in stems:
                others_of[column][of] = name
    for name in pictures - {name for own in others_of.values() for name in own.values()}:
        stem = os.path.splitext(name)[0]
        row: dict[str, Any] = {"file_name": str(relative / name)}
        found, others = beside.captions_beside(name, folder, texts)
        if found:
            row["captions"] = list(found)
        row |= {column: str(relative / own[stem]) for column, own in others_of.items() if stem in own}
        yield row, others
