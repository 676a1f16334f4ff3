"""Files: checks free space, and writes files and folders that appear whole or not at all.

All code that writes a file uses `new_file`. It writes under a temporary name first.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from sdjax.errors import as_sentence, doing, nearest, printable
from sdjax.storage.addresses import local, remote

FILE_ENDINGS = (  # weights, files beside them, pictures: a path with such an ending is meant as a file, not a folder
    ".safetensors", ".safetensor", ".sft", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".bin", ".th", ".t7", ".npz",
    ".npy", ".h5", ".hdf5", ".keras", ".msgpack", ".onnx", ".gguf", ".ggml", ".tflite", ".pb", ".mar", ".zip", ".tar",
    ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar", ".json", ".yaml", ".yml", ".toml", ".txt", ".md", ".csv", ".png",
    ".jpg", ".jpeg", ".webp", ".gif", ".py",
)  # fmt: skip
OR_OVERWRITE = ", or overwrite it with overwrite=True"  # the end of an error
PASSING = ".sdjax-*.partial"  # names of files that are being written


def file_ending(name: str) -> str | None:
    """Returns the name's ending if it is one of FILE_ENDINGS (in lower or upper case), else None."""
    lowered = name.strip().rstrip(".").lower()
    return next((ending for ending in FILE_ENDINGS if lowered.endswith(ending)), None)


def check_room(path: str | os.PathLike[str], needs: int, what: str, advice: str = "") -> None:
    """Raises OSError (ENOSPC) if fewer than `needs` bytes are free on the disk of `path`, which need not exist.

    `what` is as in `doing`. `advice` is added to the message.
    """
    if not has_room(path, needs):
        raise as_sentence(OSError(errno.ENOSPC, ""), what, path, needs, advice)


def has_room(path: str | os.PathLike[str], needs: int) -> bool:
    """Returns whether `needs` bytes are free on the disk of `path`, according to the file system."""
    if _in_bucket(path):
        return True
    try:
        disk = shutil.disk_usage(nearest(path))
    except OSError:
        return True
    return not disk.total or disk.free >= needs  # some file systems report 0 of 0


def _in_bucket(path: object) -> bool:
    """Returns whether a path is in a bucket (an etils.epath.Path from `buckets.place`), which always has room."""
    return isinstance(path, PurePath) and not isinstance(path, Path) and remote(path)


def check_folder(folder: str | os.PathLike[str], what: str, needs: int = 0) -> None:
    """Raises OSError if files cannot be written into the folder. The folder need not exist; nothing is left behind.

    Call it before long work whose result will be written there.
    """
    if _in_bucket(folder):
        return
    folder = Path(local(folder))
    with doing(what, folder):
        lexists(folder / "x")  # raises for a name that is too long, or a file in place of a folder
        if any(os.path.lexists(at) and not at.is_dir() for at in (folder, *folder.parents)):
            raise FileExistsError(errno.EEXIST, "")
        place = nearest(folder)
        with _passing(place) as path, open(path, "xb"):
            pass
    check_room(folder, needs, what)


@contextlib.contextmanager
def folder_for(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Makes a folder for the block. If the block fails and the folder is empty, the new folders are removed."""
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
    """Yields a temporary path to write to. It is renamed to `path` at the end, or removed after an error.

    The folder of `path` is made if needed. Raises FileExistsError if `path` exists (with `overwrite`: if it is not a
    file), and OSError with a sentence as in `doing`.
    """
    path = Path(local(path))
    with doing(what, path, needs):
        check_free(path, overwrite)
        with folder_for(path.parent), _passing(path.parent) as partial:
            with open(partial, "xb"):
                pass
            yield partial
            publish(partial, path, overwrite=overwrite)


@contextlib.contextmanager
def new_folder(
    path: str | os.PathLike[str], check: Callable[[Path], None], *, what: str, needs: int | None = None
) -> Iterator[Path]:
    """Yields a temporary folder to fill. It replaces the folder `path` at the end, or is removed after an error.

    `check` must raise FileExistsError if `path` exists and may not be replaced. Raises OSError with a sentence as in
    `doing`.
    """
    path = Path(local(path))
    with doing(what, path, needs):
        check(path)
        with folder_for(path.parent):
            outer = passing_name(path.parent)
            partial, old = outer / "new", outer / "old"
            try:
                partial.mkdir(parents=True)
                yield partial
                check(path)
                if path.exists():
                    os.rename(path, old)
                os.rename(partial, path)
            finally:
                if old.exists() and not path.exists():  # the second renaming failed
                    os.rename(old, path)
                shutil.rmtree(outer, ignore_errors=True)


def write_file(
    path: str | os.PathLike[str], data: bytes, *, overwrite: bool = False, what: str = "writing the file"
) -> None:
    """Writes a file, whole or not at all. Raises as `new_file`."""
    with new_file(path, overwrite=overwrite, what=what, needs=len(data)) as partial:
        partial.write_bytes(data)


def append(path: Path, data: bytes) -> None:
    """Appends to a file: all of the data, or nothing. The file is made if it does not exist."""
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
    """Raises FileExistsError if this name is taken."""
    if not lexists(path):
        return
    if path.is_dir():
        raise FileExistsError(f"{printable(path)} is a folder; choose another name to write to")
    if not overwrite:
        raise taken(path)


def taken(path: str | os.PathLike[str]) -> FileExistsError:
    """Returns the error about a name that is taken. A command names its flag --overwrite there, if it has this flag."""
    return FileExistsError(f"{printable(path)} exists; choose another name{OR_OVERWRITE}")


def publish(whole: Path, path: Path, *, overwrite: bool = False) -> None:
    """Renames a complete file to `path` in one step. Raises FileExistsError if the name is taken."""
    with open(whole, "rb") as file:
        os.fsync(file.fileno())
    if overwrite:
        return os.replace(whole, path)
    try:
        os.link(whole, path)
    except FileExistsError:
        raise taken(path) from None
    except OSError:  # a file system without hard links: take the name first, then put the file in its place
        with open(path, "xb"):
            pass
        try:
            os.replace(whole, path)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def passing_name(folder: Path) -> Path:
    """Returns a temporary name in a folder. No other process on any machine has the same one."""
    return folder / PASSING.replace("*", secrets.token_hex(8))


@contextlib.contextmanager
def _passing(folder: Path) -> Iterator[Path]:
    """Yields a temporary name in a folder. Whatever has this name is removed at the end."""
    # Not tempfile: only the owner can read its files, and this stays so after renaming
    path = passing_name(folder)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def lexists(path: Path) -> bool:
    """Returns whether something has this name. Unlike os.path.lexists, it raises OSError for an impossible name."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True
