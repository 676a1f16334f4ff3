"""Errors of the operating system as sentences: what failed, with which path, why, and what to do.

All code that reads or writes a file does so inside `with doing(...)`.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
ADVICE = {  # what to do, by errno
    errno.ENOSPC: "free some space{numbers}, or choose another place",
    errno.EDQUOT: "free some space{numbers}, or choose another place",
    errno.EACCES: "choose another place, or change the permissions",
    errno.EPERM: "choose another place, or change the permissions",
    errno.EROFS: "choose another place",
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.EMFILE: "allow more, as with `ulimit -n 4096`",
    errno.ENFILE: "close other programs",
    errno.EFBIG: "allow larger ones (`ulimit -f unlimited`), or choose another place",
    errno.EIO: "check the disk, or the network if it is a network drive",
}
WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of this user is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.EMFILE: "too many files are open in this process",
    errno.ENFILE: "too many files are open on this computer",
    errno.EFBIG: "the file would be larger than files may be",
    errno.EIO: "the device failed (input/output error)",
    errno.EISDIR: "it is a folder, and a file is needed",
    errno.ENOENT: "there is no such file or folder",
}


@contextlib.contextmanager
def doing(what: str, path: object, needs: int | None = None, advice: str = "") -> Iterator[None]:
    """Turns an OSError of the block into one sentence. The error keeps its type and its `errno`.

    `what` is a verb and its object, for example "writing the picture". `needs` (bytes) and `advice` (what else helps)
    are only used if the disk is full. An error that already is a sentence is raised unchanged.
    """
    try:
        yield
    except OSError as error:
        if is_sentence(error):
            raise
        raise as_sentence(error, what, path, needs, advice) from error


@contextlib.contextmanager
def foreign() -> Iterator[None]:
    """Turns a library's own exception for an error of the system into an OSError. Use it inside `doing`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        number = number_of(error)
        if number is None:
            raise
        raise OSError(number, str(error)) from error


def number_of(error: BaseException) -> int | None:
    """Returns the `errno` of an error, or None. Some libraries (tensorstore, riegeli) have it only in the text."""
    if isinstance(error, OSError):
        return error.errno
    if said := re.search(r"os_error_code='(\d+)'", str(error)):
        return int(said[1])
    return next((number for number in WORDS if os.strerror(number) in str(error)), None)


def is_sentence(error: OSError) -> bool:
    """Returns whether the error's text is a sentence, not the system's number and words."""
    return error.strerror is None


def as_sentence(error: OSError, what: str, path: object, needs: int | None = None, advice: str = "") -> OSError:
    """Returns an error of the same type and `errno` whose text is "WHAT PATH failed: why"."""
    reason = why(error, path, needs) + (advice if error.errno in FULL else "")
    new = type(OSError(error.errno, ""))(f"{what} {printable(path)} failed: {reason}")
    new.errno = error.errno
    return new


def sentence(error: Exception) -> str:
    """Returns the text to print for an error. For an error of the system these are its path and reason."""
    if not isinstance(error, OSError) or is_sentence(error):
        return str(error)
    if error.filename is None:
        return why(error, None)
    return f"{printable(error.filename)}: {why(error, error.filename)}"


def why(error: OSError, path: object, needs: int | None = None) -> str:
    """Returns why the system refused it and what to do, without the path."""
    number = error.errno
    place = None if path is None or "://" in str(path) else Path(_text(path))
    words, numbers = WORDS.get(number or 0, str(error.strerror or error)), ""
    with contextlib.suppress(OSError, ValueError):
        if number in FULL:
            numbers = _room(place, needs)
        elif number in (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP) and place is not None:
            words = _in_the_way(place, number) or words
        elif number == errno.ENAMETOOLONG and place is not None:
            words = f"a name in it has {max(len(os.fsencode(part)) for part in place.parts)} bytes, too many"
    text = f"{words}; {ADVICE[number].format(numbers=numbers)}" if number in ADVICE else words
    system = os.strerror(number) if number else ""  # the usual text, known to search engines
    return text if system.lower() in text.lower() else f"{text} ({system})"


def _room(place: Path | None, needs: int | None) -> str:
    parts = [] if needs is None else [f"{size(needs)} are needed"]
    if place is not None:
        near = nearest(place)
        parts.append(f"{size(shutil.disk_usage(near).free)} are free")
        if os.name == "posix" and os.statvfs(near).f_files and not os.statvfs(near).f_favail:
            parts.append("and it holds as many files as it can")
    return f" ({', '.join(parts)})" if parts else ""


def _in_the_way(place: Path, number: int | None) -> str | None:
    """Returns a sentence about what blocks the path (a broken link, a file in place of a folder), or None."""
    for at in (*reversed(place.parents), place):
        if at.is_symlink() and not os.path.exists(at):
            return f"{printable(at)} is a link to {printable(os.readlink(at))}, which is not there"
        if at != place and os.path.lexists(at) and not at.is_dir():
            return f"{printable(at)} is a file, and not a folder"
    if number in (errno.EEXIST, errno.ENOTDIR) and place.is_file():
        return "it is a file, and not a folder"
    return None


def printable(path: object) -> str:
    """Returns a path as messages show it."""
    text = _text(path)
    return text if text.isprintable() else ascii(text)[1:-1]


def _text(path: object) -> str:
    return os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)


def size(count: int) -> str:
    """Returns a number of bytes as "3.21 GiB", "12.3 MiB", "456 KiB" or "78 bytes"."""
    for unit, step in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= step:
            return f"{count / step:.3g} {unit}" if count < 1000 * step else f"{count / step:,.0f} {unit}"
    return f"{count / 2**10:.3g} KiB" if count >= 2**10 else f"{count} bytes"


def nearest(path: str | os.PathLike[str]) -> Path:
    """Returns the path if it exists, else its innermost folder that exists."""
    path = Path(path).absolute()
    return next((at for at in (path, *path.parents) if os.path.exists(at)), Path(path.anchor))
