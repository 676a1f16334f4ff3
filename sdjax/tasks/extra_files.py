"""The files of adapters, embeddings and hypernetworks: those in a folder, each read once while it does not change."""

import functools
import os
import pathlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from sdjax.prompts.tag_spans import Span

P = ParamSpec("P")
T = TypeVar("T")

MOST_FOLDERS = 10_000  # below a folder that are looked through


def files_below(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields the files in a folder and below it, in the same order on every disk."""
    for count, (place, folders, files) in enumerate(os.walk(folder)):
        if count >= MOST_FOLDERS:
            break
        folders.sort()
        yield from (pathlib.Path(place) / name for name in sorted(files))


def folders_in(text: str) -> list[pathlib.Path]:
    """Returns the folders of a text: one, or several joined by `os.pathsep`, as in the environment's PATH."""
    several = [text] if os.path.isdir(text) else text.split(os.pathsep)
    return [pathlib.Path(one) for one in several if one] or [pathlib.Path(text)]


def read_once(count: int) -> Callable[[Callable[Concatenate[str, P], T]], Callable[Concatenate[str, P], T]]:
    """Returns a decorator for a function of a path: a file is read again only if it changed. It keeps `count` results.

    The results of one file are one object, however its path is spelled. A path that cannot be looked at is handed to
    the function, which says why.
    """

    def decorate(read: Callable[Concatenate[str, P], T]) -> Callable[Concatenate[str, P], T]:
        @functools.lru_cache(maxsize=count)
        def kept(path: str, stamp: tuple[int, ...], *args: P.args, **kwargs: P.kwargs) -> T:
            return read(path, *args, **kwargs)

        @functools.wraps(read)
        def reading(path: str, *args: P.args, **kwargs: P.kwargs) -> T:
            try:
                found = os.stat(path)
                stamp: tuple[int, ...] = (found.st_mtime_ns, found.st_size)
                path = os.path.abspath(path)
            except (OSError, ValueError):
                stamp = ()
            return kept(path, stamp, *args, **kwargs)  # type: ignore[arg-type]

        return reading

    return decorate


def check_once(what: str, uses: Sequence[tuple[Hashable, str, Span]]) -> None:
    """Raises ValueError if a picture uses one file twice at the same steps. `uses` are identities, names and spans."""
    for i, (one, name, (start, end)) in enumerate(uses):
        for other, _, (first, last) in uses[:i]:
            if one == other and start < last and first < end:
                raise ValueError(f"the {what} {name} is given twice for the same steps: give it once, with one weight")


def opened(open_one: Callable[[Any], T], source: Any, what: str) -> T:
    """Returns what a function opens. Raises ValueError, naming `what` it was given for, if there is no such file."""
    try:
        return open_one(source)
    except FileNotFoundError:
        raise ValueError(f"there is no file {str(source)!r}, which was given as {what}") from None
