"""Aspect-ratio buckets: a few sizes of about one area, and the one that suits each picture.

The community's rule, NovelAI's of 2022 (github.com/NovelAI/novelai-aspect-ratio-bucketing) as kohya-ss/sd-scripts has
it (library/model_util.py: make_bucket_resolutions): so a picture loses little of itself to cropping, and all pictures
of a batch have one size.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Size = tuple[int, int]  # width, height


@dataclasses.dataclass(frozen=True)
class Buckets:
    """`sizes`, as (width, height); a picture goes into the one of nearest log aspect ratio."""

    sizes: tuple[Size, ...]

    @classmethod
    def square(cls, side: int) -> "Buckets":
        """Returns the one bucket of training without buckets."""
        return cls(((side, side),))

    @classmethod
    def around(cls, side: int, *, step: int = 64, sides: tuple[int, int] | None = None) -> "Buckets":
        """Returns `of_area` with limits of about half and twice the side, or with `sides` as least and most."""
        least, most = sides or (max(step, side // 2 // step * step), 2 * side // step * step)
        return cls.of_area(side, step=step, least=least, most=most)

    @classmethod
    def of_area(cls, side: int, *, step: int = 64, least: int = 256, most: int = 1024) -> "Buckets":
        """Returns the sizes of at most side * side pixels, sides multiples of `step` from `least` to `most`.

        For every width the largest height that fits, each also turned by 90 degrees; and the square. Raises ValueError
        for limits that no size fits, or that are no multiples of `step`.
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

    def assign(self, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
        """Returns the bucket's number for each picture, -1 for one whose size is not known (0).

        The bucket of nearest log aspect ratio, the larger of two that are equally near, the first of two of one area.
        """
        aspect = np.array([math.log(w / h) for w, h in self.sizes])
        area = np.array([w * h for w, h in self.sizes])
        order = np.lexsort((-area, aspect))  # of one ratio the largest first, which is the one that is found
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
        """Returns where each bucket's pictures go, so that no bucket in use holds fewer than `least`.

        The smallest bucket is emptied into the nearest in log aspect ratio that is in use, until all are large enough
        or one is left.
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
