"""Detailing: makes parts of a picture again at the model's full size, such as faces, and puts them back."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias, Unpack

import numpy as np
from jaxtyping import Bool

from sdjax.checks.arguments import MAX_SEED, is_sequence, whole
from sdjax.checks.notes import note
from sdjax.convert.parts.detector import LoadedDetector
from sdjax.pictures import ndimage
from sdjax.pipeline.model import Pipeline
from sdjax.tasks import detecting, inputs
from sdjax.tasks.batch import Batch
from sdjax.tasks.inpaint import blended, check_method, concatenated, seen
from sdjax.tasks.inputs import Pictures
from sdjax.tasks.make_batch import batch_of, read_options
from sdjax.tasks.request import Each, Options
from sdjax.tasks.session import Making, Session, task

Box: TypeAlias = tuple[int, int, int, int]  # left, top, width, height, in pixels
Parts: TypeAlias = list[Bool[np.ndarray, "h w"]]  # masks of the parts of one picture
MOST = 100  # parts of one picture
LARGEST_GROWTH = 256


@task()
def detail(
    pipe: Pipeline,
    image: Pictures,
    prompt: str | Sequence[str] = "",
    *,
    boxes: Sequence[Box] | Sequence[Sequence[Box]] | None = None,
    masks: Pictures | None = None,
    detector: str | LoadedDetector | None = None,
    confidence: float = 0.3,
    most: int | None = None,
    grow: int = 4,
    padding: int = 32,
    strength: Each[float] = 0.4,
    feather: int = 4,
    method: str | None = None,
    **options: Unpack[Options],
) -> Session:
    """Returns the pictures with their parts made again at the model's size, in the pictures' own sizes.

    The parts are `boxes` (left, top, width, height) in pixels, a list of them for all pictures or one list for each;
    or the connected white parts of `masks`, as for `inpaint`; or what a `detector` finds, a file of YOLOv8's family or
    what `sdjax.convert.load_detector` returns, with at least this `confidence` from 0 to 1. `most` keeps only the
    largest parts of each picture.

    Each part grows by `grow` pixels to all sides. The square around it, with `padding` pixels, is enlarged to the
    model's size and inpainted from its present content at `strength`. It replaces the part, with `feather` pixels of
    transition, and nothing else changes. All parts are made from the original picture. Part k of a picture, counted
    from 0 and from left to right, has the picture's seed + k.

    `method` is that of `inpaint`; `options` are those of `text_to_image`. A `sdjax.checks.notes.Note` warns about
    pictures without parts, which come back unchanged. Raises whatever `inpaint` raises, and ValueError unless boxes,
    masks or a detector are given, for boxes outside of their picture, and for more than 100 parts of a picture.
    """
    method = check_method(pipe.config, method)
    inputs.check_margins(padding=padding, feather=feather)
    grow = whole("grow", grow, 0, LARGEST_GROWTH, unit=" of pixels")
    given = inputs.open_pictures(image)
    parts = [
        _chosen(own, most, grow, number) for number, own in enumerate(_find(given, boxes, masks, detector, confidence))
    ]
    how, requests, of_picture = read_options(prompt, options, len(given))
    every: Sequence[Any] = strength if is_sequence(strength) else [strength]  # type: ignore[assignment]
    strengths = inputs.one_each("strength", list(every), len(requests))
    frames, numbers, shares, own = [], [], [], []  # of each part; `numbers` are those of the results
    for i, (request, share) in enumerate(zip(requests, strengths, strict=True)):
        picture = given[of_picture[i]]
        for k, part in enumerate(parts[of_picture[i]]):
            side = pipe.config.image_size
            frames.append(inputs.make_frame(picture, part, side=side, padding=padding, square=True))
            numbers.append(i)
            shares.append(share)
            own.append(dataclasses.replace(request, seed=(request.seed or 0) + k & MAX_SEED))
    sizes = [frame.repaint.shape for frame in frames]
    batch = batch_of(pipe, own, how, list(range(len(own))), sizes, shares).seeing([seen(one) for one in frames])
    make_latent = {"blend": blended, "concat": concatenated}[method]
    results = [given[i] for i in of_picture]
    unfinished = list(numbers)

    def make(part: Batch) -> Making:
        return part.finish((yield from make_latent(part, [frames[i] for i in part.inputs])))

    def finish(i: int, made: np.ndarray) -> np.ndarray:
        into = numbers[i]
        results[into] = inputs.put_back(frames[i]._replace(picture=results[into]), made, feather=feather)
        unfinished.remove(into)
        return results[into]

    def collect(finished: Sequence[Any]) -> list[np.ndarray | None]:
        return [None if i in unfinished else result for i, result in enumerate(results)]

    return Session(batch, make, finish, collect=collect if how.output == "pixels" else list)


def _find(
    given: Sequence[np.ndarray], boxes: Any, masks: Pictures | None, detector: str | LoadedDetector | None,
    confidence: float,
) -> list[Parts]:  # fmt: skip
    """Returns the parts of each picture. Raises ValueError unless there is one source of them."""
    if sum(one is not None for one in (boxes, masks, detector)) != 1:
        raise ValueError("say what to make again: give boxes, or masks, or a detector, one of these")
    if detector is not None:
        return [detecting.find(detector, picture, confidence) for picture in given]
    if masks is not None:
        return [_connected(mask) for mask in inputs.open_masks(masks, [one.shape[:2] for one in given])]
    lists = list(boxes) if is_sequence(boxes) else []
    if not lists or not all(map(is_sequence, lists)):
        raise ValueError(f"boxes are (left, top, width, height) in pixels, in a list; got {boxes!r}")
    if not all(is_sequence(box) for one in lists for box in one):
        lists = [lists]  # one list for all pictures
    lists = inputs.one_each("list of boxes", lists, len(given))
    return [masks_of(own, picture) for own, picture in zip(lists, given)]


def masks_of(boxes: Sequence[Box], picture: np.ndarray) -> Parts:
    """Returns the masks of boxes. What sticks out of the picture is cut off.

    Raises ValueError for a box that is no four whole numbers, and for one that lies outside of the picture.
    """
    return [_mask_of(box, *picture.shape[:2]) for box in boxes]


def _mask_of(box: Box, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    try:
        left, top, wide, high = (whole("box", side, -(2**15), 2**15) for side in box)
    except (TypeError, ValueError):
        raise ValueError(f"a box is (left, top, width, height), whole numbers of pixels; got {box!r}") from None
    mask = np.zeros((height, width), bool)
    if wide > 0 and high > 0:
        mask[max(top, 0) : max(top + high, 0), max(left, 0) : max(left + wide, 0)] = True
    if not mask.any():
        raise ValueError(f"the box {left}, {top}, {wide}, {high} has no pixel of a picture of {width} x {height}")
    return mask


def _connected(mask: Bool[np.ndarray, "h w"]) -> Parts:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if count > MOST:
        raise ValueError(f"a mask has at most {MOST} white parts; got {count}: fill its gaps, or give boxes")
    return [labels == number for number in range(1, count + 1)]


def _chosen(parts: Parts, most: int | None, grow: int, number: int) -> Parts:
    """Returns the `most` largest parts of picture `number` from left to right, grown. Notes that there are none."""
    if not parts:
        note(f"picture {number} has no part to make again: it comes back unchanged")
    if len(parts) > MOST:
        raise ValueError(f"at most {MOST} parts of a picture are made again; got {len(parts)}")
    if most is not None:
        parts = sorted(parts, key=lambda part: -int(part.sum()))[: whole("most", most, 1)]
    parts = sorted(parts, key=lambda part: (int(part.any(0).argmax()), int(part.any(1).argmax())))
    if not grow:
        return parts
    return [ndimage.binary_dilation(part, np.ones((3, 3), bool), iterations=grow) for part in parts]
