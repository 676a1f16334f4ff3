"""Files in buckets, gs:// and s3://: reads and writes them, and keeps copies on this computer.

This uses fsspec, which needs gcsfs for gs:// and s3fs for s3://. In a bucket an object appears whole or not at all.
There are no folders, and objects cannot be renamed.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sdjax import errors
from sdjax.storage import files
from sdjax.storage.addresses import PACKAGES, AddressError, address, remote

LAST = ("config.json", "model_index.json")  # they make a folder a model, so they are written last and removed first
CREDENTIALS = {"gs": "gcloud auth application-default login", "s3": "aws configure"}


def place(path: Any, schemes: Sequence[str] = tuple(PACKAGES)) -> Any:
    """Returns a path to work with: a pathlib.Path, or an etils.epath.Path for an address.

    Raises AddressError for an address of another kind, ModuleNotFoundError if a package that it needs is missing.
    """
    if not remote(path, schemes):
        return Path(path)
    system(path)
    from etils import epath

    return epath.Path(address(path))


def system(path: Any) -> tuple[Any, str]:
    """Returns the fsspec file system of an address, and the address's name in it."""
    text = address(path)
    kind = text.partition(":")[0]
    try:
        import fsspec

        # No cached listings: they would lack the files that Orbax and other processes write
        fsspec.config.conf.setdefault(kind, {}).setdefault("use_listings_cache", False)
        return fsspec.filesystem(kind), text.partition("://")[2]
    except ImportError as error:
        package = getattr(error, "name", None) or PACKAGES[kind]
        raise ModuleNotFoundError(
            f"{text} is reached through {PACKAGES[kind]}, and {package} is not installed: pip install {PACKAGES[kind]}",
            name=PACKAGES[kind],
        ) from None


@contextlib.contextmanager
def reaching(what: str, path: Any) -> Iterator[None]:
    """Turns every error of the block into an OSError with one sentence about the address `path`.

    `what` is a verb and its object, as in `sdjax.errors.doing`. FileNotFoundError and PermissionError keep their types.
    """
    try:
        yield
    except (AddressError, ModuleNotFoundError):
        raise
    except Exception as error:  # those of aiohttp, google.auth, botocore, gcsfs, ... have no common type
        if isinstance(error, OSError) and errors.is_sentence(error) and error.args and str(error).startswith(what):
            raise
        text = address(path)
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        code = str(getattr(error, "code", ""))
        if isinstance(error, FileNotFoundError) or code == "404":
            raise FileNotFoundError(f"{what} {text} failed: there is no such file, folder or bucket") from error
        if isinstance(error, PermissionError) or code in ("401", "403") or "redential" in said:
            login = CREDENTIALS[text.partition(":")[0]]
            raise PermissionError(f"{what} {text} failed: {said}; `{login}` says who you are") from error
        raise OSError(f"{what} {text} failed: {said}") from error


def here(path: Any, what: str = "fetching the model") -> Any:
    """Returns a path of this computer unchanged. For an address it fetches a copy and returns the path of that."""
    return fetch(path, what) if remote(path) else path


def fetch(path: Any, what: str = "fetching the model") -> Path:
    """Returns the path of a local copy of a remote file or folder. It is fetched unless the copy exists.

    Copies are in `sdjax/remote` of the user's cache folder, by address and by the size and checksum of each file in the
    bucket. So changed files are fetched again. With a single file, the YAML of the same name is fetched too. Raises
    OSError with one sentence, FileNotFoundError if nothing is there.
    """
    import platformdirs

    text = address(path)
    with reaching(what, text):
        store, name = system(text)
        found = _contents(store, name)
        if not found:
            raise FileNotFoundError(text)
        stamps = repr(sorted((key, stamp(info)) for key, info in found.items()))
        key = hashlib.sha256(f"{text}\n{stamps}".encode()).hexdigest()[:24]
        folder = platformdirs.user_cache_path("sdjax") / "remote" / key
        target = folder / PurePosixPath(name).name
        if folder.is_dir():
            return target
        total = sum(info["size"] for info in found.values())
        files.check_room(folder, total, what)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = files.passing_name(folder.parent)
        try:
            _download(store, found, PurePosixPath(name).parent, partial, total, f"{what} {text}")
            # Not files.new_folder, which replaces what is there: the copy of a process that was first may be open
            with contextlib.suppress(OSError):
                os.rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def stamp(info: dict[str, Any]) -> list[Any]:
    """Returns the size and the checksum (or time) of a bucket's entry. They change when the object changes."""
    marks = ("md5Hash", "crc32c", "ETag", "etag", "mtime", "updated", "LastModified", "created")
    return [info["size"], next((str(info[mark]) for mark in marks if info.get(mark) is not None), "")]


def contents(path: Any) -> dict[str, list[Any]]:
    """Returns the `stamp` of every file in a remote folder, by its path in that folder."""
    with reaching("looking into", path):
        store, name = system(path)
        return {key[len(name) + 1 :]: stamp(info) for key, info in _contents(store, name).items() if key != name}


def get(path: Any, what: str = "reading the file") -> bytes | None:
    """Returns the contents of a remote file, or None if there is no such file."""
    try:
        with reaching(what, path):
            store, name = system(path)
            return store.cat_file(name)
    except FileNotFoundError:
        return None


def get_size(path: Any) -> int | None:
    """Returns the number of bytes of a remote file, or None if there is no such file."""
    with reaching("looking for", path):
        store, name = system(path)
        try:
            info = store.info(name)
        except FileNotFoundError:
            return None
        return info["size"] if info["type"] == "file" else None


def put(path: Any, data: bytes, what: str = "writing the file") -> None:
    """Writes a remote file. It appears whole or not at all."""
    with reaching(what, path):
        store, name = system(path)
        store.pipe_file(name, data)


def upload(source: Path, path: Any, what: str = "writing the model") -> None:
    """Writes a file or folder to an address. A folder replaces what is there; its files in LAST are written last."""
    with reaching(what, path):
        store, name = system(path)
        if source.is_file():
            store.put_file(str(source), name)
            return
        before = _contents(store, name)
        new = {f"{name}/{file.relative_to(source).as_posix()}": file for file in source.rglob("*") if file.is_file()}
        last = [f"{name}/{one}" for one in LAST]
        for key in [*(one for one in last if one in before), *(one for one in before if one not in (*last, *new))]:
            store.rm_file(key)
        for key in sorted(new, key=lambda key: (key in last, key)):
            store.put_file(str(new[key]), key)


def remove(path: Any) -> None:
    """Removes everything at an address. It is no error if nothing is there."""
    with reaching("removing", path):
        store, name = system(path)
        for key in _contents(store, name):
            with contextlib.suppress(FileNotFoundError):  # another process was first
                store.rm_file(key)


def _contents(store: Any, name: str) -> dict[str, dict[str, Any]]:
    """Returns the entries of a file (with its YAML), or of all files in a folder, by their names."""
    found = store.find(name, detail=True, withdirs=False)
    found = {key.lstrip("/"): info for key, info in found.items() if not key.endswith("/")}
    if list(found) == [name]:
        for suffix in (".yaml", ".yml"):
            beside = str(PurePosixPath(name).with_suffix(suffix))
            if beside != name and store.exists(beside):
                found[beside] = store.info(beside)
    return found


def _download(
    store: Any, found: dict[str, dict[str, Any]], root: PurePosixPath, folder: Path, total: int, title: str
) -> None:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=title, unit="B", unit_scale=True, delay=2, leave=False) as bar:
        for key, info in found.items():
            inside = PurePosixPath(key).relative_to(root)
            if ".." in inside.parts:
                raise OSError(f"{key} is not a file name")
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            store.get_file(key, str(target))
            if target.stat().st_size != info["size"]:
                raise OSError(f"{key} came with {target.stat().st_size} bytes instead of {info['size']}")
            bar.update(info["size"])
