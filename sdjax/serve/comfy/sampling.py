"""Sampling as ComfyUI's sampler nodes do it, by the pipeline's primitives.

Each entry of a conditioning is a branch of guidance. Several on one side are averaged by `Parts`, and an area is a
rectangle that the network sees alone (`sdjax.diffusion.areas`). So combining, areas, masks and spans of the schedule
are one mechanism.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.adapters.hypernetwork import Hypernetworks, Strengths
from sdjax.adapters.lora import LoRA
from sdjax.adapters.patch import Patch
from sdjax.adapters.spans import Run as PatchRun
from sdjax.diffusion.conditioning import Conditioning as Branch
from sdjax.diffusion.constraint import Held
from sdjax.diffusion.denoiser import conditionings_of
from sdjax.diffusion.guidance import ClassifierFree, Guidance, Rule, make_guidance
from sdjax.diffusion.rules.parts import SIDES, Parts, names_of
from sdjax.nn.jax_settings import pinned
from sdjax.nn.layers.interpolation import interpolate
from sdjax.noise import SOURCES, PictureNoise
from sdjax.noise.batches import comfyui_noise
from sdjax.pipeline.model import Pipeline, make_keys
from sdjax.pipeline.preview import preview
from sdjax.samplers import Start, repeat
from sdjax.samplers.tools import comfyui_percent_to_sigma
from sdjax.schedule import NoiseSchedule
from sdjax.serve.comfy import controls
from sdjax.serve.comfy.entries import both_sides, on_latent, place_of, weight_of
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.network_inputs import concat_of, label_of
from sdjax.serve.comfy.values import Conditioning, Entry, Latent, Model, SamplerChoice
from sdjax.tasks.adapter_spans import arrays as adapter_arrays
from sdjax.tasks.combinations import check_places
from sdjax.tasks.noise import step_noise
from sdjax.typing import Latent as LatentArray

SOURCE = "comfyui_cuda"  # whose noise a seed gives: that of ComfyUI on a GPU
COPIES = ("perturbed", "smoothed")  # branches of guidance that have the positive conditioning
MOST_ENTRIES = 64  # of a conditioning


class Sampled(NamedTuple):
    """The result of sampling: the latent, and the network's last answer."""

    latent: LatentArray
    x0: LatentArray


@pinned()
def sample(
    run: Run,
    model: Model,
    positive: Conditioning,
    negative: Conditioning | None,
    *,
    scale: float,
    latent: Latent,
    sampler: SamplerChoice,
    start: Start,
    noise_seed: int | None,
    step_seed: int,
) -> Sampled:
    """Returns what sampling makes of a latent from a `start` on. `noise_seed` None adds no noise before it.

    `step_seed` is the seed of the noise that is added in steps. Raises ValueError for
    conditionings that this model has no use for.
    """
    pipe, x0 = model.pipe, jnp.asarray(latent.samples, jnp.float32)
    b, height, width, _ = x0.shape
    if start.rows is None:
        return Sampled(x0, x0)
    rows = start.rows
    noise = np.zeros(x0.shape, np.float32) if noise_seed is None else starting_noise(noise_seed, latent)
    schedule = sampler.recipe().noise_schedule(pipe.schedule, zero_terminal_snr=model.zero_terminal_snr)
    one_side = on_latent(positive, height, width)
    sides = (one_side, []) if negative is None else both_sides(one_side, on_latent(negative, height, width))
    if max(map(len, sides)) > MOST_ENTRIES:
        raise ValueError(f"a conditioning has at most {MOST_ENTRIES} entries; got {max(map(len, sides))}")
    uses = sampler.recipe().sampler.uses_unconditional
    if not (uses or scale != 1 or any(rule.needs_unconditional for rule in model.rules)):
        sides = (sides[0], [])
    own = [*_parts(sides, (height, width), schedule), *model.rules]
    for rule in own:
        rule.check(pipe.config.unet)
    both = bool(sides[1])
    guidance = make_guidance(scale if both else 1.0, rules=own, needs_unconditional=both and uses)
    names = conditionings_of(guidance)
    entries = {
        name: entry for side, found in zip(SIDES, sides) for name, entry in zip(names_of(side, len(found)), found)
    }
    if model.empty:
        entries["empty"] = model.empty[0]
    chosen = [entries.get(name, one_side[0]) for name in names]
    for name in names:
        if name not in entries and (len(sides[0]) > 1 or name not in COPIES):
            raise ValueError(f"the branch {name!r} of guidance needs one conditioning without areas and masks")
    check_places(model.patches, own)
    patches, shared, per_branch = _patches(model, chosen, rows, schedule, (b, height, width), step_seed)
    mask = None if latent.mask is None else _mask(latent.mask, b, height, width)
    branches = [
        Branch(
            context=jnp.repeat(jnp.asarray(entry.context, jnp.float32), b, axis=0),
            concat=concat_of(pipe, entry, x0, mask),
            label=label_of(pipe, entry, b),
            guidance_scale=None if pipe.config.unet.guidance_dim is None else jnp.full((b,), scale, jnp.float32),
            patches=arrays,
        )
        for entry, arrays in zip(chosen, per_branch)
    ]
    x = start.of_x0 * x0 + start.of_noise * jnp.asarray(noise)
    known = None if mask is None else Held(x0, mask, jnp.asarray(noise))
    final = _scan(
        run, pipe, rows, x, branches, guidance, sampler=sampler, known=known, seed=step_seed,
        patches=patches, shared=shared, areas=_areas(guidance, entries, own),
    )  # fmt: skip
    out = sampler.recipe().sampler.final(final, repeat(rows, b))
    if start.as_it_is:
        out = out * start.of_result
    return Sampled(out, final.x0)


def _scan(run: Run, pipe: Pipeline, rows: Any, x: LatentArray, branches: Sequence[Branch], guidance: Guidance, *,
          sampler: SamplerChoice, known: Held | None, seed: int, **network: Any) -> Any:  # fmt: skip
    """Returns the sampler's state after all rows."""
    b, h, w, c = x.shape
    streams = [PictureNoise(SOURCES[SOURCE], seed, (c, h, w), place=(k, b)) for k in range(b)]
    made = step_noise([rows] * b, streams, [_no_grid] * b)
    keys = make_keys([(seed + k) % 2**64 for k in range(b)])
    total = np.size(rows.index)
    run.progress(0, total)
    state = None
    for done, state in pipe.sampling(
        sampler.recipe().sampler.rule, repeat(rows, b), x, keys, branches, guidance, known=known, made=made, **network
    ):
        jax.block_until_ready(state)
        run.progress(min(done, total), total)
        if done < total:
            now = state
            run.preview(lambda now=now: preview(pipe, now.x0[:1])[0])  # type: ignore[misc]
    return state


def _no_grid() -> Any:
    raise AssertionError("this source of noise spans only the steps that are run")


def starting_noise(seed: int, latent: Latent) -> np.ndarray:
    """Returns ComfyUI's noise of a batch of latents, unit normal."""
    b, h, w, c = latent.samples.shape
    return np.moveaxis(comfyui_noise(seed, (b, c, h, w), latent.numbers), 1, -1).astype(np.float32)


def _mask(mask: np.ndarray, b: int, height: int, width: int) -> jax.Array:
    """Returns a noise mask for latents, [b, h, w, 1]."""
    small = interpolate(mask.astype(np.float32)[..., None], (height, width), method="bilinear")
    return jnp.asarray(small[np.arange(b) % len(small)])


def _parts(sides: tuple[list[Entry], list[Entry]], size: tuple[int, int], schedule: NoiseSchedule) -> list[Rule]:
    """Returns the rule that averages the entries of each side; none if each side has one that counts everywhere."""
    every = [entry for side in sides for entry in side]
    plain = all(entry.area is None and entry.mask is None and entry.start <= 0 and entry.end >= 1 for entry in every)
    if plain and max(map(len, sides)) == 1:
        return []
    weights = np.stack([weight_of(entry, *size) for entry in every])
    during = [[comfyui_percent_to_sigma(schedule, share) for share in (entry.start, entry.end)] for entry in every]
    return [Parts(weights[None], np.asarray([during], np.float32), (len(sides[0]), len(sides[1])))]


def _areas(guidance: Guidance, entries: dict[str, Entry], rules: Sequence[Rule]) -> Any:
    """Returns the rectangle of each branch, None if there is none. Raises ValueError with rules that need all of it."""
    areas = tuple(place_of(entries[name]) if name in entries else None for name in guidance.branches)
    if not any(areas):
        return None
    for rule in rules:
        changes = type(rule).patches is not Rule.patches or type(rule).rests
        if changes or (isinstance(guidance, ClassifierFree) and guidance.aside):
            raise ValueError(f"{type(rule).__name__} needs conditionings without areas: use masks, or leave it out")
    return areas


def _patches(
    model: Model,
    entries: Sequence[Entry],
    rows: Any,
    schedule: NoiseSchedule,
    size: tuple[int, int, int],
    seed: int,
) -> tuple[list[Patch], list[Any], list[tuple[Any, ...]]]:
    """Returns the patches of the UNet, their shared arrays, and those of each branch and picture."""
    pipe, b = model.pipe, size[0]
    patches: list[Patch] = []
    shared: list[Any] = []
    own: list[list[Any]] = [[] for _ in entries]

    def add(patch: Patch, arrays: Any, each: Sequence[Any]) -> None:
        patches.append(patch)
        shared.append(arrays)
        for place, one in zip(own, each):
            place.append(one)

    if model.adapters:
        for of_all, of_each in adapter_arrays([model.adapters] * b, [np.zeros(0)] * b, pipe.params["unet"]):
            add(LoRA(), of_all, [of_each] * len(entries))
    if model.hypernetworks:
        strengths = np.array([[use.strength for use in model.hypernetworks]] * b, np.float32)
        always = np.broadcast_to(np.array([np.inf, -np.inf], np.float32), (*strengths.shape, 2))
        numbers = Strengths(strengths, np.array(always))  # type: ignore[arg-type]
        add(Hypernetworks(), tuple(use.network for use in model.hypernetworks), [numbers] * len(entries))
    found = controls.arrays_of(entries, rows, schedule, size, pipe)
    if found is not None:
        add(*found)
    for setting in model.patches:
        setting.check(pipe.config.unet)
        of_one = setting.numbers(PatchRun(seed, np.size(rows.index)))
        numbers = jax.tree.map(lambda leaf: np.stack([leaf] * b), of_one)
        add(setting.patch, None, [numbers] * len(entries))
    return patches, shared, [tuple(one) for one in own]


def with_schedule(model: Model, **changes: Any) -> Model:
    """Returns a model whose noise schedule has other fields, such as the prediction."""
    config = dataclasses.replace(model.pipe.config.schedule, **changes)
    return dataclasses.replace(
        model, pipe=dataclasses.replace(model.pipe, config=dataclasses.replace(model.pipe.config, schedule=config))
    )
