"""The folders of a training's steps, and beside each what it holds, so that damage is noticed before anything is read.

`{step:08d}/` holds the files of a step and `{step}.json`, its manifest, the size and SHA-256 of each. The manifest
is written last. Of what lies in a bucket the manifest has the bucket's own checksums, which cost no reading.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from sdjax.storage import addresses, buckets
from sdjax.storage.files import write_file


def path(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Returns the folder of a step."""
    return folder / f"{step:08d}"


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps that have a manifest, oldest first."""
    stems = [name.removesuffix(".json") for name in _names(folder) if name.endswith(".json")]
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def traces(folder: pathlib.Path) -> list[int]:
    """Returns the steps of which there is anything, finished or not, oldest first."""
    numbers = [int(name.rstrip("/")) for name in _names(folder) if name.endswith("/") and name[:-1].isdecimal()]
    return sorted({*steps(folder), *numbers})


def write(folder: pathlib.Path, step: int) -> None:
    """Makes every file of a step safe on the disk, and then its manifest."""
    files = path(folder, step)
    contents = _contents(files, sync=True)
    if not addresses.remote(files):
        for directory in (*(file for file in files.rglob("*") if file.is_dir()), files):
            _sync(directory)
    write_json(_manifest(folder, step), contents)


def write_json(file: pathlib.Path, content: Any) -> None:
    """Writes a file that is, whatever happens meanwhile, as it was or whole."""
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    if addresses.remote(file):
        return buckets.put(file, text.encode(), what="writing the record")
    write_file(file, text.encode(), overwrite=True, what="writing the record")
    _sync(file.parent)


def remove(folder: pathlib.Path, step: int) -> None:
    """Removes a step; its manifest first, for a folder without one is known to be unfinished."""
    if addresses.remote(folder):
        buckets.remove(_manifest(folder, step))
        return buckets.remove(path(folder, step))
    _manifest(folder, step).unlink(missing_ok=True)
    shutil.rmtree(path(folder, step), ignore_errors=True)


def fault(folder: pathlib.Path, step: int) -> str | None:
    """Returns what is wrong with a step by its manifest, in a few words; None if every bit is what was written."""
    file = _manifest(folder, step)
    if not file.exists():
        return "it has no manifest: its writing was cut short, or goes on"
    if not path(folder, step).is_dir():
        return "its folder is missing"
    try:
        expected = json.loads(file.read_bytes())
        found = _contents(path(folder, step))
    except OSError as error:
        return f"it cannot be read ({error})"
    except ValueError:
        expected = None
    if not isinstance(expected, dict):
        return f"its manifest {file.name} is garbled"
    for name in sorted({*found, *expected}):
        if name not in found:
            return f"its file {name} is missing"
        if name not in expected:
            return f"its file {name} is not in its manifest"
        if found[name] != expected[name]:
            return f"its file {name} is not what was written"
    return None


def intact(
    folder: pathlib.Path, step: int | None = None, say: Callable[[str], None] = print
) -> tuple[int | None, set[int]]:
    """Returns the newest step without a fault, None if nothing is there, and the newer ones that have one.

    `say` is told, a line each, which these are. With `step` that one is looked at instead of the newest.

    Raises ValueError if no step that was finished is without a fault, or `step` is not.
    """
    there = traces(folder)
    if step is not None and step not in there:
        raise ValueError(f"{folder} holds no checkpoint {step}; it holds {', '.join(map(str, there)) or 'none'}")
    faults: dict[int, str] = {}
    for candidate in reversed(there) if step is None else [step]:
        what = fault(folder, candidate)
        if what is None:
            break
        faults[candidate] = what
    else:
        candidate = None
    if candidate is None and step is not None:
        raise ValueError(f"checkpoint {step} in {folder} is damaged: {faults[step]}")
    if candidate is None and steps(folder):
        which = "; ".join(f"{damaged}: {what}" for damaged, what in sorted(faults.items()))
        raise ValueError(f"every checkpoint in {folder} is damaged ({which})")
    instead = "there is none before it" if candidate is None else f"step {candidate} is taken instead"
    for damaged, what in faults.items():
        say(f"checkpoint {damaged} in {folder} is passed over: {what}; {instead}")
    return candidate, set(faults)


def _manifest(folder: pathlib.Path, step: int) -> pathlib.Path:
    return folder / f"{step}.json"


def _names(folder: pathlib.Path) -> set[str]:
    """Returns the names in a folder, those of folders with a slash behind."""
    if addresses.remote(folder):
        parts = [name.partition("/") for name in buckets.contents(folder)]
        return {name + slash for name, slash, _ in parts}
    return {f"{file.name}/" if file.is_dir() else file.name for file in folder.glob("*")}


def _contents(folder: pathlib.Path, sync: bool = False) -> dict[str, list[Any]]:
    """Returns size and SHA-256 of every file by its path; of a bucket's objects the checksum that the bucket keeps."""
    if addresses.remote(folder):
        return buckets.contents(folder)
    contents = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        with open(file, "rb") as stream:
            if sync:
                os.fsync(stream.fileno())
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            contents[file.relative_to(folder).as_posix()] = [stream.tell(), digest]
    return contents


def _sync(directory: pathlib.Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
