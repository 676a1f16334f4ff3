"""Finds people in the maps of OpenPose's network of bodies: peaks are joints, and fields of vectors join them to limbs.

Source: Cao et al. 2017 (arXiv 1611.08050), section 2, and controlnet_aux/open_pose/body.py.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sdjax.pictures import ndimage

JOINTS = 18  # nose, neck, right shoulder, elbow, wrist, the left, right hip, knee, ankle, the left, eyes, ears
LIMBS = (  # pairs of joints in the order in which people are put together; the last two only confirm
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17), (2, 16), (5, 17),
)  # fmt: skip
FIELDS = (  # the channel of each limb's field along x; along y is the next
    12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26,
)  # fmt: skip
SIGMA = 3.0  # pixels of blur before peaks are sought
PEAK, ALONG = 0.1, 0.05  # smallest value of a joint's peak, and of a limb's field along a limb ...
POINTS, SHARE = 10, 0.8  # ... at more than this share of so many points along it
FEWEST, WEAKEST = 4, 0.4  # joints of a person, and the mean score of them
MOST_PEOPLE = 30  # the surest ones, so that noise and crowds do not take minutes
MOST = 96  # peaks of a joint that are looked at, the highest ones: noise may have thousands


class Limb(NamedTuple):
    """Two joints, as numbers of peaks, that belong together, and how sure that is."""

    start: int
    end: int
    score: float


@dataclasses.dataclass
class Person:
    """The peak's number of each joint, -1 for joints that were not found; the sum of scores, and how many joints."""

    joints: Int[np.ndarray, "18"]
    score: float
    count: int


Map = Float[np.ndarray, "h w"]


def find_people(joint_map: Callable[[int], Map], field_map: Callable[[int], Map]) -> list[Float[np.ndarray, "18 2"]]:
    """Returns the joints of each of up to MOST_PEOPLE people, (x, y) in pixels; NaN for joints that were not found.

    `joint_map(i)` returns joint i's map in the picture's size, `field_map(i)` channel i of the fields. They are called
    one by one, so that few maps are in memory.
    """
    peaks = [_peaks(joint_map(i)) for i in range(JOINTS)]
    starts = np.cumsum([0, *map(len, peaks)])
    every = np.concatenate(peaks)  # [n, 3]: x, y, score
    people: list[Person] = []
    for number, ((a, b), field) in enumerate(zip(LIMBS, FIELDS)):
        if not (len(peaks[a]) and len(peaks[b])):
            continue
        found = _limbs(peaks[a], peaks[b], field_map(field), field_map(field + 1))
        for limb in found:
            limb = Limb(int(starts[a]) + limb.start, int(starts[b]) + limb.end, limb.score)
            _add(people, limb, a, b, every[:, 2], new=number < len(LIMBS) - 2)
    people = [one for one in people if one.count >= FEWEST and one.score / one.count >= WEAKEST]
    if len(people) > MOST_PEOPLE:
        surest = sorted(range(len(people)), key=lambda i: -people[i].score)[:MOST_PEOPLE]
        people = [people[i] for i in sorted(surest)]
    return [np.where(one.joints[:, None] >= 0, every[one.joints, :2], np.nan) for one in people]


def _peaks(values: Map) -> Float[np.ndarray, "n 3"]:
    """Returns x, y and value of the pixels that are no lower than their four neighbours in the blurred map."""
    blurred = ndimage.gaussian_filter(values.astype(np.float64), SIGMA)  # float32 would make plateaus
    around = np.pad(blurred, 1)
    neighbours = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    is_peak: Bool[np.ndarray, "h w"] = blurred > PEAK
    for other in neighbours:
        is_peak &= blurred >= other
    y, x = np.nonzero(is_peak)
    if len(y) > MOST:
        highest = np.sort(np.argsort(-blurred[y, x], kind="stable")[:MOST])
        y, x = y[highest], x[highest]
    return np.stack([x, y, values[y, x]], -1).astype(np.float64).reshape(-1, 3)


def _limbs(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "m 3"], along_x: Map, along_y: Map) -> list[Limb]:
    """Returns pairs of peaks that the field joins, the surest first; each peak is in one pair at most."""
    vector = b[None, :, :2] - a[:, None, :2]  # [n, m, 2]
    # Not numpy's linspace, whose rounding of the halves depends on whether any of the vectors is 0
    places = a[:, None, None, :2] + np.arange(POINTS)[:, None] * (vector / (POINTS - 1))[:, :, None]
    length = np.maximum(np.hypot(vector[..., 0], vector[..., 1]), 0.001)
    vector = vector / length[..., None]
    x, y = np.rint(places).astype(int)[..., 0], np.rint(places).astype(int)[..., 1]  # [n, m, POINTS]
    values = along_x[y, x] * vector[..., :1] + along_y[y, x] * vector[..., 1:]
    scores = values.mean(-1) + np.minimum(0.5 * along_x.shape[0] / length - 1, 0)
    joined = ((values > ALONG).sum(-1) > SHARE * POINTS) & (scores > 0)
    pairs = np.argwhere(joined)
    pairs = pairs[np.argsort(-scores[joined], kind="stable")]
    limbs: list[Limb] = []
    for i, j in pairs.tolist():
        if all(i != limb.start and j != limb.end for limb in limbs):
            limbs.append(Limb(i, j, float(scores[i, j])))
    return limbs


def _add(people: list[Person], limb: Limb, a: int, b: int, scores: Float[np.ndarray, "n"], *, new: bool) -> None:
    """Adds a limb between the joints a and b to the person that has one of its peaks, or makes a new person of it."""
    owners = [one for one in people if one.joints[a] == limb.start or one.joints[b] == limb.end][:2]
    if len(owners) == 2 and not ((owners[0].joints >= 0) & (owners[1].joints >= 0)).any():
        first, second = owners
        first.joints = np.maximum(first.joints, second.joints)
        first.count += second.count
        first.score += second.score + limb.score
        people[:] = [one for one in people if one is not second]
    elif owners and (len(owners) == 2 or owners[0].joints[b] != limb.end):
        owners[0].joints[b] = limb.end
        owners[0].count += 1
        owners[0].score += float(scores[limb.end]) + limb.score
    elif not owners and new:
        joints = np.full(JOINTS, -1)
        joints[a], joints[b] = limb.start, limb.end
        people.append(Person(joints, float(scores[limb.start] + scores[limb.end]) + limb.score, 2))
