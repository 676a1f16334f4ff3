"""Caption files beside pictures, and kohya's folder names."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from sdjax.storage.text_files import decode, lines
from sdjax.train.data.records import SourceError, as_captions

ENDINGS = (".txt", ".caption", ".caption.txt", ".captions.txt", ".captions", ".cap", ".tags")  # the first there is
_NUMBERED = re.compile(r"([0-9]{1,4})_(.+)")  # more digits are a date


def caption_names(picture: str) -> list[str]:
    """Returns the names, in lower case, of files that may hold a picture's captions, the preferred first.

    For photo.jpg: photo.txt, photo.jpg.txt, photo.caption, ...
    """
    stem = os.path.splitext(picture)[0]
    return [f"{name}{ending}".casefold() for ending in ENDINGS for name in (stem, picture)]


def by_lower_case(files: Iterable[str]) -> dict[str, str]:
    """Returns {name in lower case: name}, with the first of several equal names."""
    found: dict[str, str] = {}
    for name in sorted(files):
        found.setdefault(name.casefold(), name)
    return found


def captions_beside(picture: str, folder: Path, files: Mapping[str, str]) -> tuple[tuple[str, ...], list[str]]:
    """Returns the captions in the file that belongs to a picture, one a line, and the names of further such files.

    `files` are the folder's, by lower case. Raises SourceError for a file that is no text.
    """
    there = list(dict.fromkeys(files[name] for name in caption_names(picture) if name in files))
    for i, name in enumerate(there):
        found = as_captions(lines(read_text(folder / name)), str(folder / name))
        if found:  # an empty file says nothing
            return found, there[i + 1 :]
    return (), []


def numbered(file_name: str) -> tuple[int, str] | None:
    """Returns (repeats, class) of a picture, from a folder such as kohya's "10_sks dog" on its path; None without one.

    The innermost such folder counts.
    """
    for part in reversed(PurePosixPath(file_name).parts[:-1]):
        if match := _NUMBERED.fullmatch(part):
            return int(match[1]), match[2].strip()
    return None


def read_text(path: Path) -> str:
    """Returns a file's text. Raises SourceError if it cannot be read or is not text."""
    try:
        if not path.is_file():  # reading a pipe would block
            raise SourceError(f"{path} is no file but a pipe or a device")
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror or error})") from None
    except SourceError:
        raise
    except ValueError as error:
        raise SourceError(str(error)) from None
