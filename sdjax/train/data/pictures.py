"""Turns a training set's records into arrays: filters, buckets, crops, flips and resizes the pictures."""

import dataclasses
import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image as PillowImage

from sdjax.pictures import METHODS, PictureError, open_mask, open_opacity, open_picture
from sdjax.pictures.hints import PLAIN
from sdjax.preprocessors import checked_options
from sdjax.train.data.buckets import Buckets, Size
from sdjax.train.data.filters import select
from sdjax.train.data.order import Stream
from sdjax.train.data.records import Record, Source, SourceError, place_of
from sdjax.train.data.tags import UNCHANGED, CaptionConfig

CROPS = ("random", "centre")
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
FILES = "files"  # where hints are: beside the pictures


REPEATS = "_repeats"  # a source's column: how often an epoch shows each record, besides its part's `repeats`
NAMED = 5  # files of a notice


class BadPicture(Exception):
    """A picture cannot be trained on; the message says why."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A source's share of a training set.

    `where` is a filter over its columns (see filters.py). `repeats` is how often an epoch shows each of its pictures.
    `weight` replaces it: the part's share of an epoch is then weight / (sum of weights). Either all parts have a weight
    or none. `loss_weight` is the weight of one of its pictures in the loss. `captions` changes its captions.
    """

    source: Source
    where: str | None = None
    repeats: float = 1.0
    weight: float | None = None
    loss_weight: float = 1.0
    captions: CaptionConfig = UNCHANGED

    def __post_init__(self) -> None:
        if not self.repeats > 0 or not (self.weight is None or self.weight > 0):
            raise SourceError(
                f"{self.source.name}: repeats and weight are above 0; got {self.repeats} and {self.weight}"
            )
        if not 0 <= self.loss_weight < math.inf:
            raise SourceError(f"{self.source.name}: loss_weight is 0 or more; got {self.loss_weight}")
        if self.weight is not None and self.repeats != 1:
            raise SourceError(f"{self.source.name}: a part has repeats or a weight, not both")


class Draws(NamedTuple):
    """The random numbers for one showing of a record: four numbers in [0, 1)."""

    across: float
    down: float
    flip: float
    caption: float


def draws(seed: int, key: str, visit: int) -> Draws:
    """Returns the random numbers for the `visit`-th showing of a record. They depend only on the arguments."""
    digest = hashlib.blake2b(f"{seed}/{visit}/{key}".encode("utf-8", "replace"), digest_size=32).digest()
    return Draws(*((np.frombuffer(digest, "<u8") >> np.uint64(11)) * 2.0**-53).tolist())


class Pictures:
    """Pictures of one or several sources for the loader. Each is resized to the size of its bucket.

    Args:
        buckets: the sizes. A bucket with fewer than `least` pictures (the batch size) is merged into the nearest.
        crop: "random", drawn for each showing from the record's key, or "centre".
        flip: the probability that a picture is mirrored, 0 to 1.
        resample: "lanczos", "area" (the mean of the covered pixels) or another of sdjax.pictures.METHODS.
        background: the colour behind transparent pictures, RGB.
        masks: whether masks are read; a picture without one gets a white mask. With "alpha" it gets its opacity: opaque
            is white.
        hints: what a ControlNet sees: "files" beside the pictures, or the name of a preprocessor without weights, which
            makes them of the pictures (`sdjax.pictures.hints.PLAIN`), with `hint_options`.

    `left_out` counts the records that no batch uses, by reason; `notices` says which buckets were merged.
    """

    def __init__(
        self, parts: Sequence[Part], buckets: Buckets, *, least: int = 1, crop: str = "random", flip: float = 0.0,
        resample: str = "lanczos", background: tuple[int, int, int] = WHITE,
        masks: Literal[False, True, "alpha"] = False, hints: str | None = None,
        hint_options: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        if crop not in CROPS or resample not in METHODS or not 0 <= flip <= 1:
            raise SourceError(
                f"crop is one of {', '.join(CROPS)}, resample one of {', '.join(METHODS)} and flip from 0 to 1; got "
                f"{crop!r}, {resample!r} and {flip}"
            )
        self.parts, self.buckets = list(parts), buckets
        self.crop, self.flip, self.resample, self.background = crop, flip, resample, background
        self.masks, self.hints = masks, hints
        self.hint_options = {} if hints in (None, FILES) else checked_hints(hints, hint_options or {})
        self.left_out: Counter[str] = Counter()
        self.notices: list[str] = [
            f"{part.source.name}: {notice}" for part in self.parts for notice in getattr(part.source, "notices", ())
        ]
        again = repeated(self.parts, self.notices)
        taken = [self._taken(part, left) for part, left in zip(self.parts, again)]
        rates = _rates(self.parts, [float(repeats.sum()) for _, _, repeats in taken])
        self.streams = self._streams(taken, rates, least)

    def _taken(self, part: Part, again: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the selected records of a part, their buckets' numbers, and how often each is shown.

        `again` holds the records that belong to another part.
        """
        table = part.source.table
        chosen = np.ones(len(table), bool) if part.where is None else select(part.where, table)
        if not chosen.any():
            raise SourceError(f"{part.source.name}: the filter {part.where!r} takes none of {len(table)} records")
        if part.where is not None:
            self.left_out[f"filtered by {part.where}"] += int((~chosen).sum())
        chosen &= ~again
        numbers = self.buckets.assign(table["width"], table["height"])
        unreadable = np.flatnonzero(chosen & (numbers < 0))
        members = np.flatnonzero(chosen & (numbers >= 0))
        if len(unreadable):
            self.left_out["no picture's head"] += len(unreadable)
            named = self._why(part.source, unreadable)
            if not len(members):
                raise SourceError(
                    f"{part.source.name}: none of {len(unreadable)} files can be read as a picture ({named})"
                )
            self.notices.append(f"left out, as no pictures: {named}")
        repeats = table[REPEATS][members] if REPEATS in table.kinds else np.ones(len(members))
        return members, numbers[members], np.where(np.isnan(repeats), 1.0, repeats)

    def _why(self, source: Source, indices: np.ndarray) -> str:
        """Returns the files of the first bad records, with the reasons."""
        named = []
        for i in indices[:NAMED].tolist():
            try:
                decode(read(source, i).image, self.background)
                named.append(place_of(source, i))
            except BadPicture as error:
                named.append(f"{place_of(source, i)}: {error}")
        more = len(indices) - len(named)
        return "; ".join(named) + (f"; and {more} more" if more else "")

    def _streams(
        self, taken: list[tuple[np.ndarray, np.ndarray, np.ndarray]], rates: list[float], least: int
    ) -> list[Stream]:
        count = len(self.buckets.sizes)
        shown = np.zeros(count)
        for (_, numbers, often), rate in zip(taken, rates):
            shown += np.bincount(numbers, weights=often, minlength=count) * rate
        target = self.buckets.merged(np.floor(shown + 1e-9).astype(np.int64), least)
        for few in np.flatnonzero((target != np.arange(count)) & (shown > 0)):
            old, new = (f"{w} x {h}" for w, h in (self.buckets.sizes[few], self.buckets.sizes[target[few]]))
            self.notices.append(f"{shown[few]:g} pictures for {old} are fewer than {least}, and go to {new}")
        streams = []
        for number, size in enumerate(self.buckets.sizes):
            for part, ((members, numbers, repeats), rate) in enumerate(zip(taken, rates)):
                here = target[numbers] == number
                for often in np.unique(repeats[here]):
                    streams.append(Stream(part, size, members[here & (repeats == often)], rate * float(often)))
        return streams

    def place(self, part: int, index: int) -> str:
        """Returns the place of a record, for messages."""
        return place_of(self.parts[part].source, index)

    def load(self, part: int, index: int, size: Size, visit: int, seed: int) -> dict[str, Any]:
        """Returns `image` uint8 [h, w, 3], `caption` and `key` of a record, and `mask` uint8 [h, w] if asked for.

        If the parts have different loss weights, it also returns `weight`, float32 []. Raises BadPicture.
        """
        record = read(self.parts[part].source, index)
        example = {**self.prepare(record, size, draws(seed, record.key, visit)), "key": record.key}
        example["caption"] = self.parts[part].captions(example["caption"], seed, record.key, visit)
        if any(one.loss_weight != 1 for one in self.parts):
            example["weight"] = np.asarray(self.parts[part].loss_weight, np.float32)
        return example

    def prepare(self, record: Record, size: Size, drawn: Draws) -> dict[str, Any]:
        """Returns a record's picture at a size, and one of its captions. `drawn` chooses crop, flip and caption."""
        pixels = decode(record.image, self.background)
        box = crop_box(pixels.shape[1::-1], size, drawn if self.crop == "random" else None)
        flip = drawn.flip < self.flip
        example: dict[str, Any] = {"image": fit(pixels, size, box, self.resample, flip)}
        example["caption"] = record.captions[int(drawn.caption * len(record.captions))] if record.captions else ""
        if self.masks:
            example["mask"] = self._mask(record, pixels.shape[:2], size, box, flip)
        if self.hints == FILES:
            example["hint"] = self._hint(record, pixels.shape[:2], size, box, flip)
        elif self.hints is not None:
            example["hint"] = PLAIN[self.hints](example["image"], **self.hint_options)
        return example

    def _hint(
        self, record: Record, shape: tuple[int, int], size: Size, box: tuple[float, float, float, float], flip: bool
    ) -> np.ndarray:
        """Returns a record's hint, cropped like its picture. Raises BadPicture if it has none, or of another size."""
        if record.hint is None:
            raise BadPicture("it has no hint: put NAME_hint.png beside NAME.png")
        pixels = decode(record.hint, BLACK)
        if pixels.shape[:2] != shape:
            raise BadPicture(f"its hint is {pixels.shape[1]} x {pixels.shape[0]}, and it is {shape[1]} x {shape[0]}")
        return fit(pixels, size, box, self.resample, flip)

    def _mask(
        self, record: Record, shape: tuple[int, int], size: Size, box: tuple[float, float, float, float], flip: bool
    ) -> np.ndarray:
        """Returns a record's mask or opacity, cropped like its picture; white if the record has none."""
        if record.mask is None and self.masks != "alpha":
            return np.full(size[::-1], 255, np.uint8)
        try:
            pixels = open_opacity(record.image) if record.mask is None else open_mask(record.mask, size=shape).pixels
        except PictureError as error:
            raise BadPicture(f"its mask: {error}") from None
        return fit(pixels, size, box, self.resample, flip)


def checked_hints(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options of a preprocessor. Raises ValueError for a name that is none, or for wrong options."""
    if name not in PLAIN:
        raise ValueError(f'data.hints is "{FILES}" or one of {", ".join(PLAIN)}; got {name!r}')
    return dict(checked_options(name, options))


def crop_box(picture: Size, size: Size, drawn: Draws | None) -> tuple[float, float, float, float]:
    """Returns the largest box of a picture with the aspect ratio of `size`: left, top, right, bottom in pixels.

    It is placed by `drawn`, or in the middle if that is None.
    """
    (w, h), (width, height) = picture, size
    scale = min(w / width, h / height)
    spare_x, spare_y = w - width * scale, h - height * scale
    left, top = (0.5, 0.5) if drawn is None else (drawn.across, drawn.down)
    left, top = left * max(spare_x, 0.0), top * max(spare_y, 0.0)
    return left, top, min(left + width * scale, w), min(top + height * scale, h)


def fit(
    pixels: np.ndarray, size: Size, box: tuple[float, float, float, float], resample: str, flip: bool
) -> np.ndarray:
    """Returns a box of pixels [h, w] or [h, w, 3], resized to (width, height) and mirrored on request.

    It uses Pillow's filters, which use all pixels when they shrink.
    """
    picture = PillowImage.fromarray(pixels)
    if box != (0, 0, *size) or picture.size != size:
        picture = picture.resize(size, METHODS[resample], box)
    made = np.asarray(picture)
    return np.ascontiguousarray(made[:, ::-1]) if flip else made


def decode(data: bytes, background: tuple[int, int, int]) -> np.ndarray:
    """Returns a file's pixels, uint8 [h, w, 3]. Raises BadPicture."""
    try:
        return open_picture(data, background=background).pixels
    except PictureError as error:
        raise BadPicture(str(error)) from None


def read(source: Source, index: int, attempts: int = 3) -> Record:
    """Returns a record. Tries again if reading fails, unless the file does not exist.

    Raises BadPicture.
    """
    for attempt in range(attempts):
        try:
            return source[index]
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise BadPicture(f"the file is not there or not readable ({type(error).__name__})") from None
        except OSError as error:
            if attempt + 1 == attempts:
                raise BadPicture(f"the file cannot be read ({type(error).__name__})") from None
    raise AssertionError


def repeated(parts: Sequence[Part], notices: list[str]) -> list[np.ndarray]:
    """Returns the records of each part that are left out, because another part with the same settings has the file.

    A file in two parts, such as a folder and its subfolder, counts once: in the part with the deeper folder, or else in
    the first part. Parts with different filters, repeats, weights or captions are a mixture on purpose and stay as they
    are. `notices` reports both cases.
    """
    again = [np.zeros(len(part.source), bool) for part in parts]
    known = [getattr(part.source, "identities", None) for part in parts]
    # The part that owns each file, by identity; the deepest folder first
    order = sorted(range(len(parts)), key=lambda i: -len(os.path.realpath(parts[i].source.name).split(os.sep)))
    owners: dict[Any, int] = {}
    shared: Counter[tuple[int, int]] = Counter()
    for i in order:
        for k, identity in enumerate(known[i] or ()):
            owner = i if identity is None else owners.setdefault(identity, i)
            if owner != i:
                shared[owner, i] += 1
                again[i][k] = _alike(parts[owner], parts[i])
    for (owner, i), count in shared.items():
        names = f"{parts[i].source.name} and {parts[owner].source.name}"
        what = "they count once" if _alike(parts[owner], parts[i]) else "they count in both, as both parts say"
        notices.append(f"{count} pictures are in {names}: {what}")
    return again


def _alike(one: Part, other: Part) -> bool:
    """Returns whether two parts have the same settings, so that they are not a mixture on purpose."""
    plain = (None, 1.0, None)
    own = [(part.loss_weight, part.captions, getattr(part.source, "options", None)) for part in (one, other)]
    return own[0] == own[1] and all((part.where, part.repeats, part.weight) == plain for part in (one, other))


def _rates(parts: Sequence[Part], counts: Sequence[float]) -> list[float]:
    """Returns how often an epoch shows each picture of each part. Weights do not change the epoch's length."""
    weights = [part.weight for part in parts if part.weight is not None]
    if not weights:
        return [part.repeats for part in parts]
    if len(weights) != len(parts):
        raise SourceError("either all parts of a training set have a weight, or none")
    return [weight / sum(weights) * sum(counts) / count for weight, count in zip(weights, counts)]
