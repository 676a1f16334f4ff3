"""Measures sets of pictures: features by network, kept in files, and from these the values with their resamples."""

import contextlib
import dataclasses
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.evaluate import bootstrap, result
from sdjax.evaluate.extractors import Extractor, Picture
from sdjax.evaluate.measures import Features, Measure, Statistics
from sdjax.storage import files

AT_ONCE = 64  # pictures that are in memory at a time


@dataclasses.dataclass(frozen=True)
class Reference:
    """What pictures are compared with, for one network: features, or mean and covariance. `identity` names it."""

    features: Features | None
    statistics: Statistics | None
    identity: str

    def check(self, one: Measure, features: Features) -> None:
        """Raises ValueError if a measure cannot compare such features, of at least one picture, with this reference."""
        _function(one, self)
        for name in one.features:
            width = features[name].shape[1]
            own = self.statistics[0] if self.features is None and self.statistics else (self.features or {})[name][0]
            if own.shape != (width,):
                raise ValueError(
                    f"{one.name} has features of {width} numbers, and {self.identity} has {len(own)}: they are another "
                    "network's"
                )


def extract(extractor: Extractor, pictures: Iterable[Picture], captions: Sequence[str]) -> Features:
    """Returns the features of the pictures, one row a picture."""
    parts: list[Features] = []
    waiting: list[Picture] = []
    done = 0

    def take() -> None:
        nonlocal done
        parts.append(extractor(waiting, captions[done : done + len(waiting)]))
        done += len(waiting)
        waiting.clear()

    for picture in pictures:
        waiting.append(picture)
        if len(waiting) == AT_ONCE:
            take()
    if waiting:
        take()
    if not parts:
        raise ValueError("there are no pictures to measure")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def save_features(path: Path, features: Features, numbers: Sequence[int], identity: str) -> None:
    """Writes features, the numbers of their captions and the network's identity as npz, which NumPy reads."""
    with files.new_file(path, overwrite=True, what="writing the features") as partial, open(partial, "wb") as file:
        arrays = {**features, "_numbers": np.array(numbers, np.int64), "_identity": np.array(identity)}
        np.savez(file, allow_pickle=False, **arrays)


def read_features(path: Path, numbers: Sequence[int], identity: str) -> Features | None:
    """Returns the features of `save_features`; None if the file is missing, damaged, or of other pictures."""
    with _stored(path, numbers, identity) as arrays:
        try:
            return arrays and {name: arrays[name] for name in arrays.files if not name.startswith("_")}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            return None


def holds_features(path: Path, numbers: Sequence[int], identity: str) -> bool:
    """Returns whether the file holds the features of these pictures. They are not read."""
    with _stored(path, numbers, identity) as arrays:
        return arrays is not None


@contextlib.contextmanager
def _stored(path: Path, numbers: Sequence[int], identity: str) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
            arrays = stack.enter_context(np.load(file, allow_pickle=False))
            same = str(arrays["_identity"]) == identity and arrays["_numbers"].tolist() == list(numbers)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            same = False
        yield arrays if same else None


def measure(
    one: Measure, features: Features, reference: Reference | None, *, identity: str, resamples: int
) -> result.Measured:
    """Returns the value of a measure and of its resamples. `identity` is that of the network.

    Raises ValueError if the reference cannot be used for it.
    """
    function, of = _function(one, reference), identity
    if one.needs_reference:
        assert reference is not None  # `_function`
        of = f"{identity}, {reference.identity}"
    own = {name: features[name] for name in one.features}
    samples = bootstrap.resampled(function, own, resamples, distinct=one.of_pairs)
    trials = len(next(iter(own.values()))) if one.counts else None
    return result.measured(
        function(own), samples, title=one.title, lower_is_better=one.lower_is_better, of=of, bounds=one.bounds,
        trials=trials,
    )  # fmt: skip


def _function(one: Measure, reference: Reference | None) -> Callable[[Features], float]:
    if not one.needs_reference:
        return one.against(None)
    if reference is None:
        raise ValueError(f"{one.name} compares with reference pictures: give a reference")
    if reference.features is not None:
        if missing := [name for name in one.features if name not in reference.features]:
            raise ValueError(f"{one.name} needs the features {missing[0]}, which {reference.identity} does not hold")
        kept = {name: reference.features[name] for name in one.features}
        return one.against(kept)
    if one.of_statistics is None or reference.statistics is None:
        raise ValueError(
            f"{one.name} needs the reference's pictures or their features; {reference.identity} has only mean and "
            "covariance"
        )
    return one.of_statistics(reference.statistics)
