"""A run's start model by reference (`model.copy` False): paths and SHA-256 of its files instead of a copy.

`base.json` in the run's folder has an entry for the model and for every part from another file. An entry has the
`path`, the same path `from_here` (relative to the run's folder, so that both can be moved together), and the size and
hash of each file. The files are read completely each time, to compare them: about ten seconds for 4 GB.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from sdjax import errors
from sdjax.config import ConfigError
from sdjax.loading.run_layout import REFERENCE
from sdjax.loading.start_model import ModelSource
from sdjax.nn.parts import SEPARABLE
from sdjax.storage import addresses, buckets, manifest

PLACES = ("path", *SEPARABLE)  # fields of ModelSource that name files
CHANGES = tuple(f"model.{name}" for name in PLACES)
ENDINGS = (".safetensors", ".ckpt", ".gguf", ".bin", ".pt", ".pth", ".th", ".json", ".txt", ".yaml", ".yml")


def keep(folder: pathlib.Path, source: ModelSource) -> None:
    """Writes the reference to the start model into a run's folder."""
    entries = {}
    for name, path in _places(source).items():
        own, given = str(path.absolute()), getattr(source, name)
        if addresses.scheme(given) in addresses.PACKAGES:  # not its local copy: the run may continue on another machine
            own = addresses.address(given)
        apart = addresses.remote(own) or addresses.remote(folder)
        here = own if apart else os.path.relpath(own, folder.absolute())
        entries[name] = {"path": own, "from_here": here, "files": _hash(path)}
    manifest.write_json(folder / REFERENCE, entries)


def find(folder: pathlib.Path, source: ModelSource) -> ModelSource:
    """Returns the source with the present paths of the start model's files.

    Raises ConfigError if a file is missing or has changed.
    """
    entries = _read(folder)
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        if addresses.remote(entry["path"]):
            places = [buckets.fetch(entry["path"])]
        else:
            places = [pathlib.Path(entry["path"]), pathlib.Path(str(folder), entry["from_here"])]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise ConfigError(
                f"the start model of {folder} is gone: {places[0]} is not there; put it back, or write its new path "
                f"as {name}.path into {folder / REFERENCE}"
            )
        _compare(folder, place, entry)
        found[name] = str(place)
    return dataclasses.replace(source, **found)


def move(folder: pathlib.Path, source: ModelSource) -> None:
    """Records new paths of a run's start model. Raises ConfigError unless the same files are there."""
    entries = _read(folder)
    places = _places(source)
    if places.keys() != entries.keys():
        raise ConfigError(f"{folder} was started from {', '.join(entries)} of a model; now it is {', '.join(places)}")
    for name, place in places.items():
        _compare(folder, place, entries[name])
    keep(folder, source)


def _places(source: ModelSource) -> dict[str, pathlib.Path]:
    from sdjax.loading import builtin
    from sdjax.loading.hub import resolve

    named = {name: getattr(source, name) for name in PLACES if getattr(source, name) not in (None, *builtin.NAMES)}
    return {name: pathlib.Path(resolve(path)) for name, path in named.items()}


def _read(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / REFERENCE
    try:
        with errors.doing("reading the path of the start model from", path):
            entries = json.loads(path.read_text())
        return {name: {key: entry[key] for key in ("path", "from_here", "files")} for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(f"{path} is damaged; train in another folder") from None


def _hash(path: pathlib.Path) -> dict[str, list[Any]]:
    """Returns size and SHA-256 of a model's files, by their paths in its folder. A single file has the path "."."""
    parts = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in ENDINGS and p.is_file())
    contents = {}
    for part in parts:
        with errors.doing("reading the start model", part), open(part, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            contents[part.relative_to(path).as_posix()] = [stream.tell(), digest]
    return contents


def _compare(folder: pathlib.Path, place: pathlib.Path, entry: dict[str, Any]) -> None:
    """Raises ConfigError if the files at `place` are not those that the run was started from."""
    sizes = {name: size for name, (size, _) in entry["files"].items()}
    there = {name: (place / name).stat().st_size for name in sizes if (place / name).is_file()}
    found = _hash(place) if there == sizes else None  # if sizes differ, no hash is needed
    if found != entry["files"]:
        raise ConfigError(
            f"{place} is not the model that {folder} was started from (its files have another size or SHA-256 than "
            f"{folder / REFERENCE} says); put the same one back, or train in another folder"
        )
