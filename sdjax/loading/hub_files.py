"""Chooses the files of a hub repository that form a model. It uses only their names, and does not trust them."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from sdjax.convert.containers.places import SINGLE_FILES, WEIGHTS, is_single_file
from sdjax.convert.errors import CheckpointError, shown
from sdjax.nn.parts import NEEDED_FOLDERS

OWN_SETTINGS, EXTRA = "sdjax_config.json", "extra.safetensors"  # additional files in folders written by sdjax
UNUSED = ("safety_checker",)  # 1.2 GB that loading a model does not need

_FILE = re.compile(r"[A-Za-z0-9_+(),=@ -][A-Za-z0-9._+(),=@ -]*")  # one component of a path: no "..", no wildcard
_LEGAL = re.compile(r"(?i)(license|licence|notice|copying|readme|model_?card)([._-][\w.-]*)?")
_SHARD = re.compile(r"(?P<head>.+?)-\d{5,}-of-(?P<count>\d{5,})(?P<tail>(?:\.[A-Za-z0-9_-]+)?\.(?:safetensors|bin))")


class Choice:
    """The files of a repository to fetch, and the file to open (None: the folder)."""

    def __init__(self, fetched: Sequence[str], opened: str | None = None) -> None:
        self.fetched, self.opened = sorted(set(fetched)), opened


def choose_files(
    repository: str, names: Sequence[str], *, variant: str | None = None, file: str | None = None
) -> Choice:
    """Returns the files of a repository that are needed. Unusual `names` are never chosen, for safety.

    Raises CheckpointError if there is no model, an incomplete one, or more than one to choose from.
    """
    names = sorted(name for name in names if all(_FILE.fullmatch(part) for part in name.split("/")))
    root = [name for name in names if "/" not in name]
    legal = [name for name in root if _LEGAL.fullmatch(name)]
    if file is not None and PurePosixPath(file).name in ("model_index.json", "config.json"):  # of the folder's model
        file = file.rpartition("/")[0] or None
    if file is not None:
        if file in names and file.lower().endswith(WEIGHTS):
            return _single(file, names, legal)
        inside = [name.removeprefix(f"{file}/") for name in names if name.startswith(f"{file}/")]
        if not inside:
            what = "{} is not a checkpoint" if file in names else "the repository has no file {}"
            raise CheckpointError(what.format(shown(file)) + _listed(names), repository)
        chosen = choose_files(f"{repository}/{file}", inside, variant=variant)
        opened = file if chosen.opened is None else f"{file}/{chosen.opened}"
        return Choice([*(f"{file}/{name}" for name in chosen.fetched), *legal], opened)
    if "model_index.json" in root:
        own = [OWN_SETTINGS] if OWN_SETTINGS in root else []
        return Choice(["model_index.json", *own, *legal, *_pipeline(repository, _folders(names), variant)])
    if "config.json" in root and _sets_of_weights({"": root}):
        more = [name for name in names if name == EXTRA or (name.startswith("tokenizer/") and _is_description(name))]
        return Choice(["config.json", *legal, *more, *_chosen_weights(repository, {"": root}, variant)])
    for suffix in SINGLE_FILES:
        files = [name for name in root if name.lower().endswith(suffix)]
        if len(files) == 1:
            return _single(files[0], names, legal)
        if files:
            raise CheckpointError(f"which file? Name one, such as {repository}/{files[0]}{_listed(names)}", repository)
    raise CheckpointError(
        "the repository has neither a model_index.json nor a .safetensors, .ckpt or .gguf file beside it"
        f"{_listed(names)}",
        repository,
    )


def _single(file: str, names: Sequence[str], legal: Sequence[str]) -> Choice:
    # An original ldm YAML may be beside the checkpoint
    beside = PurePosixPath(file).parent
    yaml = [n for n in names if PurePosixPath(n).parent == beside and n.lower().endswith((".yaml", ".yml"))]
    return Choice([file, *yaml, *legal], file)


def _listed(names: Sequence[str]) -> str:
    files = [name for name in names if is_single_file(name)]
    more = f" and {len(files) - 10} more" if len(files) > 10 else ""
    return f"; its files are {', '.join(files[:10])}{more}" if files else ""


def _folders(names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the file names in each folder of a repository, one level deep."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, slash, file = name.rpartition("/")
        if slash and "/" not in folder and folder not in UNUSED:
            folders.setdefault(folder, []).append(file)
    return folders


def _pipeline(repository: str, folders: dict[str, list[str]], variant: str | None) -> list[str]:
    """Returns the weight and description files in a pipeline's folders."""
    weights = _sets_of_weights(folders)
    lacking = [folder for folder in NEEDED_FOLDERS if folder not in weights]
    if lacking:
        raise CheckpointError(
            "it is not a complete Stable Diffusion v1 or v2: no weights (.safetensors or .bin) in "
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
    from sdjax.convert.containers.diffusers_folder import is_index

    return name.endswith((".json", ".txt")) and not is_index(name)


def _sets_of_weights(folders: dict[str, list[str]]) -> dict[str, Any]:
    from sdjax.convert.containers.diffusers_folder import find_weights

    found = {folder: find_weights(set(files)) for folder, files in folders.items()}
    return {folder: sets for folder, sets in found.items() if sets}


def _chosen_weights(repository: str, folders: dict[str, list[str]], variant: str | None) -> list[str]:
    """Returns the weight files that `sdjax.convert.read` chooses, one set per folder."""
    from sdjax.convert.containers.diffusers_folder import choose_weights

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
        raise CheckpointError(f"it lacks some of the files that {index} lists", repository)
    return [index, *shards]
