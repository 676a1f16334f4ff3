"""Keyframes: prompts and seeds at some frames of an animation, and the values of the frames between them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sdjax import samplers
from sdjax.checks import arguments
from sdjax.checks.arguments import texts, whole
from sdjax.diffusion.guidance import ClassifierFree
from sdjax.diffusion.rules import And
from sdjax.tasks.batch import Batch
from sdjax.tasks.contexts import Prompts

INTERPOLATIONS = ("linear", "spherical")
STRAIGHT = 1e-6  # if the sine of the angle is smaller, a straight line replaces the great circle
MOST_FRAMES = 10_000

Prompted = str | Sequence[str] | Mapping[int, str]  # one, one for each keyframe, or each by its frame's number


def joined_weights(keyed: Prompts) -> np.ndarray:
    """Returns the weights of the prompts that AND joins at each keyframe, [keyframes, prompts]; 0 where one has fewer.

    They are [keyframes, 0] if no keyframe has AND or a weight of the whole prompt.
    """
    weights = [plan.weights for plan in keyed.plans]
    most = 0 if set(weights) == {(1.0,)} else max(map(len, weights))
    return np.array([np.resize([*one, *[0.0] * most], most) for one in weights], np.float32)


def with_weights(batch: Batch, weights: np.ndarray) -> Batch:
    """Returns the batch with each picture's weights of joined prompts, [b, prompts]."""
    count = weights.shape[1]
    if not count or not isinstance(batch.requests[0].guidance, ClassifierFree):
        return batch
    requests = []
    for request, own in zip(batch.requests, weights, strict=True):
        assert isinstance(request.guidance, ClassifierFree)
        rules = (And(own, count), *request.guidance.rules)
        requests.append(dataclasses.replace(request, guidance=dataclasses.replace(request.guidance, rules=rules)))
    out = dataclasses.replace(batch, requests=requests)
    out.streams.update(batch.streams)  # the noise goes on where it is
    return out


def staged(rows: samplers.Rows, stage: np.ndarray) -> samplers.Rows:
    """Returns the rows with the stage of each call of the whole run."""
    return rows._replace(stage=stage[np.minimum(rows.index, len(stage) - 1)])


def check_keyframes(
    prompts: Prompted,
    negative_prompt: str | None | Sequence[str | None],
    seeds: int | None | Sequence[int | None],
) -> tuple[list[str], list[str], list[int]]:
    """Returns lists of prompts, negative prompts and seeds: one of each per keyframe, at least one.

    Raises ValueError if their numbers do not match.
    """
    if isinstance(prompts, Mapping):
        prompts = [prompts[number] for number in numbers_of(prompts) or ()]
    prompts, negatives = texts("prompts", prompts), texts("negative_prompt", negative_prompt, default="")
    each = arguments.seeds(seeds, 1)
    count = max(len(prompts), len(each))
    for name, items in ("prompts", prompts), ("negative prompts", negatives), ("seeds", each):
        if len(items) not in (1, count):
            raise ValueError(f"give 1 or {count} {name}, because there are {count} keyframes; got {len(items)}")
    prompts, negatives = (items * (count // len(items)) for items in (prompts, negatives))
    return prompts, negatives, each * (count // len(each))


def numbers_of(prompts: Prompted) -> list[int] | None:
    """Returns the numbers of the frames that prompts are for, in order; None if they are at equal distances.

    Raises ValueError for what is no number of a frame.
    """
    if not isinstance(prompts, Mapping):
        return None
    if not prompts:
        raise ValueError("at least one prompt is needed, got none")
    return sorted(whole("the number of a prompt's frame", number, 0, MOST_FRAMES - 1) for number in prompts)


def frame_positions(
    count: int, frames: int, *, loop: bool = False, numbers: Sequence[int] | None = None, fewest: int = 2
) -> np.ndarray:
    """Returns the positions of the frames, float64 [frames]: i at keyframe i; `count` is the first one again (`loop`).

    Keyframes are at equal distances, or at the frames `numbers`. Frames before the first and behind the last of these
    are like it, or in a loop between the two. Raises ValueError for fewer keyframes than `fewest`, for fewer frames
    than keyframes, and for keyframes that are not among the frames.
    """
    if count < fewest:
        raise ValueError("an animation needs at least two prompts or two seeds; got one of each")
    if whole("frames", frames, 1, MOST_FRAMES) < count:
        raise ValueError(f"frames is at least the number of keyframes, {count}; got {frames}")
    if numbers is None:
        return np.linspace(0, count, frames, endpoint=False) if loop else np.linspace(0, count - 1, frames)
    if len(numbers) != count:
        raise ValueError(f"give 1 or {len(numbers)} seeds, because {len(numbers)} frames have prompts; got {count}")
    if numbers[-1] >= frames:
        raise ValueError(f"the {frames} frames have the numbers 0 to {frames - 1}; a prompt is for {numbers[-1]}")
    at = np.arange(frames)
    if not loop:
        return np.interp(at, numbers, np.arange(count))
    again = np.where(at < numbers[0], at + frames, at)
    return np.interp(again, [*numbers, numbers[0] + frames], np.arange(count + 1))


def between(keyframes: np.ndarray, positions: np.ndarray, mix: Callable) -> np.ndarray:
    """Returns the values at `positions` in a ring of keyframes, float32 [len(positions), ...], by mix(a, b, share)."""
    count = len(keyframes)
    left = np.floor(positions).astype(int)
    shares = positions - left
    pairs = zip(left, shares, strict=True)
    return np.stack([
        keyframes[i % count] if share == 0 else mix(keyframes[i % count], keyframes[(i + 1) % count], share)
        for i, share in pairs
    ]).astype(np.float32)  # fmt: skip


def straight(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """Returns (1 - share) a + share b."""
    return (1 - share) * a + share * b


def turn(a: np.ndarray, b: np.ndarray, share: float, axis: int | None = None) -> np.ndarray:
    """Returns the spherical interpolation of a and b: `share` of the angle and of the difference in length.

    Unit normal noise stays unit normal; a straight line would shrink it by up to 30 %. With `axis` None each array is
    one vector. If the vectors are parallel or opposite, the result is on the straight line.

    Source: Shoemake 1985, "Animating rotation with quaternion curves", eq. for slerp.
    """
    lengths = [np.sqrt(np.sum(np.square(v, dtype=np.float64), axis, keepdims=True)) for v in (a, b)]
    unit_a, unit_b = (v / np.maximum(length, np.finfo(float).tiny) for v, length in zip((a, b), lengths))
    angle = np.arccos(np.clip(np.sum(unit_a * unit_b, axis, keepdims=True), -1, 1))
    sine = np.sin(angle)
    flat = sine < STRAIGHT
    safe = np.where(flat, 1, sine)
    direction = (np.sin((1 - share) * angle) * unit_a + np.sin(share * angle) * unit_b) / safe
    length = (1 - share) * lengths[0] + share * lengths[1]
    return np.where(flat, straight(a, b, share), length * direction)


def turn_tokens(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """Returns `turn` of each token's vector (the last axis)."""
    return turn(a, b, share, axis=-1)
