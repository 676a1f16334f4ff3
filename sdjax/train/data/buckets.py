"""Aspect-ratio buckets: a few sizes of about the same area. Each picture goes into the bucket that fits it best.

So cropping removes little of a picture, and all pictures of a batch have one size. This is the community's rule:
NovelAI's of 2022 (github.com/NovelAI/novelai-aspect-ratio-bucketing), as in kohya-ss/sd-scripts
(library/model_util.py: make_bucket_resolutions).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Size = tuple[int, int]  # width, height


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Buckets with `sizes` (width, height). A picture goes into the bucket with the nearest log aspect ratio.

    With `shrink`, (side, step), it goes into the bucket of its own size instead (`shrunk`).
    """

    sizes: tuple[Size, ...]
    shrink: tuple[int, int] | None = None

    @classmethod
    def square(cls, side: int) -> "Buckets":
        """Returns a single square bucket, for training without buckets."""
        return cls(((side, side),))

    @classmethod
    def around(cls, side: int, *, step: int = 64, sides: tuple[int, int] | None = None) -> "Buckets":
        """Returns `of_area` with the limits `sides` (least, most), by default about half and twice the side."""
        least, most = sides or (max(step, side // 2 // step * step), 2 * side // step * step)
        return cls.of_area(side, step=step, least=least, most=most)

    @classmethod
    def of_area(cls, side: int, *, step: int = 64, least: int = 256, most: int = 1024) -> "Buckets":
        """Returns sizes of at most side * side pixels. Their sides are multiples of `step` from `least` to `most`.

        They are: for every width the largest height that fits, the same turned by 90 degrees, and the square. Raises
        ValueError if no size fits the limits, or if a limit is not a multiple of `step`.
        """
        if step < 8 or step % 8 or any(value < step or value % step for value in (least, most)):
            raise ValueError(
                f"a bucket's step is a multiple of 8, and its limits multiples of the step; got step {step}, "
                f"{least} to {most}"
            )
        if not least <= side <= most:
            raise ValueError(f"a resolution of {side} has no square between the limits {least} and {most}")
        area = side * side
        square = side // step * step
        sizes = {(square, square)} if square >= least else set()
        for width in range(least, most + 1, step):
            height = min(most, area // width // step * step)
            if height >= least:
                sizes |= {(width, height), (height, width)}
        if not sizes:
            raise ValueError(f"no size of {side} x {side} pixels in steps of {step} lies between {least} and {most}")
        return cls(tuple(sorted(sizes)))

    @classmethod
    def of_pictures(cls, widths: np.ndarray, heights: np.ndarray, side: int, *, step: int = 64) -> "Buckets":
        """Returns the sizes that pictures have without being enlarged (`shrunk`). A picture of size 0 is unknown."""
        sizes = shrunk(widths, heights, side, step)[(widths > 0) & (heights > 0)]
        return cls(tuple(sorted({(w, h) for w, h in sizes.tolist()})) or ((side, side),), (side, step))

    def assign(self, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
        """Returns each picture's bucket, as an index into `sizes`; -1 if the picture's size is not known (0).

        It is the bucket with the nearest log aspect ratio. If two are equally near, it is the larger; if their areas
        are equal too, the first.
        """
        if self.shrink is not None:
            places = {size: i for i, size in enumerate(self.sizes)}
            own = shrunk(widths, heights, *self.shrink).tolist()
            known = (widths > 0) & (heights > 0)
            return np.array([places.get((w, h), -1) if k else -1 for (w, h), k in zip(own, known)], np.int32)
        aspect = np.array([math.log(w / h) for w, h in self.sizes])
        area = np.array([w * h for w, h in self.sizes])
        order = np.lexsort((-area, aspect))  # of equal ratios the largest first: the search finds the first
        known = (widths > 0) & (heights > 0)
        with np.errstate(all="ignore"):
            wanted = np.log(np.where(known, widths, 1) / np.where(known, heights, 1))
        numbers = np.empty(len(wanted), np.int32)
        for start in range(0, len(wanted), 65536):  # not all distances of all pictures at once
            distance = np.abs(wanted[start : start + 65536, None] - aspect[order])
            ties = np.isclose(distance, distance.min(1, keepdims=True), rtol=0, atol=1e-9)
            largest = np.where(ties, area[order], 0).argmax(1)
            numbers[start : start + 65536] = order[largest]
        return np.where(known, numbers, -1)

    def merged(self, counts: Sequence[int] | np.ndarray, least: int) -> np.ndarray:
        """Returns the bucket that each bucket's pictures move to, so that no used bucket holds fewer than `least`.

        The smallest bucket moves to the used bucket with the nearest log aspect ratio. This repeats until all are large
        enough or one is left.
        """
        left = np.array(counts, np.int64)
        target = np.arange(len(self.sizes))
        aspect = np.array([math.log(w / h) for w, h in self.sizes])
        while True:
            used = np.flatnonzero(left)
            if len(used) < 2 or left[used].min() >= least:
                return target
            smallest = used[left[used].argmin()]
            others = used[used != smallest]
            nearest = others[np.abs(aspect[others] - aspect[smallest]).argmin()]
            left[nearest] += left[smallest]
            left[smallest] = 0
            target[target == smallest] = nearest


def shrunk(widths: np.ndarray, heights: np.ndarray, side: int, step: int) -> np.ndarray:
    """Returns each picture's size, int [n, 2], that needs no enlarging: multiples of `step`, and at least `step`.

    A picture of more than side * side pixels is shrunk to about that many, so that one of its sides is a multiple of
    `step` and the other loses least. Then both are cut to multiples. Source: kohya-ss/sd-scripts
    (library/train_util.py: BucketManager.select_bucket, --bucket_no_upscale).
    """
    w, h = np.maximum(widths, 1).astype(np.float64), np.maximum(heights, 1).astype(np.float64)
    aspect = w / h

    def cut(x: np.ndarray) -> np.ndarray:
        return np.maximum(np.floor(x + 0.5) // step * step, step)

    wide, high = cut(side * np.sqrt(aspect)), cut(side / np.sqrt(aspect))
    by_width, by_height = wide / cut(wide / aspect), cut(high * aspect) / high  # aspect ratios
    first = np.abs(by_width - aspect) < np.abs(by_height - aspect)
    small = np.stack([np.where(first, wide, high * aspect), np.where(first, wide / aspect, high)], axis=-1)
    large = (w * h > side * side)[:, None]
    return cut(np.where(large, small, np.stack([w, h], axis=-1))).astype(np.int64)
