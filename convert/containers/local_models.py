"""Finds a model on this computer: the file or folder that a path means, or an error that says what to do."""

import difflib
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdjax.convert.containers.diffusers_folder import Weights, find_weights, is_index, substitutes
from sdjax.convert.containers.places import CACHED, SINGLE_FILES, WEIGHTS, cached_repository, exists, read_place
from sdjax.convert.errors import CheckpointError, printable, shown
from sdjax.storage import buckets

MOST_ENTRIES = 10_000  # of a folder that is looked into
_NO_MODELS = re.compile(r"(?i)(optimizer|scheduler|training_args|random_states|rng_state|scaler|extra)\b.*")

Say = Callable[[str], None]


class _Looker:
    """Lists folders, each once, with at most MOST_ENTRIES entries in all. The readers have further limits."""

    def __init__(self) -> None:
        self.left = MOST_ENTRIES
        self.seen: dict[Path, tuple[set[str], set[str]]] = {}

    def __call__(self, folder: Path) -> tuple[set[str], set[str]]:
        """Returns the names of a folder's files and folders; empty sets if it cannot be read."""
        if folder in self.seen:
            return self.seen[folder]
        names: set[str] = set()
        folders: set[str] = set()
        try:
            with os.scandir(folder) as entries:
                for entry in itertools.islice(entries, max(self.left, 0)):
                    self.left -= 1
                    (folders if entry.is_dir() else names).add(entry.name)
        except (OSError, ValueError):
            pass
        self.seen[folder] = names, {name for name in folders if not name.startswith(".")}
        return self.seen[folder]

    def weights(self, folder: Path) -> Weights:
        """Returns the sets of weights in a folder."""
        return find_weights(self(folder)[0])


def local_path(given: Any, *, variant: str | None = None, say: Say | None = None) -> Path:
    """Returns the file or folder of a model on this computer, from any spelling of its place.

    Raises CheckpointError if there is none, and for models that only `sdjax.loading.hub` can fetch.
    """
    place = read_place(given)
    if place.address is not None:
        return fetch_model(place.address, variant=variant, say=say)
    if place.path is None:
        raise CheckpointError(
            "there is no such file or folder, and a repository of the hub is fetched first: "
            "sdjax.loading.hub.resolve(...) returns where it lies then", place.name
        )  # fmt: skip
    return find_local(place.path, variant=variant, say=say)


def fetch_model(address: str, *, variant: str | None = None, say: Say | None = None) -> Path:
    """Returns the path of the local copy of a model in a bucket. Raises CheckpointError if the bucket has none."""
    if buckets.get_size(f"{address}/settings.json") is not None:
        raise CheckpointError("this is the folder of a training: sdjax.load and `sdjax convert` read it", address)
    try:
        found = buckets.fetch(address)
    except FileNotFoundError as error:
        raise CheckpointError(str(error)) from error
    return find_local(found, variant=variant, say=say)


def find_local(path: Path, *, revision: str | None = None, variant: str | None = None, say: Say | None = None) -> Path:
    """Returns the file or folder of the model that a path on this computer means.

    That is the path itself; for a repository's folder in the hub's cache its snapshot, of `revision` if given; for a
    folder that is no model but holds a single one, that one; for a folder's model_index.json the folder. `say` is told
    what was decided.

    Raises CheckpointError where nothing is there, with the nearest name, ValueError for another folder's `revision`.
    """
    say = say or (lambda text: None)
    if not exists(path):
        raise CheckpointError(
            f"there is no such file or folder{nearest(path)}, and it is no hub repository's owner/name", path
        )
    place = _in_cache(path, revision)
    repository = cached_repository(path)
    if place is not None and repository is not None and place.is_dir() and not any(place.iterdir()):
        raise _gone(path, repository)
    if place is None:
        if revision is not None:
            raise ValueError(
                f"revision {revision!r} is for repositories of the hub; {path} is a local path (the hub's own of that "
                "name is hf://OWNER/NAME)"
            )
        place = path
    if place.name == "model_index.json" or is_index(place.name):
        place = place.parent
    look = _Looker()
    if place.is_dir():
        place = _only_model(place, look, say)
    if place.is_dir() and variant is None:
        for text in substitutes(_weights_below(place, look)):
            say(text)
    return place


def holds_model(folder: Path, look: _Looker | None = None) -> bool:
    """Returns whether a folder is a model, a part of one, or a training's, as far as names show."""
    look = look or _Looker()
    names, folders = look(folder)
    own = names & {"model_index.json", "settings.json"} or find_weights(names)
    return bool(own) or any(look.weights(folder / name) for name in folders)


def _in_cache(path: Path, revision: str | None) -> Path | None:
    """Returns the snapshot that the folder of a repository in the hub's cache means; None for another path."""
    repository = cached_repository(path)
    if repository is None:
        return None
    root = next(parent for parent in (path, *path.parents) if CACHED.fullmatch(parent.name))
    inside, own = path.relative_to(root).parts, ("snapshots", "refs", "blobs")
    if (inside and inside[0] not in own) or not any((root / name).is_dir() for name in own):
        return None  # a folder that someone named so
    if inside[:1] == ("snapshots",) and len(inside) > 1 and revision is None:
        return path
    if inside[:1] == ("blobs",):
        if len(inside) > 1 and path.is_file():
            return path
        raise CheckpointError(f"this folder holds the contents of {repository} without their names; name its folder "
                              f"{root / 'snapshots'} or {repository} instead", path)  # fmt: skip
    if inside[:1] == ("refs",) and len(inside) > 1:
        revision = revision or "/".join(inside[1:])
    snapshots = root / "snapshots"
    if revision is not None and (snapshots / revision).is_dir():
        return snapshots / revision
    pointer = root / "refs" / (revision or "main")
    if pointer.is_file() and pointer.stat().st_size <= 100:
        commit = pointer.read_text(errors="replace").strip()
        if re.fullmatch(r"[0-9a-f]{40}", commit) and (snapshots / commit).is_dir():
            return snapshots / commit
    there = sorted(folder for folder in snapshots.iterdir() if folder.is_dir()) if snapshots.is_dir() else []
    if len(there) == 1 and revision is None:
        return there[0]
    if not there or revision is None and pointer.is_file():
        raise _gone(path, repository)
    listed = ", ".join(printable(folder.name) for folder in there[:10])
    raise CheckpointError(f"the hub's cache has several revisions of {repository} here, in {snapshots}: {listed}; name "
                          "the folder of one", path)  # fmt: skip


def _gone(path: Path, repository: str) -> CheckpointError:
    return CheckpointError(f"the hub's cache no longer holds the files of this folder; fetch them again by the name "
                           f"{repository}", path)  # fmt: skip


def _only_model(folder: Path, look: _Looker, say: Say) -> Path:
    """Returns the only model in a folder, the folder itself where it is one or holds none.

    Raises CheckpointError where there are several to choose from.
    """
    if holds_model(folder, look):
        return folder
    names, folders = look(folder)
    cached = sorted(name for name in folders if CACHED.fullmatch(name))
    if len(cached) == 1:  # the hub's cache itself
        return find_local(_chosen(folder, cached, say), say=say)
    if cached:
        listed = ", ".join(cached_repository(Path(name)) or name for name in cached[:10])
        raise CheckpointError(f"this is a cache of the hub; name one of its repositories, {listed}", folder)
    for suffixes in ((".safetensors",), (".ckpt",), WEIGHTS):
        files = sorted(name for name in names if name.lower().endswith(suffixes) and not _NO_MODELS.fullmatch(name))
        if files:
            return _chosen(folder, files, say)
    inside = []
    for name in sorted(folders):
        if holds_model(folder / name, look):
            inside.append(name)
        else:
            files = sorted(look(folder / name)[0])
            inside += [f"{name}/{file}" for file in files if file.lower().endswith(SINGLE_FILES)]
    return _chosen(folder, inside, say) if inside else folder


def _chosen(folder: Path, names: list[str], say: Say) -> Path:
    if len(names) > 1:
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        listed = ", ".join(printable(name) for name in names[:10])
        raise CheckpointError(f"which one? This folder holds {listed}{more}: name one, as {folder / names[0]}", folder)
    say(f"{folder} holds one model, {printable(names[0])}, which was taken")
    return folder / names[0]


def _weights_below(folder: Path, look: _Looker) -> dict[str, Weights]:
    """Returns the sets of weights of a folder's components, as `sdjax.convert.read` finds them."""
    names, folders = look(folder)
    own = find_weights(names)
    if own and "model_index.json" not in names:
        return {"": own}
    below = {name: look.weights(folder / name) for name in sorted(folders)}
    return {name: weights for name, weights in below.items() if weights}


def nearest(path: Path) -> str:
    """Returns what a message says of a path that is missing: where it ends, and the nearest names there."""
    if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]|\\\\", str(path)):
        return " (this is a path of Windows, and this computer runs another system)"
    missing = next(part for part in (*reversed(path.parents), path) if not exists(part))
    notes = [] if missing == path else [f"{printable(str(missing), limit=300)} is not there"]
    names, folders = _Looker()(missing.parent)
    by_case = {name.lower(): name for name in sorted(names | folders)}
    wanted = missing.name.lower()
    near = [name for name in by_case if name.startswith(f"{wanted}.") and name.endswith(WEIGHTS)]
    near += difflib.get_close_matches(wanted, by_case, n=3, cutoff=0.75)
    if near:
        notes.append(f"did you mean {' or '.join(shown(by_case[name]) for name in dict.fromkeys(near))}?")
    return f" ({'; '.join(notes)})" if notes else ""
