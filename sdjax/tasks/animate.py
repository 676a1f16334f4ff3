"""Animation: frames interpolated between prompts and seeds, made in batches by one compiled program."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import samplers
from sdjax.checks import arguments
from sdjax.checks.arguments import flag, is_sequence, number, shown, texts, whole
from sdjax.checks.notes import note
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import conditionings_of
from sdjax.diffusion.guidance import ClassifierFree, note_unguided
from sdjax.diffusion.rules import And
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline, make_keys
from sdjax.purpose import check_task
from sdjax.samplers.rows import first_sigma
from sdjax.samplers.sampler import choose
from sdjax.schedule import NoiseSchedule
from sdjax.tasks.batch import COMPUTING, Batch, batch_of
from sdjax.tasks.computing import Computing, ComputingOptions
from sdjax.tasks.contexts import Prompts, branch_of, note_prompts
from sdjax.tasks.request import PromptOptions, Request, SamplingOptions, SizeOptions, is_numbers
from sdjax.tasks.resolve import check_size, resolve
from sdjax.tasks.session import Making, Session, task
from sdjax.typing import Latent

INTERPOLATIONS = ("linear", "spherical")
STRAIGHT = 1e-6  # if the sine of the angle is smaller, a straight line replaces the great circle


class AnimationOptions(SamplingOptions, PromptOptions, SizeOptions, ComputingOptions, total=False):
    """The fields of `Request` and `Computing` that `animate` takes. Each has one value for the whole animation."""


@task()
def animate(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    *,
    seeds: int | None | Sequence[int | None] = 0,
    frames: int = 48,
    loop: bool = False,
    negative_prompt: str | None | Sequence[str | None] = "",
    interpolation: str = "linear",
    prompt_strength: float = 1.0,
    batch: int = 8,
    **options: Unpack[AnimationOptions],
) -> Session:
    """Returns the frames of an animation, uint8 [frames, height, width, 3], from the first prompt to the last.

    Prompts and seeds define keyframes at equal distances: give equal numbers of both, or one prompt or one seed for
    all. `loop` adds the frames from the last keyframe back to the first, which is not repeated. `negative_prompt` is
    one for all or one per keyframe.

    Between two seeds, the starting noise is interpolated on the sphere. Between two prompts, the encoded text is
    interpolated: "linear", or "spherical" for each token's vector (`interpolation`). A keyframe is the picture that
    `text_to_image` makes of its prompt and seed. If the sampler adds noise, all frames get the noise of the first seed
    instead, so that the pictures do not jump.

    With `prompt_strength` s below 1, the first share 1 - s of the steps uses the mean of all prompts. Lower values make
    the frames more alike; with a single seed these steps are computed only once. `batch` is the number of frames made
    at a time. `options` are those of `text_to_image`, one value for all frames.

    Raises ValueError for arguments out of range, and whatever `text_to_image` raises.
    """
    check_task(pipe.config, "animate")
    for name in (*SamplingOptions.__annotations__, *SizeOptions.__annotations__):
        of_one = name == "patches" or (name == "schedule" and is_numbers(options.get(name)))
        if is_sequence(options.get(name)) and not of_one:
            raise ValueError(f"an animation has one {name}; got {shown(options.get(name))}")
    given: dict[str, Any] = dict(options)
    how = Computing(**{name: value for name, value in given.items() if name in COMPUTING})
    one = Request(**{name: value for name, value in given.items() if name not in COMPUTING})
    check_size(pipe.config, one.height, one.width, windowed=one.window is not None)
    prompts, negatives, seeds = check_keyframes(prompts, negative_prompt, seeds)
    positions = frame_positions(len(prompts), frames, loop=loop)
    choose("interpolation", interpolation, INTERPOLATIONS)
    whole_batch = batch_of(pipe, [dataclasses.replace(one, seed=seeds[0])] * frames, how, list(range(frames)))
    request, mesh = whole_batch.requests[0], how.mesh
    common, rest = split_steps(request.sampler, request.noise_schedule, request.num_steps, prompt_strength)
    batch, loop = whole("batch", batch, 1), flag("loop", loop)
    guidance = request.guidance
    ignored = isinstance(guidance, ClassifierFree) and guidance.ignores_negative
    note_unguided(negative_prompt=ignored and any(negatives))
    own = [
        dataclasses.replace(one, prompt=prompt, negative_prompt=negative, seed=seed, latents=None)
        for prompt, negative, seed in zip(prompts, negatives, seeds)
    ]
    keyed = Prompts(pipe, resolve(pipe, own), whole_batch.starts[:1] * len(own), how)
    note_prompts(pipe, keyed.requests)
    joined = joined_weights(keyed)
    if len(set(prompts)) == 1:
        for name, value, usual in ("interpolation", interpolation, "linear"), ("prompt_strength", prompt_strength, 1):
            if value != usual:
                note(f"{name} has no effect on one prompt: give several different ones, or leave it out")
    if len(set(zip(prompts, negatives, seeds))) == 1:
        note("all keyframes have the same prompt and seed: every frame is the same picture")
    batch = placement.padded(min(batch, frames, how.at_once or batch), mesh.size)
    # The last batch is padded with copies of the last frame, so that one program makes every batch
    groups = [list(range(start, min(start + batch, frames))) for start in range(0, frames, batch)]
    alike = len(set(seeds)) == 1

    def at_keyframes(function: Callable, items: list) -> np.ndarray:
        """Returns the function of every keyframe's item, computed `batch` at a time, or once if all are the same."""
        if len(set(items)) == 1:
            items = items[:1]
        parts = [items[i : i + batch] for i in range(0, len(items), batch)]
        out = [np.asarray(function(placement.fill(part, batch)))[: len(part)] for part in parts]
        return np.resize(np.concatenate(out), (len(prompts), *out[0].shape[1:]))

    @functools.cache
    def keyframes() -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Returns the keyframes' starting noise, the contexts of each branch, and the stage of each call."""
        noise = at_keyframes(lambda s: pipe.noise(make_keys(s), *whole_batch.size, **whole_batch.where), seeds)
        names = conditionings_of(with_weights(whole_batch.part([0]), joined[:1]).guidance)
        return noise, *keyed.keyframes([branch_of(name) for name in names], batch)

    shared: list[Latent] = []  # the latent after the common steps, if all frames start alike

    def make(part: Batch) -> Making:
        noise, contexts, stage = keyframes()
        first = part.inputs[0]  # the frame's number
        at = positions[np.minimum(np.arange(first, first + batch), frames - 1)]
        full = dataclasses.replace(part, requests=[request] * batch, inputs=[0] * batch, starts=part.starts[:1] * batch)

        def conditionings(mix: Callable[[np.ndarray], np.ndarray]) -> list[Conditioning]:
            scale = full.scale_input
            return [Conditioning(placement.split(mix(context), mesh), guidance_scale=scale) for context in contexts]

        x = jnp.asarray(request.sampler.initial(placement.split(between(noise, at, turn), mesh), common or rest))
        if common:
            if not shared or not alike:
                mean = conditionings(lambda context: np.repeat(context.mean(0, keepdims=True), batch, axis=0))
                weighted = with_weights(full, np.repeat(joined.mean(0, keepdims=True), batch, axis=0))
                state = yield from weighted.scan([staged(common, stage)] * batch, x, mean, last=False)
                shared[:] = [state.x]
            x = shared[0]
        mix = straight if interpolation == "linear" else turn_tokens
        weighted = with_weights(full, between(joined, at, straight))
        mixed = conditionings(lambda context: between(context, at, mix))
        state = yield from weighted.scan([staged(rest, stage)] * batch, x, mixed)
        return part.finish(request.sampler.final(state, rest))

    before, after = np.size(common.index) if common else 0, np.size(rest.index)
    calls = [before + after, *[after + (0 if alike else before)] * (len(groups) - 1)]
    return Session(whole_batch, make, groups=groups, calls=calls)


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
    return dataclasses.replace(batch, requests=requests)


def staged(rows: samplers.Rows, stage: np.ndarray) -> samplers.Rows:
    """Returns the rows with the stage of each call of the whole run."""
    return rows._replace(stage=stage[np.minimum(rows.index, len(stage) - 1)])


def check_keyframes(
    prompts: str | Sequence[str],
    negative_prompt: str | None | Sequence[str | None],
    seeds: int | None | Sequence[int | None],
) -> tuple[list[str], list[str], list[int]]:
    """Returns lists of prompts, negative prompts and seeds: one of each per keyframe, at least one.

    Raises ValueError if their numbers do not match.
    """
    prompts, negatives = texts("prompts", prompts), texts("negative_prompt", negative_prompt, default="")
    seeds = arguments.seeds(seeds, 1)
    count = max(len(prompts), len(seeds))
    for name, items in ("prompts", prompts), ("negative prompts", negatives), ("seeds", seeds):
        if len(items) not in (1, count):
            raise ValueError(f"give 1 or {count} {name}, because there are {count} keyframes; got {len(items)}")
    prompts, negatives = (items * (count // len(items)) for items in (prompts, negatives))
    return prompts, negatives, seeds * (count // len(seeds))


def frame_positions(count: int, frames: int, *, loop: bool = False) -> np.ndarray:
    """Returns the positions of the frames, float64 [frames]: i at keyframe i; `count` is the first one again (`loop`).

    Raises ValueError for a single keyframe, or for fewer frames than keyframes.
    """
    if count < 2:
        raise ValueError("an animation needs at least two prompts or two seeds; got one of each")
    if whole("frames", frames, 1) < count:
        raise ValueError(f"frames is at least the number of keyframes, {count}; got {frames}")
    return np.linspace(0, count, frames, endpoint=False) if loop else np.linspace(0, count - 1, frames)


def split_steps(
    sampler: Any, schedule: NoiseSchedule, num_steps: int, strength: float
) -> tuple[samplers.Rows | None, samplers.Rows]:
    """Returns the rows for the mean of all prompts (None if there are none), and the rows for each frame's own prompt.

    The second part is a new start: a multistep method does not remember the first part. Raises ValueError for a
    strength outside 0 ... 1, or below 1 with an adaptive sampler.
    """
    strength = number("prompt_strength", strength, 0, 1)
    rows = sampler.steps(schedule, num_steps)
    if strength == 1:
        return None, rows
    if not isinstance(sampler.rule, samplers.Linear):
        raise ValueError("prompt_strength needs a sampler whose steps are known beforehand; this one is adaptive")
    begin = np.flatnonzero(rows.starts_step)
    # At least one step uses the frame's own prompt
    cut = begin[min(len(begin) - math.floor(strength * len(begin) + 1e-9), len(begin) - 1)]
    if cut == 0:
        return None, rows
    sigma = sampler.grid(schedule, num_steps).sigma  # for a singlestep method, one step is several rows
    skip = int(np.abs(sigma - first_sigma(rows)[cut]).argmin())
    if not np.isclose(sigma[skip], first_sigma(rows)[cut], rtol=1e-4):
        # A method with its own sigmas between the grid's ends: its steps do not use earlier ones
        return jax.tree.map(lambda a: a[:cut], rows), jax.tree.map(lambda a: a[cut:], rows)
    rest = sampler.steps(schedule, num_steps, skip=skip)
    # The numbers continue, because the number of a row chooses its noise
    return jax.tree.map(lambda a: a[:cut], rows), rest._replace(index=rest.index + np.int32(cut))


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
