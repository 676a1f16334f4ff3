"""Models of the Hugging Face hub: which of a repository's files to fetch, and where they lie then.

The only module that imports huggingface_hub, whose cache, environment variables (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE,
HF_TOKEN, ...) and resumed transfers are used as they are. No more is fetched than one set of weights.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from sdjax.convert.errors import CheckpointError, printable, shown

SINGLE_FILES = (".safetensors", ".ckpt")  # the first that a repository has is taken
NEEDED = ("unet", "vae", "text_encoder")  # folders without which a pipeline is no Stable Diffusion v1 or v2
UNUSED = ("safety_checker",)  # 1.2 GB that no model here is made of

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_NAME = re.compile(rf"({_PART}/{_PART})(?:/(.+))?")
_FILE = re.compile(r"[A-Za-z0-9_+(),=@ -][A-Za-z0-9._+(),=@ -]*")  # one component of a path: no "..", no wildcard
_LEGAL = re.compile(r"(?i)(license|licence|notice|copying|readme|model_?card)([._-][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(?P<head>.+?)-\d{5,}-of-(?P<count>\d{5,})(?P<tail>(?:\.[A-Za-z0-9_-]+)?\.(?:safetensors|bin))")


def is_hub_name(path: Any) -> bool:
    """Returns whether `path` is "owner/name" of a repository, or "owner/name/FILE", and nothing of that name is here.

    A Path is never one, nor a text that starts with a dot or slash or has two parts and ends as checkpoints do.
    """
    if not isinstance(path, str) or _exists(path):
        return False
    match = _NAME.fullmatch(path)
    if match is None or "--" in match[1] or ".." in match[1] or match[1].endswith(".git"):
        return False
    if any(len(part) > 96 for part in match[1].split("/")):
        return False
    return is_single_file(match[2]) if match[2] else not is_single_file(path)


def is_single_file(name: str) -> bool:
    """Returns whether a file of that name holds a whole model."""
    return name.lower().endswith(SINGLE_FILES)


def resolve(path: str | os.PathLike[str], revision: str | None = None, variant: str | None = None) -> Path:
    """Returns where a model lies: a local path as it is, or what was fetched of a repository "owner/name".

    Of a diffusers repository (model_index.json, or the config.json of one component) that is its folder, with the
    weights that `sdjax.convert.read` would choose for `variant`: safetensors where there are some, .bin where not. Of
    another one it is its only .safetensors file, or its only .ckpt; "owner/name/FILE" names one of several. Small files
    that describe the model come along: configurations, tokenizer, YAML, licence, README.

    `revision` is a branch, tag or commit, by default "main". Without network, what is in the cache is used.

    Raises CheckpointError if it is not there, cannot be reached, is not whole, or needs a permission; ValueError for a
    `revision` of a local path.
    """
    if not is_hub_name(path):
        local = Path(path)
        if not _exists(path):
            raise CheckpointError("there is no such file or folder, and it is no hub repository's owner/name", local)
        if revision is not None:
            raise ValueError(f"revision {revision!r} is for repositories of the hub; {local} is a local path")
        return local
    repository, file = _NAME.fullmatch(path).groups()
    import huggingface_hub

    try:
        names = _list(huggingface_hub, repository, revision)
        online = True
    except Exception as error:
        if not _is_unreachable(error):
            _explain(error, repository, revision)
        names = _list_cached(huggingface_hub, repository, revision, error)
        online = False
    try:
        chosen = choose_files(repository, names, variant=variant, file=file)
    except CheckpointError as error:
        if online:
            raise
        raise CheckpointError(f"{error} (this is what the hub's cache holds; the hub was not reached)") from error
    try:
        # All that was chosen, and where offline no more than a look for it
        folder = Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=chosen.fetched, local_files_only=not online
            )
        )
    except Exception as error:
        _explain(error, repository, revision, begun=online)
    missing = [name for name in chosen.fetched if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"the hub's cache lacks {missing[0]}{more}; fetch it again with network", repository)
    return folder / chosen.opened if chosen.opened else folder


def commit_of(path: str | os.PathLike[str]) -> str | None:
    """Returns the commit that a path which `resolve` fetched belongs to; None for one outside the hub's cache."""
    parts = Path(path).parts
    for before, part in zip(parts, parts[1:]):
        if before == "snapshots" and _COMMIT.fullmatch(part):
            return part
    return None


class Choice:
    """Files of a repository: those to fetch, and the one to open (None: the folder)."""

    def __init__(self, fetched: Sequence[str], opened: str | None = None) -> None:
        self.fetched, self.opened = sorted(set(fetched)), opened


def choose_files(
    repository: str, names: Sequence[str], *, variant: str | None = None, file: str | None = None
) -> Choice:
    """Returns which of a repository's files are needed. `names` are not trusted: odd ones are never chosen.

    Raises CheckpointError if there is no model, not a whole one, or more than one to choose from.
    """
    names = sorted(name for name in names if all(_FILE.fullmatch(part) for part in name.split("/")))
    root = [name for name in names if "/" not in name]
    legal = [name for name in root if _LEGAL.fullmatch(name)]
    if file is not None:
        if file not in names:
            raise CheckpointError(f"the repository has no file {shown(file)}{_listed(names)}", repository)
        return _single(file, names, legal)
    if "model_index.json" in root:
        return Choice(["model_index.json", *legal, *_pipeline(repository, _folders(names), variant)])
    if "config.json" in root and _sets_of_weights({"": root}):
        return Choice(["config.json", *legal, *_chosen_weights(repository, {"": root}, variant)])
    for suffix in SINGLE_FILES:
        files = [name for name in root if name.lower().endswith(suffix)]
        if len(files) == 1:
            return _single(files[0], names, legal)
        if files:
            raise CheckpointError(f"which file? Name one as {repository}/{files[0]}{_listed(names)}", repository)
    raise CheckpointError(
        f"the repository has neither a model_index.json nor a .safetensors or .ckpt file beside it{_listed(names)}",
        repository,
    )


def _single(file: str, names: Sequence[str], legal: Sequence[str]) -> Choice:
    # An original ldm YAML may lie beside the checkpoint
    beside = PurePosixPath(file).parent
    yaml = [n for n in names if PurePosixPath(n).parent == beside and n.lower().endswith((".yaml", ".yml"))]
    return Choice([file, *yaml, *legal], file)


def _listed(names: Sequence[str]) -> str:
    files = [name for name in names if is_single_file(name)]
    more = f" and {len(files) - 10} more" if len(files) > 10 else ""
    return f"; its files are {', '.join(files[:10])}{more}" if files else ""


def _folders(names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the names in a repository's folders, one level deep."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, slash, file = name.rpartition("/")
        if slash and "/" not in folder and folder not in UNUSED:
            folders.setdefault(folder, []).append(file)
    return folders


def _pipeline(repository: str, folders: dict[str, list[str]], variant: str | None) -> list[str]:
    """Returns the weights and descriptions of a pipeline's folders."""
    weights = _sets_of_weights(folders)
    lacking = [folder for folder in NEEDED if folder not in weights]
    if lacking:
        raise CheckpointError(
            "it is not a whole Stable Diffusion v1 or v2: no weights, as .safetensors or .bin, in "
            f"{' and '.join(lacking)}",
            repository,
        )
    needed = _chosen_weights(repository, folders, variant)
    for folder, files in folders.items():
        if folder in weights or any(_is_config(name) for name in files):  # not pictures, not examples
            needed += [f"{folder}/{name}" for name in files if _is_description(name)]
    return needed


def _is_config(name: str) -> bool:
    return name == "config.json" or name.endswith("_config.json")


def _is_description(name: str) -> bool:
    """Returns whether a component's file is small: a configuration, or a part of a tokenizer."""
    from sdjax.convert.folder import is_index

    return name.endswith((".json", ".txt")) and not is_index(name)


def _sets_of_weights(folders: dict[str, list[str]]) -> dict[str, Any]:
    from sdjax.convert.folder import find_weights

    found = {folder: find_weights(set(files)) for folder, files in folders.items()}
    return {folder: sets for folder, sets in found.items() if sets}


def _chosen_weights(repository: str, folders: dict[str, list[str]], variant: str | None) -> list[str]:
    """Returns the files of weights that `sdjax.convert.read` would choose, one set a folder."""
    from sdjax.convert.folder import choose_weights

    needed = []
    for folder, (name, indexed) in choose_weights(_sets_of_weights(folders), variant, repository).items():
        files = _shards(repository, name, folders[folder]) if indexed else [name]
        needed += [f"{folder}/{file}" if folder else file for file in files]
    return needed


def _shards(repository: str, index: str, files: Sequence[str]) -> list[str]:
    """Returns an index's name and its shards', which share their stem, variant and format."""
    suffix = ".safetensors" if ".safetensors." in index else ".bin"
    plain = index.replace(suffix, "").replace(".index", "").removesuffix(".json")  # stem[.variant]
    shards, counts = [], set()
    for name in files:
        match = _SHARD.fullmatch(name)
        if match and match["tail"].endswith(suffix) and match["head"] + match["tail"].removesuffix(suffix) == plain:
            shards.append(name)
            counts.add(int(match["count"]))
    if counts != {len(shards)}:
        raise CheckpointError(f"it does not have all the files that {index} is of", repository)
    return [index, *shards]


def _exists(path: str | os.PathLike[str]) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a null character in the name
        return False


def _list(hub: Any, repository: str, revision: str | None) -> list[str]:
    info = hub.HfApi().model_info(repository, revision=revision)
    return [file.rfilename for file in info.siblings or ()]


def _list_cached(hub: Any, repository: str, revision: str | None, reason: Exception) -> list[str]:
    """Returns the names of a repository's files as far as the cache knows them."""
    try:
        folder = Path(hub.snapshot_download(repository, revision=revision, allow_patterns=[], local_files_only=True))
    except Exception:  # nothing there
        _explain(reason, repository, revision)
    try:
        return [file.path for file in hub.get_cached_repo_tree(repository, revision=revision)]
    except Exception:  # an older huggingface_hub, or a folder that one left
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _is_unreachable(error: Exception) -> bool:
    """Returns whether the hub did not answer, or only to say that it cannot now, as opposed to refusing."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return (_status(error) or 0) >= 500
    # requests' and httpx's errors have no common parent, and which of them huggingface_hub uses depends on its version
    return isinstance(error, (ConnectionError, TimeoutError)) or any(
        kind.__module__.split(".")[0].startswith(("httpx", "requests")) for kind in type(error).__mro__
    )


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _explain(error: Exception, repository: str, revision: str | None, *, begun: bool = False) -> NoReturn:
    """Raises CheckpointError with one sentence for what huggingface_hub raised; its own may name URLs over lines."""
    from huggingface_hub import constants, errors

    named = revision or "main"
    if isinstance(error, errors.GatedRepoError):
        reason = (
            f"the repository is gated: accept its terms at {constants.ENDPOINT}/{repository} and log in with "
            "`hf auth login` (or set HF_TOKEN)"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"the repository has no revision {shown(named)}"
    elif isinstance(error, errors.RepositoryNotFoundError) or _status(error) == 401:
        reason = (
            f"nothing of that name is here or at {constants.ENDPOINT}, or it is private; if so, log in with "
            "`hf auth login` (or set HF_TOKEN)"
        )
    elif isinstance(error, errors.OfflineModeIsEnabled):
        reason = f"revision {shown(named)} is not in the hub's cache, and HF_HUB_OFFLINE forbids fetching it"
    elif begun and (isinstance(error, errors.LocalEntryNotFoundError) or _is_unreachable(error)):
        reason = f"the transfer from {constants.ENDPOINT} broke off; what has come is kept, so try again"
    elif isinstance(error, errors.LocalEntryNotFoundError) or _is_unreachable(error):
        status = f" (HTTP status {_status(error)})" if _status(error) else ""
        reason = f"{constants.ENDPOINT} cannot be reached{status}, and the hub's cache does not hold all of it"
    elif isinstance(error, errors.HfHubHTTPError):
        reason = f"{constants.ENDPOINT} answered with HTTP status {_status(error)}"
    else:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"it cannot be fetched ({printable(lines[0], limit=300)})"
    raise CheckpointError(reason, repository) from error
