"""Animation by interpolation: the frames between prompts and seeds, made in batches of one compiled program."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sdjax import samplers
from sdjax.checks import arguments
from sdjax.checks.arguments import flag, number, texts, whole
from sdjax.checks.hints import explains_arguments
from sdjax.checks.notes import note
from sdjax.diffusion.denoiser import Conditioning, check_guidance_scale, check_negatives
from sdjax.nn.jax_settings import pinned
from sdjax.pictures.image import to_uint8
from sdjax.pipeline import cache, placement
from sdjax.pipeline.model import Pipeline, make_keys
from sdjax.prompts.syntax import check_prompts
from sdjax.purpose import check_task
from sdjax.schedule import NoiseSchedule
from sdjax.tasks import generate
from sdjax.typing import Context, Latent, Pixels

INTERPOLATIONS = ("linear", "spherical")
STRAIGHT = 1e-6  # sine of an angle below which a great circle is as good as a straight line


@explains_arguments()
@pinned()
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
    sampler: str | Any = "ddim",
    num_steps: int = 50,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    eta: float | None = None,
    spacing: str | None = None,
    batch: int = 8,
    parallel: placement.Parallel = "jit",
    devices: Sequence[jax.Device] | None = None,
    exact: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Pixels:
    """Returns the frames of an animation, uint8 [frames, height, width, 3], from the first prompt to the last.

    Prompts and seeds are keyframes at equal distances: as many of both, or one of either for all. `loop` goes on from
    the last to the first, which is not repeated. Between two seeds the starting noise is turned on the sphere; between
    two prompts what the text encoder says is mixed as `interpolation` says: "linear", or "spherical", which turns each
    token's vector. `negative_prompt` is one for all or one a keyframe. A keyframe is `text_to_image`'s picture of that
    prompt and seed, unless the sampler adds noise: then every frame is given the first seed's, so that nothing jumps.

    `prompt_strength` below 1 lets the first of the steps, that share of them which it lacks, look at the mean of all
    prompts: the lower, the more alike the frames, and a single seed computes them once. `batch` frames are made at a
    time; `progress(done, total)` counts calls of the network, and the other arguments are those of `text_to_image`.

    Raises ValueError for arguments out of range, else as `text_to_image`.
    """
    cache.enable()
    check_task(pipe.config, "animate")
    height, width = generate.check_size(pipe.config, height, width)
    prompts, negatives, seeds = check_keyframes(prompts, negative_prompt, seeds)
    positions = frame_positions(len(prompts), frames, loop=loop)
    samplers.base.choose("interpolation", interpolation, INTERPOLATIONS)
    sampler = generate.make_sampler(sampler, pipe.schedule, eta=eta, spacing=spacing)
    common, rest = split_steps(sampler, pipe.schedule, num_steps, prompt_strength)
    scale = check_guidance_scale(pipe.config.guidance_scale if guidance_scale is None else guidance_scale)
    batch, loop, exact = whole("batch", batch), flag("loop", loop), flag("exact", exact)
    check_negatives(negatives, scale)
    check_prompts([*prompts, *negatives])
    if len(set(prompts)) == 1:
        for name, value, usual in ("interpolation", interpolation, "linear"), ("prompt_strength", prompt_strength, 1):
            if value != usual:
                note(f"{name} has no effect on one prompt: give several different ones, or leave it out")
    if len(set(zip(prompts, negatives, seeds))) == 1:
        note("all keyframes have the same prompt and seed: every frame is the same picture")
    if batch < 1:
        raise ValueError(f"batch is at least 1; got {batch}")
    mesh = placement.make_mesh(devices)
    batch = placement.padded(min(batch, frames), mesh.size)
    starts = range(0, frames, batch)
    options = {"mesh": mesh, "parallel": parallel}

    def at_keyframes(function: Callable, items: list) -> np.ndarray:
        """Returns the function of every keyframe's item, computed `batch` at a time; once where all are the same."""
        if len(set(items)) == 1:
            items = items[:1]
        parts = [items[i : i + batch] for i in range(0, len(items), batch)]
        out = [np.asarray(function(placement.fill(part, batch)))[: len(part)] for part in parts]
        return np.resize(np.concatenate(out), (len(prompts), *out[0].shape[1:]))

    made: list[np.ndarray] = []
    shared: Latent | None = None  # where the common steps lead, if all frames start alike
    first, last = len(common.timestep) if common else 0, len(rest.timestep)
    alike = len(set(seeds)) == 1
    total = first * (1 if alike else len(starts)) + last * len(starts)
    done = 0

    def sample(rows: samplers.Steps, x: Latent, told: Conditioning, against: Conditioning | None) -> Any:
        nonlocal done
        before = done
        report = None if progress is None else lambda now, _: progress(before + now, total)
        state = pipe.sample(sampler, rows, x, keys, told, against, scale, exact=exact, progress=report, **options)
        done += len(rows.timestep)
        return state

    with generate.advice(height, width, batch, pipe.dtype):
        keys = placement.split(make_keys([seeds[0]] * batch), mesh)
        noise = at_keyframes(lambda s: pipe.noise(make_keys(s), height, width, **options), seeds)
        contexts = [at_keyframes(lambda p: pipe.encode_prompt(p, exact=exact, **options), prompts)]
        if scale != 1:
            contexts.append(at_keyframes(lambda p: pipe.encode_prompt(p, exact=exact, **options), negatives))

        def tell(mix: Callable[[Context], Context]) -> list[Conditioning | None]:
            told = [Conditioning(context=placement.split(mix(context), mesh)) for context in contexts]
            return told if len(told) == 2 else [told[0], None]

        for start in starts:
            # The last frame is made again until the batch is full, so that one program makes every batch
            part = positions[np.minimum(np.arange(start, start + batch), frames - 1)]
            x = sampler.initial(placement.split(between(noise, part, turn), mesh), common or rest)
            if common:
                if shared is None or not alike:
                    mean = tell(lambda c: np.repeat(c.mean(0, keepdims=True), batch, axis=0))
                    shared = sample(common, x, *mean).x
                x = shared
            mix = straight if interpolation == "linear" else turn_tokens
            state = sample(rest, x, *tell(lambda c, part=part, mix=mix: between(c, part, mix)))
            image = np.asarray(pipe.decode(sampler.final(state, rest), **options))[: frames - start]
            generate.check_images(image, pipe.dtype)
            made.append(to_uint8(image))
    return np.concatenate(made)


def check_keyframes(
    prompts: str | Sequence[str],
    negative_prompt: str | None | Sequence[str | None],
    seeds: int | None | Sequence[int | None],
) -> tuple[list[str], list[str], list[int]]:
    """Returns one prompt, one negative prompt and one seed a keyframe, at least one of each.

    Raises ValueError where their numbers do not fit.
    """
    prompts, negatives = texts("prompts", prompts), texts("negative_prompt", negative_prompt, default="")
    seeds = arguments.seeds(seeds, 1)
    count = max(len(prompts), len(seeds))
    for name, items in ("prompts", prompts), ("negative prompts", negatives), ("seeds", seeds):
        if len(items) not in (1, count):
            raise ValueError(f"one or {count} {name}, for there are {count} keyframes; got {len(items)}")
    return *(items * (count // len(items)) for items in (prompts, negatives)), seeds * (count // len(seeds))


def frame_positions(count: int, frames: int, *, loop: bool = False) -> np.ndarray:
    """Returns where the frames lie, float64 [frames]: 0 is the first keyframe, count - 1 the last, count the first.

    Raises ValueError for a single keyframe, which has nothing to move to, or fewer frames than keyframes.
    """
    if count < 2:
        raise ValueError("an animation goes between two prompts or two seeds at least; got one of each")
    if whole("frames", frames, 1) < count:
        raise ValueError(f"frames is at least the number of keyframes, {count}; got {frames}")
    return np.linspace(0, count, frames, endpoint=False) if loop else np.linspace(0, count - 1, frames)


def split_steps(
    sampler: Any, schedule: NoiseSchedule, num_steps: int, strength: float
) -> tuple[samplers.Steps | None, samplers.Steps]:
    """Returns the rows that look at the mean of all prompts, None if there are none, and those that look at their own.

    The second ones begin anew: a multistep method remembers nothing of the first. Raises ValueError for a strength
    outside 0 ... 1, and one below 1 with a sampler that chooses its steps as it goes.
    """
    strength = number("prompt_strength", strength, 0, 1)
    rows = sampler.steps(schedule, num_steps)
    if strength == 1:
        return None, rows
    if not isinstance(sampler.rule, samplers.base.Linear):
        raise ValueError("prompt_strength needs a sampler whose steps are known beforehand; this one is adaptive")
    begin = np.flatnonzero(rows.starts_step)
    # At least one step looks at the frame's own prompt
    cut = begin[min(len(begin) - math.floor(strength * len(begin) + 1e-9), len(begin) - 1)]
    if cut == 0:
        return None, rows
    sigma = sampler.grid(schedule, num_steps).sigma  # a step of a singlestep method is several of these
    rest = sampler.steps(schedule, num_steps, skip=int(np.abs(sigma - rows.sigma[cut]).argmin()))
    # Numbered on, for the number of a row says which noise it draws
    return jax.tree.map(lambda a: a[:cut], rows), rest._replace(index=rest.index + np.int32(cut))


def between(keyframes: np.ndarray, positions: np.ndarray, mix: Callable) -> np.ndarray:
    """Returns what lies at `positions` of a ring of keyframes, float32 [len(positions), ...], by mix(a, b, share)."""
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
    """Returns a turned towards b by that share of the angle between them, its length mixed in proportion.

    Unit normal noise stays so, which a straight line would shrink by up to 30 %. `axis` None takes the arrays as one
    vector each. Where they point the same way, or exactly apart, it is the straight line.

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
    """Returns `turn` of each token's vector, the last axis."""
    return turn(a, b, share, axis=-1)
