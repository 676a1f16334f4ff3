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
from sdjax.checks.arguments import flag, is_sequence, number, shown, whole
from sdjax.checks.notes import note
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import conditionings_of
from sdjax.diffusion.guidance import ClassifierFree, note_unguided
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline
from sdjax.purpose import check_task
from sdjax.samplers.rows import first_sigma
from sdjax.samplers.sampler import choose
from sdjax.schedule import NoiseSchedule
from sdjax.tasks import distilled
from sdjax.tasks.batch import Batch
from sdjax.tasks.clip import clip
from sdjax.tasks.compat import PAIRS, NoiseOptions
from sdjax.tasks.computing import Computing, ComputingOptions
from sdjax.tasks.contexts import Prompts, branch_of, note_prompts
from sdjax.tasks.inputs import Pictures
from sdjax.tasks.keyframe_uses import shares_at, with_uses
from sdjax.tasks.keyframes import (
    INTERPOLATIONS,
    Prompted,
    between,
    check_keyframes,
    frame_positions,
    joined_weights,
    numbers_of,
    staged,
    straight,
    turn,
    turn_tokens,
    with_weights,
)
from sdjax.tasks.make_batch import COMPUTING, batch_of
from sdjax.tasks.motion import MotionLike, read_motion
from sdjax.tasks.request import Each, PromptOptions, Request, SamplingOptions, SizeOptions, is_numbers
from sdjax.tasks.resolve import check_size, resolve
from sdjax.tasks.session import Making, Session, task
from sdjax.typing import Latent

FRAMES, CLIP = 48, 16  # frames of an animation between keyframes, and of a clip


class AnimationOptions(SamplingOptions, PromptOptions, NoiseOptions, SizeOptions, ComputingOptions, total=False):
    """The fields of `Request` and `Computing` that `animate` takes. Each has one value for the whole animation.

    With motion modules they may have one for each frame.
    """


@task()
def animate(
    pipe: Pipeline,
    prompts: Prompted,
    *,
    seeds: int | None | Sequence[int | None] = 0,
    frames: int | None = None,
    loop: bool = False,
    negative_prompt: str | None | Sequence[str | None] = "",
    interpolation: str = "linear",
    prompt_strength: float = 1.0,
    batch: int = 8,
    motion: MotionLike | None = None,
    image: Pictures | None = None,
    strength: Each[float] = 0.75,
    **options: Unpack[AnimationOptions],
) -> Session:
    """Returns the frames of an animation, uint8 [frames, height, width, 3], from the first prompt to the last.

    Prompts and seeds define keyframes at equal distances: give equal numbers of both, or one prompt or one seed for
    all. {0: "a cat", 16: "a dog"} gives each prompt the number of its frame, from 0. `frames` is their number (default:
    48, with motion modules 16). `loop` adds the frames from the last keyframe back to the first, which is not repeated.
    `negative_prompt` is one for all or one per keyframe.

    Between two seeds, the starting noise is interpolated on the sphere. Between two prompts, the encoded text is
    interpolated: "linear", or "spherical" for each token's vector (`interpolation`). A keyframe is the picture that
    `text_to_image` makes of its prompt and seed. If the sampler adds noise, all frames get the noise of the first seed
    instead, so that the pictures do not jump.

    With `prompt_strength` s below 1, the first share 1 - s of the steps uses the mean of all prompts. Lower values make
    the frames more alike; with a single seed these steps are computed only once. `batch` is the number of frames made
    at a time. `options` are those of `text_to_image`, one value for all frames.

    `motion` are AnimateDiff's motion modules, a file or a `sdjax.MotionUse`. All frames are then made together, as one
    clip, in which things move (`sdjax.tasks.clip`): a single prompt and seed do, `options` may have one value for each
    frame, and `image` and `strength` are as for `image_to_image`, one picture for all frames or one for each. Then
    `prompt_strength` and `batch` have no effect, and seeds are one: frame i starts from the noise of seed + i.

    Raises ValueError for arguments out of range, and whatever `text_to_image` raises.
    """
    check_task(pipe.config, "animate")
    if options.get("style_aligned") is not None:
        raise ValueError("style_aligned is for separate pictures, and the frames of an animation are not: leave it out")
    if motion is not None:
        for name, value, usual in ("prompt_strength", prompt_strength, 1), ("batch", batch, 8):
            if value != usual:
                note(f"{name} has no effect with motion modules: leave it out")
        return clip(
            pipe, prompts, seeds, CLIP if frames is None else frames, read_motion(motion, pipe), options, loop=loop,
            negative_prompt=negative_prompt, interpolation=interpolation, image=image, strength=strength,
        )  # fmt: skip
    if image is not None:
        raise ValueError("an animation from pictures needs motion modules: give motion too, or leave image out")
    frames = FRAMES if frames is None else frames
    one_for_all = (*SamplingOptions.__annotations__, *NoiseOptions.__annotations__, *SizeOptions.__annotations__)
    for name in one_for_all:
        of_one = name in ("patches", *PAIRS) or (name == "schedule" and is_numbers(options.get(name)))
        if is_sequence(options.get(name)) and not of_one:
            raise ValueError(f"an animation has one {name}; got {shown(options.get(name))}")
    given: dict[str, Any] = dict(options)
    how = Computing(**{name: value for name, value in given.items() if name in COMPUTING})
    one = Request(**{name: value for name, value in given.items() if name not in COMPUTING})
    check_size(pipe.config, one.height, one.width, windowed=one.window is not None)
    numbers = numbers_of(prompts)
    texts, negatives, seeds = check_keyframes(prompts, negative_prompt, seeds)
    positions = frame_positions(len(texts), frames, loop=loop, numbers=numbers)
    choose("interpolation", interpolation, INTERPOLATIONS)
    own = [
        dataclasses.replace(one, prompt=prompt, negative_prompt=negative, seed=seed, latents=None)
        for prompt, negative, seed in zip(texts, negatives, seeds)
    ]
    resolved = resolve(pipe, own)
    one = distilled.with_defaults(one, pipe.config, resolved[0].adapters)  # prompts may name a distillation's LoRA
    whole_batch = batch_of(pipe, [dataclasses.replace(one, seed=seeds[0])] * frames, how, list(range(frames)))
    whole_batch = with_uses(whole_batch, resolved, shares_at(len(texts), positions))
    request, mesh = whole_batch.requests[0], how.mesh
    start = whole_batch.starts[0]
    assert start.rows is not None
    common, rest = split_steps(request.sampler, request.noise_schedule, request.num_steps, prompt_strength)
    rest = start.rows if common is None else rest
    batch, loop = whole("batch", batch, 1), flag("loop", loop)
    guidance = request.guidance
    ignored = isinstance(guidance, ClassifierFree) and guidance.ignores_negative
    note_unguided(negative_prompt=ignored and any(negatives))
    keyed = Prompts(pipe, resolved, whole_batch.starts[:1] * len(own), how)
    note_prompts(pipe, keyed.requests)
    joined = joined_weights(keyed)
    if len(set(texts)) == 1:
        unused = {"interpolation": interpolation != "linear", "prompt_strength": prompt_strength != 1}
        for name, changed in unused.items():
            if changed:
                note(f"{name} has no effect on one prompt: give several different ones, or leave it out")
    if len(set(zip(texts, negatives, seeds))) == 1:
        note("all keyframes have the same prompt and seed: every frame is the same picture")
    batch = placement.padded(min(batch, frames, how.at_once or batch), placement.parts(mesh))
    # The last batch is padded with copies of the last frame, so that one program makes every batch
    groups = [list(range(start, min(start + batch, frames))) for start in range(0, frames, batch)]
    alike = len(set(seeds)) == 1

    def at_keyframes(function: Callable, items: list) -> np.ndarray:
        """Returns the function of every keyframe's item, computed `batch` at a time, or once if all are the same."""
        if len(set(items)) == 1:
            items = items[:1]
        parts = [items[i : i + batch] for i in range(0, len(items), batch)]
        out = [np.asarray(function(placement.fill(part, batch)))[: len(part)] for part in parts]
        return np.resize(np.concatenate(out), (len(texts), *out[0].shape[1:]))

    @functools.cache
    def keyframes() -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Returns the keyframes' starting noise, the contexts of each branch, and the stage of each call."""
        keys = dataclasses.replace(whole_batch, requests=list(keyed.requests), inputs=seeds, starts=list(keyed.starts))
        noise = at_keyframes(lambda which: keys.part(which).noise(), [seeds.index(seed) for seed in seeds])
        names = conditionings_of(with_weights(whole_batch.part([0]), joined[:1]).guidance)
        return noise, *keyed.keyframes([branch_of(name) for name in names], batch)

    shared: list[Latent] = []  # the latent after the common steps, if all frames start alike

    def make(part: Batch) -> Making:
        noise, contexts, stage = keyframes()
        first = part.inputs[0]  # the frame's number
        at = positions[np.minimum(np.arange(first, first + batch), frames - 1)]
        made = [whole_batch.requests[min(first + i, frames - 1)] for i in range(batch)]
        full = dataclasses.replace(part, requests=made, inputs=[0] * batch, starts=part.starts[:1] * batch)

        def conditionings(mix: Callable[[np.ndarray], np.ndarray]) -> list[Conditioning]:
            scale = full.scale_input
            return [Conditioning(placement.split(mix(context), mesh), guidance_scale=scale) for context in contexts]

        full.noise()  # a tool's generator draws it before the noise of steps
        x = jnp.asarray(start.of_noise * placement.split(between(noise, at, turn), mesh))
        if common:
            if not shared or not alike:
                mean = conditionings(lambda context: np.repeat(context.mean(0, keepdims=True), batch, axis=0))
                mean_of_all = np.full((batch, len(texts)), 1 / len(texts), np.float32)
                weighted = with_weights(with_uses(full, resolved, mean_of_all), mean_of_all @ joined)
                state = yield from weighted.scan([staged(common, stage)] * batch, x, mean, last=False)
                shared[:] = [state.x]
            else:
                full.step_noise([staged(common, stage)] * batch, shared[0])  # a tool's generator goes on behind it
            x = shared[0]
        mix = straight if interpolation == "linear" else turn_tokens
        weighted = with_weights(full, between(joined, at, straight))
        mixed = conditionings(lambda context: between(context, at, mix))
        state = yield from weighted.scan([staged(rest, stage)] * batch, x, mixed)
        return part.finish(request.sampler.final(state, rest) * start.of_result)

    before, after = np.size(common.index) if common else 0, np.size(rest.index)
    calls = [before + after, *[after + (0 if alike else before)] * (len(groups) - 1)]
    return Session(whole_batch, make, groups=groups, calls=calls)


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
