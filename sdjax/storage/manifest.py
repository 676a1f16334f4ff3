"""Checkpoint folders and their manifests. A manifest shows damage before the checkpoint is read.

`{step:08d}/` holds the files of a step. Its manifest `{step}.json` has the size and SHA-256 of each file, and is
written last. For files in a bucket, the manifest has the checksums of the bucket, which need no reading.
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
    """Returns the steps with any files, finished or not, oldest first."""
    numbers = [int(name.rstrip("/")) for name in _names(folder) if name.endswith("/") and name[:-1].isdecimal()]
    return sorted({*steps(folder), *numbers})


def write(folder: pathlib.Path, step: int) -> None:
    """Syncs all files of a step to the disk, then writes its manifest."""
    files = path(folder, step)
    contents = _contents(files, sync=True)
    if not addresses.remote(files):
        for directory in (*(file for file in files.rglob("*") if file.is_dir()), files):
            _sync(directory)
    write_json(_manifest(folder, step), contents)


def write_json(file: pathlib.Path, content: Any) -> None:
    """Writes a JSON file. After an interruption the file is either unchanged or complete."""
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    if addresses.remote(file):
        return buckets.put(file, text.encode(), what="writing the record")
    write_file(file, text.encode(), overwrite=True, what="writing the record")
    _sync(file.parent)


def remove(folder: pathlib.Path, step: int) -> None:
    """Removes a step. Its manifest goes first, because a folder without a manifest counts as unfinished."""
    if addresses.remote(folder):
        buckets.remove(_manifest(folder, step))
        return buckets.remove(path(folder, step))
    _manifest(folder, step).unlink(missing_ok=True)
    shutil.rmtree(path(folder, step), ignore_errors=True)


def fault(folder: pathlib.Path, step: int) -> str | None:
    """Returns a few words about the damage of a step, or None if all files match its manifest."""
    file = _manifest(folder, step)
    if not file.exists():
        return "it has no manifest: writing it was interrupted, or is not finished"
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
            return f"its file {name} has changed since it was written"
    return None


def intact(
    folder: pathlib.Path, step: int | None = None, say: Callable[[str], None] = print
) -> tuple[int | None, set[int]]:
    """Returns the newest intact step (None if there are no steps), and the set of newer damaged steps.

    `say` gets one line for each damaged step. `step` checks this step instead of the newest.

    Raises ValueError if all finished steps are damaged, or if `step` is.
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
    instead = "there is none before it" if candidate is None else f"step {candidate} is used instead"
    for damaged, what in faults.items():
        say(f"checkpoint {damaged} in {folder} is skipped: {what}; {instead}")
    return candidate, set(faults)


def _manifest(folder: pathlib.Path, step: int) -> pathlib.Path:
    return folder / f"{step}.json"


def _names(folder: pathlib.Path) -> set[str]:
    """Returns the names in a folder. Names of folders end with a slash."""
    if addresses.remote(folder):
        parts = [name.partition("/") for name in buckets.contents(folder)]
        return {name + slash for name, slash, _ in parts}
    return {f"{file.name}/" if file.is_dir() else file.name for file in folder.glob("*")}


def _contents(folder: pathlib.Path, sync: bool = False) -> dict[str, list[Any]]:
    """Returns size and SHA-256 of every file by its path. For objects in a bucket it is the bucket's checksum."""
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
