"""Files in buckets, gs:// and s3://: reading, writing, and copies of them on this computer.

They are reached through fsspec, which needs gcsfs for gs:// and s3fs for s3://. A store shows an object whole or not at
all, and knows no folders and no renaming.
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

LAST = ("config.json", "model_index.json")  # the files that make a folder a model: written last, removed first
CREDENTIALS = {"gs": "gcloud auth application-default login", "s3": "aws configure"}


def place(path: Any, schemes: Sequence[str] = tuple(PACKAGES)) -> Any:
    """Returns a path to work with: a pathlib.Path, or an etils.epath.Path for an address.

    Raises AddressError for an address of another kind, ModuleNotFoundError where a package that it needs is missing.
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

        # What Orbax and other processes write is not in the lists that fsspec would keep
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
    """Raises whatever goes wrong with an address within the block as an OSError with one sentence.

    `what` is a verb and its object, as in `sdjax.errors.doing`. FileNotFoundError and PermissionError keep
    their types.
    """
    try:
        yield
    except (AddressError, ModuleNotFoundError):
        raise
    except Exception as error:  # of aiohttp, google.auth, botocore, gcsfs, ...: they share no type
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
    """Returns a path of this computer as it is, and of an address where it was fetched to."""
    return fetch(path, what) if remote(path) else path


def fetch(path: Any, what: str = "fetching the model") -> Path:
    """Returns where on this computer a copy of a remote file or folder lies, fetched unless it is there already.

    Copies lie in `sdjax/remote` of the user's cache folder, by address and by each file's size and checksum in the
    store, so what was changed there is fetched again. With a single file comes the YAML of the same name beside it.
    Raises OSError with one sentence, FileNotFoundError if nothing is there.
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
    """Returns what of a store's entry changes when the object does: its size, and its checksum or time."""
    marks = ("md5Hash", "crc32c", "ETag", "etag", "mtime", "updated", "LastModified", "created")
    return [info["size"], next((str(info[mark]) for mark in marks if info.get(mark) is not None), "")]


def contents(path: Any) -> dict[str, list[Any]]:
    """Returns `stamp` of every file below a remote folder, by its path there."""
    with reaching("looking into", path):
        store, name = system(path)
        return {key[len(name) + 1 :]: stamp(info) for key, info in _contents(store, name).items() if key != name}


def get(path: Any, what: str = "reading the file") -> bytes | None:
    """Returns the contents of a remote file, None if there is none of that name."""
    try:
        with reaching(what, path):
            store, name = system(path)
            return store.cat_file(name)
    except FileNotFoundError:
        return None


def get_size(path: Any) -> int | None:
    """Returns the bytes of a remote file, None if there is none of that name."""
    with reaching("looking for", path):
        store, name = system(path)
        try:
            info = store.info(name)
        except FileNotFoundError:
            return None
        return info["size"] if info["type"] == "file" else None


def put(path: Any, data: bytes, what: str = "writing the file") -> None:
    """Writes a remote file: its store shows it whole or not at all."""
    with reaching(what, path):
        store, name = system(path)
        store.pipe_file(name, data)


def upload(source: Path, path: Any, what: str = "writing the model") -> None:
    """Writes a file or folder to an address; of a folder what was there goes, and what makes it a model comes last."""
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
    """Removes everything below an address; nothing there, nothing to do."""
    with reaching("removing", path):
        store, name = system(path)
        for key in _contents(store, name):
            with contextlib.suppress(FileNotFoundError):  # another process was first
                store.rm_file(key)


def _contents(store: Any, name: str) -> dict[str, dict[str, Any]]:
    """Returns the entries of a file (with its YAML), or of everything below a folder, by their names."""
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
                raise OSError(f"{key} is no name of a file")
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            store.get_file(key, str(target))
            if target.stat().st_size != info["size"]:
                raise OSError(f"{key} came with {target.stat().st_size} bytes instead of {info['size']}")
            bar.update(info["size"])
