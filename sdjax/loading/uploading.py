"""Uploads models to the Hugging Face hub, as one commit of the files that loading them needs."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdjax.convert.containers.carried import LICENCE
from sdjax.convert.containers.places import CACHED, is_repository
from sdjax.convert.errors import CheckpointError, printable
from sdjax.loading import hub
from sdjax.loading.hub_files import choose_files
from sdjax.loading.model_card import learned_files, licence_texts
from sdjax.loading.run_layout import is_run

CARD = "README.md"
BESIDE = ("safety_checker/", "feature_extractor/")  # of a diffusers folder: other tools need them, loading does not
BESIDE_ENDINGS = (".json", ".safetensors", ".txt")

Content = Path | bytes


class UploadError(OSError):
    """The hub did not take the model. The text is a sentence."""


@dataclasses.dataclass(frozen=True)
class Upload:
    """What is uploaded: (name in the repository, file or content) pairs, without the card."""

    files: tuple[tuple[str, Content], ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by name."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size for name, content in self.files
        }

    def with_card(self, card: str) -> "Upload":
        """Returns it with a card in the place of any other."""
        others = tuple(pair for pair in self.files if pair[0] != CARD)
        return Upload((*others, (CARD, card.encode())))


def check_repository(name: str) -> str:
    """Returns the name of a repository. Raises ValueError unless it is "owner/name"."""
    if not is_repository(name):
        raise ValueError(f"a repository is OWNER/NAME, such as someone/my-model; got {name!r}")
    return name


@contextlib.contextmanager
def gathered(path: Path, variant: str | None = None) -> Iterator[Upload]:
    """Returns a context with the files of a model: a checkpoint's, or what a training made.

    These are the files that `sdjax.load("owner/name")` will fetch, the licence's texts, and a diffusers folder's safety
    checker. Of a training they are its adapter or network, or else the whole trained model, written as a folder in a
    temporary place.

    Raises CheckpointError if there is no model, or a file is a link to another place.
    """
    with _of_model(path, variant) as files:
        names = {name.casefold() for name in files.sizes}
        texts = licence_texts(path, variant).items()
        yield Upload((*files.files, *((name, text.encode()) for name, text in texts if name.casefold() not in names)))


@contextlib.contextmanager
def _of_model(path: Path, variant: str | None) -> Iterator[Upload]:
    """Returns a context with the files of a model, without licences that lie elsewhere."""
    if not is_run(path):
        yield Upload(tuple(_of_file(path) if path.is_file() else _of_folder(path, variant)))
        return
    if learned := learned_files(path):
        yield Upload(tuple((name, path / name) for _, name in learned))
        return
    from sdjax.convert.write.writing import write_bundle
    from sdjax.loading.run_folder import trained

    with tempfile.TemporaryDirectory(prefix="sdjax-push-") as place:
        write_bundle(trained(path)[1], Path(place, "model"), "native")
        yield Upload(tuple(_of_folder(Path(place, "model"), None)))


def _of_file(path: Path) -> Iterator[tuple[str, Content]]:
    yield path.name, path
    settings = f"{path.stem}.yaml"
    names = [name for name in os.listdir(path.parent) if name == settings or LICENCE.fullmatch(name)]
    for name in names:
        _check_inside(path.parent, name)
    yield from ((name, path.parent / name) for name in names if name == settings)


def _of_folder(path: Path, variant: str | None) -> Iterator[tuple[str, Content]]:
    names = [one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file()]
    fetched = choose_files(path.name or "model", names, variant=variant).fetched
    if "model_index.json" in fetched:
        fetched += [name for name in names if name.startswith(BESIDE) and name.endswith(BESIDE_ENDINGS)]
    for name in sorted(set(fetched)):
        _check_inside(path, name)
        yield name, path / name


def _check_inside(folder: Path, name: str) -> None:
    """Raises CheckpointError if a file of a folder is a link out of it, or out of the repository in the hub's cache."""
    inside = folder.resolve()
    cache = next((parent for parent in inside.parents if CACHED.fullmatch(parent.name)), inside)
    if cache not in (folder / name).resolve().parents:
        raise CheckpointError(f"{printable(name)} is a link to a place outside the model; put the file there", folder)


def upload(
    repository: str, files: Upload, *, private: bool = True, revision: str | None = None, message: str = "Upload model"
) -> str:
    """Uploads files as one commit, and returns its address. A new repository is made, `private` or not.

    The visibility of a repository that exists is not changed. The token is that of `hf auth login`, or HF_TOKEN.
    Raises UploadError if the hub does not take the files.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    add = [huggingface_hub.CommitOperationAdd(name, content) for name, content in files.files]
    try:
        if huggingface_hub.get_token() is None:
            raise UploadError(f"nobody is logged in: {LOG_IN}")
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        return str(api.create_commit(repository, add, commit_message=message, revision=revision).commit_url)
    except Exception as error:
        raise UploadError(f"{repository} was not uploaded: {_reason(error, repository)}") from None


LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def _reason(error: Exception, repository: str) -> str:
    """Returns why the hub did not take an upload. A token is never part of it."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    if isinstance(error, UploadError):
        return str(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to use the network"
    if hub.is_unreachable(error):
        return f"{constants.ENDPOINT} cannot be reached"
    status = hub.status_of(error)
    if status == 401:
        return f"{constants.ENDPOINT} does not know the token: {LOG_IN}"
    if status == 403:
        return f"the token may not write there: use one that may, and a repository of your own; {repository} was given"
    if status is not None:
        return f"{constants.ENDPOINT} answered with HTTP status {status}"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    token = huggingface_hub.get_token()
    return printable(line.replace(token, "***") if token else line, limit=300)


def weights_with_code(names: Sequence[str]) -> list[str]:
    """Returns the names of files that other tools read by running what they contain (pickle)."""
    return [name for name in names if name.endswith((".ckpt", ".bin", ".pt", ".pth", ".th"))]
