"""Walks the folders of a training set, each once. Skips the internal folders of other programs and of sdjax."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sdjax.loading.run_layout import BASE, CHECKPOINTS, SETTINGS
from sdjax.train.data.records import SourceError

OTHERS = frozenset(  # folders of systems and archivers; those that begin with a dot are left out too
    {"__macosx", "@eadir", "lost+found", "$recycle.bin", "#recycle", "#snapshot", "system volume information",
     "__pycache__"}
)  # fmt: skip


class Visited(NamedTuple):
    """A folder: its path from the root, the names of its files, and the names of entries of other types."""

    folder: Path
    relative: PurePosixPath
    files: list[str]


def is_foreign(name: str) -> bool:
    """Returns whether a file or folder is hidden or belongs to another program, by its name."""
    return name.startswith(".") or name.casefold() in OTHERS


def walk(root: Path, passed_over: list[str], is_whole: Callable[[list[str]], Any]) -> Iterator[Visited]:
    """Yields the root and all folders below it. Links are followed; a folder with several names is visited once.

    Folders below a folder are skipped if `is_whole(names of its files)` is true. The names of skipped folders, with the
    reason, are appended to `passed_over`. Raises SourceError for a folder that cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    folders: list[tuple[Path, PurePosixPath]] = [(root, PurePosixPath())]
    links: list[tuple[Path, PurePosixPath]] = []
    while folders or links:
        # Links last, so that a folder is visited under its own name
        folder, relative = folders.pop() if folders else links.pop(0)
        try:
            stat = os.stat(folder)
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            raise SourceError(f"the folder {folder} cannot be listed ({error.strerror or error})") from None
        identity = stat.st_dev, stat.st_ino
        if identity in seen and any(identity):  # some file systems have no numbers
            passed_over.append(f"{relative} (reached before by another name)")
            continue
        seen.add(identity)
        files: list[os.DirEntry[str]] = []
        below: list[os.DirEntry[str]] = []
        for entry in entries:
            (below if _is_folder(entry) else files).append(entry)
        ours = _of_sdjax({entry.name for entry in files}, {entry.name for entry in below})
        if ours and folder != root:
            passed_over.append(f"{relative} ({ours})")
            continue
        names = [entry.name for entry in files if not is_foreign(entry.name)]
        yield Visited(folder, relative, names)
        if is_whole(names):
            continue
        for entry in reversed(below):
            if is_foreign(entry.name):
                passed_over.append(str(relative / entry.name))
            else:
                (links if entry.is_symlink() else folders).append((folder / entry.name, relative / entry.name))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _of_sdjax(files: set[str], folders: set[str]) -> str | None:
    if SETTINGS in files and folders & {CHECKPOINTS, BASE}:
        return "the folder of a training"
    if "manifest.json" in files and any(name.startswith("latents-") for name in files):
        return "a cache of latents"
    return None
