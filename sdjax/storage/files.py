"""Files: a sentence for every error of the system, room on the disk, and files that appear whole or not at all.

Whatever reads or writes a file does it within `doing`, which says what was being done, with which path, and why it
failed. Whatever writes a file does it within `new_file`, under a passing name that is gone afterwards.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath

from sdjax.storage.addresses import local, remote

FILE_ENDINGS = (  # of weights, of what lies beside them and of pictures: a folder of such a name is taken for a file
    ".safetensors", ".safetensor", ".sft", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".bin", ".th", ".t7", ".npz",
    ".npy", ".h5", ".hdf5", ".keras", ".msgpack", ".onnx", ".gguf", ".ggml", ".tflite", ".pb", ".mar", ".zip", ".tar",
    ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar", ".json", ".yaml", ".yml", ".toml", ".txt", ".md", ".csv", ".png",
    ".jpg", ".jpeg", ".webp", ".gif", ".py",
)  # fmt: skip
FULL = (errno.ENOSPC, errno.EDQUOT)
LONGEST_NAME = 255  # bytes, where the file system does not say
MORE = {  # what helps, by the number of the error
    errno.ENOSPC: "free some space{numbers}, or choose another place",
    errno.EDQUOT: "free some space{numbers}, or choose another place",
    errno.EACCES: "choose another place, or change the permissions",
    errno.EPERM: "choose another place, or change the permissions",
    errno.EROFS: "choose another place",
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.EMFILE: "allow more, as with `ulimit -n 4096`",
    errno.ENFILE: "close other programs",
    errno.EFBIG: "allow larger ones (`ulimit -f unlimited`), or choose another place",
    errno.EIO: "look whether the disk, or the network that it is reached by, is in order",
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
    """Raises an error of the system within the block again, as one sentence; its `errno` and its type stay.

    `what` is a verb and its object, as "writing the picture"; `needs` are bytes, said where the disk is full, as is
    `advice`, what helps besides. An error that is a sentence already goes through as it is.
    """
    try:
        yield
    except OSError as error:
        if is_told(error):
            raise
        raise tell(error, what, path, needs, advice) from error


@contextlib.contextmanager
def foreign() -> Iterator[None]:
    """Raises as OSError what a library without Python's errors raises for an error of the system; used in `doing`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        number = number_of(error)
        if number is None:
            raise
        raise OSError(number, str(error)) from error


def file_ending(name: str) -> str | None:
    """Returns the one of FILE_ENDINGS that a name has, whatever the case of its letters; None if it has none."""
    lowered = name.strip().rstrip(".").lower()
    return next((ending for ending in FILE_ENDINGS if lowered.endswith(ending)), None)


def number_of(error: BaseException) -> int | None:
    """Returns the `errno` of an error, from its text where a library (tensorstore, riegeli) put it there."""
    if isinstance(error, OSError):
        return error.errno
    if said := re.search(r"os_error_code='(\d+)'", str(error)):
        return int(said[1])
    return next((number for number in WORDS if os.strerror(number) in str(error)), None)


def is_told(error: OSError) -> bool:
    """Returns whether the error's text is a sentence, and not the system's number and words."""
    return error.strerror is None


def tell(error: OSError, what: str, path: object, needs: int | None = None, advice: str = "") -> OSError:
    """Returns an error of the same type and `errno` whose text is "WHAT PATH failed: why"."""
    reason = why(error, path, needs) + (advice if error.errno in FULL else "")
    new = type(OSError(error.errno, ""))(f"{what} {printable(path)} failed: {reason}")
    new.errno = error.errno
    return new


def sentence(error: Exception) -> str:
    """Returns what to print of an error; of one of the system, path and reason."""
    if not isinstance(error, OSError) or is_told(error):
        return str(error)
    if error.filename is None:
        return why(error, None)
    return f"{printable(error.filename)}: {why(error, error.filename)}"


def why(error: OSError, path: object, needs: int | None = None) -> str:
    """Returns why the system refused it, and what helps, without the path."""
    number = error.errno
    place = None if path is None or "://" in str(path) else Path(os.fsdecode(path))
    words, numbers = WORDS.get(number, str(error.strerror or error)), ""
    with contextlib.suppress(OSError, ValueError):
        if number in FULL:
            numbers = _room(place, needs)
        elif number in (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP) and place is not None:
            words = _in_the_way(place, number) or words
        elif number == errno.ENAMETOOLONG and place is not None:
            words = f"a name in it has {max(len(os.fsencode(part)) for part in place.parts)} bytes, too many"
    text = f"{words}; {MORE[number].format(numbers=numbers)}" if number in MORE else words
    system = os.strerror(number) if number else ""  # what others write about
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
    """Returns what stands where something else should, None if nothing does."""
    for at in (*reversed(place.parents), place):
        if at.is_symlink() and not os.path.exists(at):
            return f"{printable(at)} is a link to {printable(os.readlink(at))}, which is not there"
        if at != place and os.path.lexists(at) and not at.is_dir():
            return f"{printable(at)} is a file, and not a folder"
    if number in (errno.EEXIST, errno.ENOTDIR) and place.is_file():
        return "it is a file, and not a folder"
    return None


def printable(path: object) -> str:
    """Returns a path as a message shows it."""
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    return text if text.isprintable() else ascii(text)[1:-1]


def size(count: int) -> str:
    """Returns a number of bytes as "3.21 GiB", "12.3 MiB", "456 KiB" or "78 bytes"."""
    for unit, step in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= step:
            return f"{count / step:.3g} {unit}" if count < 1000 * step else f"{count / step:,.0f} {unit}"
    return f"{count / 2**10:.3g} KiB" if count >= 2**10 else f"{count} bytes"


def nearest(path: str | os.PathLike[str]) -> Path:
    """Returns the path, or of the folders that it is in the innermost that is there."""
    path = Path(path).absolute()
    return next((at for at in (path, *path.parents) if os.path.exists(at)), Path(path.anchor))


def check_room(path: str | os.PathLike[str], needs: int, what: str, advice: str = "") -> None:
    """Raises OSError (ENOSPC) if fewer than `needs` bytes are free where `path` is or will be.

    `what` is as in `doing`; `advice`, what helps besides.
    """
    if not has_room(path, needs):
        raise tell(OSError(errno.ENOSPC, ""), what, path, needs, advice)


def has_room(path: str | os.PathLike[str], needs: int) -> bool:
    """Returns whether so many bytes are free where `path` is or will be, as far as the file system says."""
    if _in_bucket(path):
        return True
    try:
        disk = shutil.disk_usage(nearest(path))
    except OSError:
        return True
    return not disk.total or disk.free >= needs  # some say 0 of 0


def _in_bucket(path: object) -> bool:
    """Returns whether a path is an etils.epath.Path of a bucket, made by `sdjax.storage.buckets.place`: it has room."""
    return isinstance(path, PurePath) and not isinstance(path, Path) and remote(path)


def check_folder(folder: str | os.PathLike[str], what: str, needs: int = 0) -> None:
    """Raises OSError if files could not be written into the folder, which need not be there yet; leaves nothing behind.

    To be called before work begins whose result will be written there.
    """
    if _in_bucket(folder):
        return
    folder = Path(local(folder))
    with doing(what, folder):
        lexists(folder / "x")  # a name that is too long, a file on the way
        if any(os.path.lexists(at) and not at.is_dir() for at in (folder, *folder.parents)):
            raise FileExistsError(errno.EEXIST, "")
        place = nearest(folder)
        with _passing(place) as path, open(path, "xb"):
            pass
    check_room(folder, needs, what)


@contextlib.contextmanager
def folder_for(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Makes a folder for the block; if the block fails and wrote nothing there, what was made is removed again."""
    folder = Path(local(folder))
    new = [at for at in (folder, *folder.parents) if not os.path.lexists(at)]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        for at in new:
            with contextlib.suppress(OSError):  # it is not empty
                at.rmdir()
        raise


@contextlib.contextmanager
def new_file(
    path: str | os.PathLike[str], *, overwrite: bool = False, what: str = "writing the file", needs: int | None = None
) -> Iterator[Path]:
    """Yields a path to write to, which becomes `path` at the end; after an error nothing is left of it.

    The folder is made if it is not there. Raises FileExistsError if `path` is there and `overwrite` is not asked for,
    or is no file; OSError as `doing` says it.
    """
    path = Path(local(path))
    with doing(what, path, needs):
        check_free(path, overwrite)
        with folder_for(path.parent), _passing(path.parent) as partial:
            with open(partial, "xb"):
                pass
            yield partial
            publish(partial, path, overwrite=overwrite)


def write_file(
    path: str | os.PathLike[str], data: bytes, *, overwrite: bool = False, what: str = "writing the file"
) -> None:
    """Writes a file, whole or not at all. Raises as `new_file`."""
    with new_file(path, overwrite=overwrite, what=what, needs=len(data)) as partial:
        partial.write_bytes(data)


def append(path: Path, data: bytes) -> None:
    """Writes to the end of a file, which is made if it is not there: all of it, or nothing."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
    try:
        before = os.fstat(handle).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
        except OSError:
            os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)


def check_free(path: Path, overwrite: bool) -> None:
    """Raises FileExistsError if a file cannot get this name."""
    if not lexists(path):
        return
    if path.is_dir():
        raise FileExistsError(f"{printable(path)} is a folder; choose another name to write to")
    if not overwrite:
        raise FileExistsError(f"{printable(path)} exists; choose another name, or ask to overwrite it")


def publish(whole: Path, path: Path, *, overwrite: bool = False) -> None:
    """Gives a file that is whole its name, in one step. Raises FileExistsError if the name is taken."""
    with open(whole, "rb") as file:
        os.fsync(file.fileno())
    if overwrite:
        return os.replace(whole, path)
    try:
        os.link(whole, path)
    except FileExistsError:
        raise FileExistsError(f"{printable(path)} exists; choose another name, or ask to overwrite it") from None
    except OSError:  # a file system without hard links: take the name first, then put the file in its place
        with open(path, "xb"):
            pass
        try:
            os.replace(whole, path)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def passing_name(folder: Path) -> Path:
    """Returns a name in a folder that no other process has, of whichever machine."""
    return folder / f".sdjax-{secrets.token_hex(8)}.partial"


@contextlib.contextmanager
def _passing(folder: Path) -> Iterator[Path]:
    """Yields a passing name in a folder; what has it is gone afterwards."""
    # Not tempfile's: what it makes is for its owner alone, and would stay so under its last name
    path = passing_name(folder)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def lexists(path: Path) -> bool:
    """Returns whether something has this name. Raises OSError if nothing could, which os.path.lexists keeps silent."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True
