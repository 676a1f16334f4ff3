"""What pictures are compared with: reference pictures, whose features are computed once, or statistics from a file."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from sdjax.errors import printable
from sdjax.evaluate import distances, measuring, statistics
from sdjax.evaluate.extractors import Extractor, Picture
from sdjax.evaluate.making import Folder
from sdjax.evaluate.measures import Features
from sdjax.evaluate.measuring import Reference
from sdjax.pictures import list_pictures
from sdjax.pictures.opening import open_picture

POOLED = ("pool", "class", "image", "latent")  # what a file's features without a name may be

DISTRIBUTED = ("pool", "class", "latent")  # the features that Fréchet distances are of; a network has one of them


class ReferenceSet(Protocol):
    """What pictures are compared with, for any network."""

    def features(self, extractor: Extractor, folder: Folder | None) -> Reference:
        """Returns the reference for a network. `folder` keeps what was computed."""


@dataclasses.dataclass(frozen=True)
class PictureSet:
    """Reference pictures. `identity` names the set; `open` yields its `count` pictures."""

    identity: str
    count: int
    open: Callable[[], Iterator[Picture]]

    def features(self, extractor: Extractor, folder: Folder | None) -> Reference:
        """Returns the network's features of the pictures."""
        name, numbers = f"reference-{hashlib.sha256(self.identity.encode()).hexdigest()[:8]}", range(self.count)
        path = None if folder is None else folder.features(name, extractor.name)
        found = None if path is None else measuring.read_features(path, numbers, extractor.identity)
        if found is None:
            found = measuring.extract(extractor, self.open(), [""] * self.count)
            if path is not None:
                _save_statistics(path, found)
                measuring.save_features(path, found, numbers, extractor.identity)
        return Reference(found, None, self.identity)


def _save_statistics(path: Path, features: Features) -> None:
    """Writes mean and covariance beside a file of features, NETWORK-statistics.npz, as other tools read them."""
    for name in DISTRIBUTED:
        if name in features and len(features[name]) > 1:
            moments = distances.mean_and_covariance(features[name])
            statistics.save_statistics(path.with_name(f"{path.stem}-statistics.npz"), *moments, overwrite=True)


@dataclasses.dataclass(frozen=True)
class StatisticsFile:
    """An npz file of mean and covariance, of clean-fid's features, or of an evaluation's features.

    It does not say which network it is of, so `Reference.check` compares the width.
    """

    path: Path
    identity: str

    def features(self, extractor: Extractor, folder: Folder | None) -> Reference:
        """Returns what the file holds. Raises ValueError for a file that holds neither."""
        names = statistics.names_in(self.path)
        if "mu" in names:
            return Reference(None, statistics.read_statistics(self.path), self.identity)
        if "feats" in names:
            rows = statistics.read_features(self.path)
            return Reference(dict.fromkeys(POOLED, rows), None, self.identity)
        own = {name: statistics.read_array(self.path, name, 2) for name in names if not name.startswith("_")}
        return Reference(own, None, self.identity)


def open_reference(path: str | os.PathLike[str]) -> ReferenceSet:
    """Returns the reference in a folder of pictures, or in an npz file.

    Raises ValueError or OSError, in one sentence, for anything else.
    """
    path = Path(path)
    if path.is_dir():
        return pictures_of(path)
    if path.suffix.casefold() != ".npz":
        raise ValueError(f"{printable(path)} is neither a folder of pictures nor an .npz file of their statistics")
    statistics.names_in(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return StatisticsFile(path, f"{path.name} ({digest[:16]})")


def pictures_of(path: str | os.PathLike[str]) -> PictureSet:
    """Returns the pictures of a folder. Its identity is that of the files' names and sizes.

    Raises PictureError if there are none, OSError if the folder cannot be read.
    """
    paths = list_pictures(path)
    digest = hashlib.sha256()
    for one in paths:
        digest.update(json.dumps([one.name, one.stat().st_size]).encode())
    identity = f"{len(paths)} pictures of {Path(path).resolve().name} ({digest.hexdigest()[:16]})"
    return PictureSet(identity, len(paths), lambda: (open_picture(one).pixels for one in paths))
