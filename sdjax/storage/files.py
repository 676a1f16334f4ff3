"""Files: room on the disk, and files and folders that appear whole or not at all.

Whatever writes a file does it within `new_file`, under a passing name that is gone afterwards.
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

FILE_ENDINGS = (  # of weights, of what lies beside them and of pictures: a folder of such a name is taken for a file
    ".safetensors", ".safetensor", ".sft", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".bin", ".th", ".t7", ".npz",
    ".npy", ".h5", ".hdf5", ".keras", ".msgpack", ".onnx", ".gguf", ".ggml", ".tflite", ".pb", ".mar", ".zip", ".tar",
    ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar", ".json", ".yaml", ".yml", ".toml", ".txt", ".md", ".csv", ".png",
    ".jpg", ".jpeg", ".webp", ".gif", ".py",
)  # fmt: skip
LONGEST_NAME = 255  # bytes, where the file system does not say


def file_ending(name: str) -> str | None:
    """Returns the one of FILE_ENDINGS that a name has, whatever the case of its letters; None if it has none."""
    lowered = name.strip().rstrip(".").lower()
    return next((ending for ending in FILE_ENDINGS if lowered.endswith(ending)), None)


def check_room(path: str | os.PathLike[str], needs: int, what: str, advice: str = "") -> None:
    """Raises OSError (ENOSPC) if fewer than `needs` bytes are free where `path` is or will be.

    `what` is as in `doing`; `advice`, what helps besides.
    """
    if not has_room(path, needs):
        raise as_sentence(OSError(errno.ENOSPC, ""), what, path, needs, advice)


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


@contextlib.contextmanager
def new_folder(
    path: str | os.PathLike[str], check: Callable[[Path], None], *, what: str, needs: int | None = None
) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `path` at the end, in place of a folder that is there; after an error
    nothing is left of it.

    `check` raises FileExistsError if what is at `path` may not be replaced. Raises OSError as `doing` says it.
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
