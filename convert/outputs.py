"""Files and folders that appear whole or not at all, and replace nothing unless asked."""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator

from .errors import CheckpointError


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Yields a path to write to, which becomes `path` at the end; after an error nothing is left of it.

    Raises FileExistsError if `path` is there and `overwrite` is not asked for, or is no file.
    """
    path = pathlib.Path(path)
    _check_free(path, overwrite, folder=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        partial.touch(exist_ok=False)
        yield partial
        _check_free(path, overwrite, folder=False)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Yields a folder to fill, which becomes `path` at the end; after an error nothing is left of it.

    Raises FileExistsError if `path` is there and not empty and `overwrite` is not asked for, or holds no model.
    """
    path = pathlib.Path(path)
    _check_free(path, overwrite, folder=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    outer = _beside(path)
    partial, old = outer / "new", outer / "old"
    try:
        partial.mkdir(parents=True)
        yield partial
        _check_free(path, overwrite, folder=True)
        if path.exists():
            os.rename(path, old)
        os.rename(partial, path)
    finally:
        if old.exists() and not path.exists():  # the second renaming failed
            os.rename(old, path)
        shutil.rmtree(outer, ignore_errors=True)


def _beside(path: pathlib.Path) -> pathlib.Path:
    # Not tempfile's: what it makes is for its owner alone, and would stay so under its last name
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.partial")


def _check_free(path: pathlib.Path, overwrite: bool, *, folder: bool) -> None:
    if not os.path.lexists(path):
        return
    if folder and path.is_dir():
        names = os.listdir(path)
        if not names:
            return
        if overwrite and not {"config.json", "model_index.json"}.isdisjoint(names):
            return
        if overwrite:
            raise FileExistsError(f"{path} is a folder that holds no model; it is not replaced, choose another name")
    elif folder or path.is_dir():
        raise FileExistsError(f"{path} is a {'file' if folder else 'folder'}; choose another name to write to")
    elif overwrite:
        return
    raise FileExistsError(f"{path} exists; choose another name, or ask to overwrite it")


def check_not_input(target: str | os.PathLike[str], *sources: object) -> None:
    """Raises CheckpointError if the target is one of the checkpoints that are being read, or lies inside one."""
    target = pathlib.Path(target)
    for source in sources:
        if not isinstance(source, str | os.PathLike):
            continue
        source = pathlib.Path(source)
        try:
            inside = source.is_dir() and source.resolve() in [target.resolve(), *target.resolve().parents]
            same = target.exists() and os.path.samefile(target, source)
        except OSError:
            continue
        if same or inside:
            raise CheckpointError("it is read and cannot be written to at the same time; choose another name", target)
