"""All measures that a model can be judged by, and the networks that they need: from files, or the model's own.

`sdjax.evaluate` knows the measures of published networks; those of the built-in model's reader are known to training.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from sdjax.evaluate import autoencoder, references
from sdjax.evaluate.autoencoder import FD_AUTOENCODER, AutoencoderFeatures
from sdjax.evaluate.extractors import EXTRACTORS, Extractor, Picture, load_extractor
from sdjax.evaluate.measures import MEASURES, Measure
from sdjax.evaluate.measuring import Reference
from sdjax.evaluate.references import PictureSet, ReferenceSet
from sdjax.pipeline.model import Pipeline
from sdjax.spelling import meant
from sdjax.train.builtin import emoji, judging
from sdjax.train.builtin.judging import READER_ACCURACY, ReaderFeatures

BUILTIN = "builtin"  # in place of a file: captions, and real pictures, of the built-in model
COUNT, REAL = 200, 1000  # how many of them
ALL: Mapping[str, Measure] = {
    READER_ACCURACY.name: READER_ACCURACY, **MEASURES, FD_AUTOENCODER.name: FD_AUTOENCODER,
}  # fmt: skip
FILES = tuple(dict.fromkeys(name for kind in EXTRACTORS.values() for name in kind.files))
"""The names of networks' files, such as "inception"."""


def choose(
    wanted: Sequence[str] | None, files: Collection[str], *, reference: bool, builtin: bool
) -> list[Measure]:  # fmt: skip
    """Returns the wanted measures; for None all that can be computed.

    `files` names the networks' files that are given, `reference` says whether there is a reference, `builtin` whether
    captions are those that the built-in model's reader understands.

    Raises ValueError for an unknown name, and for a measure whose file or reference is missing.
    """
    if wanted is None:
        found = [one for one in ALL.values() if _lacking(one, files, reference, builtin) is None]
        if not found:
            raise ValueError(
                "there is nothing to measure: name reference pictures, or files of networks "
                f"({', '.join(FILES)}), such as those of FID's Inception and CLIP"
            )
        return found
    chosen = []
    for name in dict.fromkeys(wanted):
        if name not in ALL:
            raise ValueError(f"there is no measure {name!r}{meant(name, ALL)}; the known ones are {', '.join(ALL)}")
        lacking = _lacking(ALL[name], files, reference, builtin)
        if lacking is not None:
            raise ValueError(f"{name} needs {lacking}")
        chosen.append(ALL[name])
    return chosen


def _lacking(one: Measure, files: Collection[str], reference: bool, builtin: bool) -> str | None:
    """Returns what a measure needs and what is not given; None if nothing is missing."""
    if one.extractor == judging.NAME:
        return None if builtin else "captions of the built-in model, which its reader understands"
    if one.extractor != autoencoder.NAME:
        kind = EXTRACTORS[one.extractor]
        missing = [name for name in kind.files if name not in files]
        if missing:
            return f"the file of {kind.title}, {missing[0]} (--{missing[0]} FILE on the command line)"
    return "reference pictures (--reference on the command line)" if one.needs_reference and not reference else None


def load_networks(
    measures: Sequence[Measure], files: Mapping[str, str | os.PathLike[str]], pipe: Pipeline, font: str | None = None
) -> dict[str, Extractor]:
    """Returns the networks of the measures by name. `pipe` has the autoencoder, `font` draws the reader's sprites.

    Raises CheckpointError for a file that is not the network, FileNotFoundError if there is no font.
    """
    found: dict[str, Extractor] = {}
    for name in dict.fromkeys(one.extractor for one in measures):
        if name == judging.NAME:
            found[name] = ReaderFeatures(sprites(pipe.config.image_size, font))
        elif name == autoencoder.NAME:
            # Without the other networks, which a comparison of two models would keep in memory
            found[name] = AutoencoderFeatures(dataclasses.replace(pipe, params={"vae": pipe.params["vae"]}))
        else:
            found[name] = load_extractor(name, {file: files[file] for file in EXTRACTORS[name].files})
    return found


def open_reference(path: str | None, *, builtin: bool, font: str | None = None) -> ReferenceSet | None:
    """Returns the reference of a path (`sdjax.evaluate.references.open_reference`); None for None.

    "builtin", and None with captions of the built-in model, are pictures as that model was trained on.
    """
    if path not in (None, BUILTIN):
        assert path is not None  # mypy
        return references.open_reference(path)
    if path is None and not builtin:
        return None
    emoji.find_font(font)

    def draw() -> Iterator[Picture]:
        return iter(judging.real_pictures(sprites(64, font), REAL))

    return PictureSet(f"{REAL} real pictures", REAL, draw)


def fitting(
    measures: Sequence[Measure], networks: Mapping[str, Extractor], references: Mapping[str, Reference],
    leave_out: Callable[[str], None] | None = None,
) -> list[Measure]:  # fmt: skip
    """Returns the measures that can use the references; a file of statistics is not enough for all of them.

    `leave_out` gets a sentence about each other one. Without it ValueError is raised.
    """
    grey = [np.full((64, 64, 3), 128, np.uint8)]
    found = []
    for one in measures:
        if one.needs_reference:
            try:
                references[one.extractor].check(one, networks[one.extractor](grey, [""]))
            except ValueError as error:
                if leave_out is None:
                    raise
                leave_out(f"{error}: {one.name} is left out")
                continue
        found.append(one)
    return found


@functools.lru_cache(1)
def sprites(side: int, font: str | None = None) -> emoji.Sprites:
    """Returns the sprites for pictures of this side. Raises FileNotFoundError if there is no font."""
    return emoji.Sprites.render(side, font)
