"""Folders of models that appear whole or not at all, and replace nothing unless asked."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Literal, cast

from sdjax import errors
from sdjax.convert.errors import CheckpointError
from sdjax.convert.names.naming import LAYOUTS, Layout
from sdjax.storage import addresses, buckets, files

WRITING = "writing the model"
Format = Layout | Literal["gguf"]
FORMATS = ("auto", *LAYOUTS, "gguf")
SINGLE = ".safetensors"
FILES: dict[str, str] = {"ldm": SINGLE, "gguf": ".gguf"}  # the formats that are one file, and its ending


_FILE = {"ldm": "an ldm", "gguf": "a GGUF"}


@contextlib.contextmanager
def new_folder(
    path: str | os.PathLike[str], *, overwrite: bool = False, needs: int | None = None
) -> Iterator[pathlib.Path]:
    """Yields a folder to fill, which becomes `path` at the end; after an error nothing is left of it.

    Raises FileExistsError if `path` is there and not empty and `overwrite` is not asked for, or holds no model; OSError
    as `sdjax.errors.doing` says it.
    """
    with files.new_folder(path, lambda path: check_free(path, overwrite), what=WRITING, needs=needs) as partial:
        yield partial


def check_free(path: pathlib.Path, overwrite: bool) -> None:
    """Raises FileExistsError if a model's folder cannot get this name."""
    if not files.lexists(path):
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file; choose another name to write to")
    names = os.listdir(path)
    if names and not overwrite:
        raise files.taken(path)
    if names and {"config.json", "model_index.json"}.isdisjoint(names):
        raise FileExistsError(f"{path} is a folder that holds no model; it is not replaced, choose another name")


@contextlib.contextmanager
def staged(address: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Yields a path of this computer to write a file or folder to, which is copied to a bucket at the end.

    Raises FileExistsError if something is there and `overwrite` is not asked for, OSError where it cannot be reached.
    """
    check_free_address(address, overwrite)
    with tempfile.TemporaryDirectory(prefix="sdjax-") as folder:
        path = pathlib.Path(folder) / addresses.address(address).rpartition("/")[2]
        yield path
        buckets.upload(path, address, WRITING)


def check_free_address(address: str | os.PathLike[str], overwrite: bool) -> None:
    """Raises FileExistsError if something in a bucket has this name, and may not be replaced."""
    names = buckets.contents(address) or buckets.get_size(address) is not None
    if names and not overwrite:
        raise files.taken(address)
    if isinstance(names, dict) and names and names.keys().isdisjoint(buckets.LAST):
        raise FileExistsError(
            f"{os.fspath(address)} is a folder that holds no model; it is not replaced, choose another name"
        )


def check_output(path: str | os.PathLike[str], overwrite: bool, what: str, *, folder: bool = False) -> None:
    """Raises OSError if something could not be written to a path, before work begins; leaves nothing behind."""
    if addresses.remote(path):
        return check_free_address(path, overwrite)
    path = pathlib.Path(path)
    with errors.doing(what, path):
        (check_free if folder else files.check_free)(path, overwrite)
    files.check_folder(path.parent, what)


def layout_of(path: str | os.PathLike[str], to: str = "auto") -> Format:
    """Returns the format to write to a path: `to`, or for "auto" what the name says, ldm for one in .safetensors.

    Raises ValueError for an unknown format, and for a name that says something else than what would be written.
    """
    if to not in FORMATS:
        raise ValueError(f"a format is one of {', '.join(FORMATS)}; got {to!r}")
    text, name = os.fspath(path), pathlib.Path(path).name
    ending = files.file_ending(name)
    by_name = next((format for format, own in FILES.items() if own == ending), "native")
    layout = cast(Format, by_name if to == "auto" else to)
    if layout in FILES:
        own = FILES[layout]
        whole = name.lower().endswith(own) and name.lower() != own and not text.endswith(("/", os.sep))
        if not whole:
            raise ValueError(f"{_FILE[layout]} file is written as {own}; got {text!r}, which is not NAME{own}")
    elif ending is not None:
        raise ValueError(
            f"{text!r} ends as a file does, in {ending}, and the {layout} format is a folder: for one file give a name "
            f"in {' or '.join(FILES.values())}, the kinds of files that are written; for a folder a name without "
            f"{ending}"
        )
    return layout


def check_not_input(target: str | os.PathLike[str], *sources: object) -> None:
    """Raises CheckpointError if the target is a checkpoint that is being read, or inside one."""
    if addresses.remote(target):
        for source in sources:
            if addresses.scheme(source) and f"{addresses.address(target)}/".startswith(f"{addresses.address(source)}/"):
                raise CheckpointError("it is read and cannot be written to; choose another name", target)
        return
    target = pathlib.Path(target)
    for source in sources:
        if not isinstance(source, str | os.PathLike) or addresses.scheme(source):
            continue
        source = pathlib.Path(source)
        try:
            inside = source.is_dir() and source.resolve() in [target.resolve(), *target.resolve().parents]
            same = target.exists() and os.path.samefile(target, source)
        except OSError:
            continue
        if same or inside:
            raise CheckpointError("it is read and cannot be written to at the same time; choose another name", target)
