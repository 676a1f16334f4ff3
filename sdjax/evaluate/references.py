"""What pictures are compared with: reference pictures, whose features are computed once, or statistics from a file."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sdjax.evaluate import measuring
from sdjax.evaluate.extractors import Picture
from sdjax.evaluate.making import Folder
from sdjax.evaluate.measuring import Network, Reference
from sdjax.pictures import list_pictures
from sdjax.pictures.opening import open_picture


@dataclasses.dataclass(frozen=True)
class PictureSet:
    """Reference pictures. `identity` names the set; `open` yields its `count` pictures."""

    identity: str
    count: int
    open: Callable[[], Iterator[Picture]]

    def features(self, network: Network, folder: Folder) -> Reference:
        """Returns the network's features of the pictures. The evaluation's folder keeps them."""
        name = f"reference-{hashlib.sha256(self.identity.encode()).hexdigest()[:8]}"
        path, numbers = folder.features(name, network.extract.name), range(self.count)
        found = measuring.read_features(path, numbers, network.identity)
        if found is None:
            found = measuring.extract(network.extract, self.open(), [""] * self.count)
            measuring.save_features(path, found, numbers, network.identity)
        return Reference(found, None, self.identity)


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


def drawn(identity: str, pictures: Sequence[Picture]) -> PictureSet:
    """Returns pictures in memory as a set."""
    return PictureSet(identity, len(pictures), lambda: iter(pictures))
