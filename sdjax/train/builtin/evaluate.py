"""Measures how well a model of emoji draws its captions, from pixels alone; `sdjax evaluate-builtin`.

`sdjax.train.builtin.reader` recognises the subjects. It knows the sprites and does not use the model. The reader is
first measured on real pictures, and on real pictures after the autoencoder. The model cannot score better than these.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from sdjax.nn import AutoencoderKL, latent_from_moments
from sdjax.nn.jax_settings import pinned
from sdjax.pictures.image import to_float, to_uint8
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline
from sdjax.tasks.text_to_image import text_to_image
from sdjax.train.builtin import emoji, subjects
from sdjax.train.builtin.reader import Reader, SceneReading
from sdjax.typing import Image, Params, Pixels

STEPS = (10, 20, 50)  # the last is the default, which the others are compared with
SCALES = tuple(range(1, 11))
SEEDS = 4  # pictures of one prompt that are compared with each other
BATCH = 25  # most pictures made at a time
TWO = 0.25  # share of prompts with two subjects
RENDERS = 2  # real pictures for each prompt
FRESH = 2**31  # training draws its pictures from seeds of a few bits

# (prompts, seeds, num_steps=None, guidance_scale=None) -> pictures, one a prompt; None: the defaults
Make = Callable[..., Pixels]


class Prompt(NamedTuple):
    """A caption, and what a picture of it should show: indices into `subjects.names()` and COLOURS."""

    text: str
    subjects: tuple[int, ...]
    colour: int


@dataclasses.dataclass(frozen=True, eq=False)
class FigurePictures:
    """Pictures made during the evaluation, for a figure. `right` says for each whether all of it was read correctly."""

    prompts: list[Prompt]
    pictures: Pixels
    right: list[bool]
    steps: dict[int, Pixels]  # by number of steps, the same prompts and seeds
    scales: dict[float, Pixels]  # by guidance scale, likewise
    seeds: Pixels  # [prompts, SEEDS, h, w, 3]


def share(right: int, count: int) -> dict[str, Any]:
    """Returns right, count, their ratio, and the ends of its 95 % interval (Wilson 1927); None where count is 0."""
    if count == 0:
        return {"right": 0, "count": 0, "share": None, "low": None, "high": None}
    z2, ratio = 1.96**2, right / count
    middle = (ratio + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (ratio * (1 - ratio) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return {"right": right, "count": count, "share": ratio, "low": low, "high": high}


def draw_prompts(seed: int, count: int, *, held_out: bool) -> list[Prompt]:
    """Returns `count` prompts, a quarter of them with two subjects, as different from each other as possible.

    With `held_out` all their pairs of subject and colour are held out; otherwise none is.
    """
    rng = np.random.default_rng([FRESH, seed, held_out])
    table = emoji.held_out() == held_out
    pairs = rng.permutation(np.argwhere(table))
    two = int(TWO * count)
    prompts = []
    for subject, colour in itertools.islice(itertools.cycle(pairs), count - two):
        prompts.append(make_prompt((int(subject),), int(colour)))
    while len(prompts) < count:
        colour = int(rng.integers(len(subjects.COLOURS)))
        prompts.append(make_prompt(tuple(map(int, rng.choice(np.flatnonzero(table[:, colour]), 2, False))), colour))
    return [prompts[i] for i in rng.permutation(count)]


def in_curves(prompts: int) -> int:
    """Returns how many of the prompts are also made with other seeds, steps and scales."""
    return max(4, prompts // 4)


def make_prompt(shown: tuple[int, ...], colour: int) -> Prompt:
    """Returns the prompt for subjects on a background, in the words of the training's captions."""
    nouns = " and ".join(subjects.with_article(subjects.names()[subject]) for subject in shown)
    background = subjects.with_article(list(subjects.COLOURS)[colour])
    return Prompt(f"{nouns} on {background} background", shown, colour)


def read(reader: Reader, pictures: Pixels, shown: Sequence[Prompt | emoji.Scene]) -> list[SceneReading]:
    """Returns the reading of each picture. The reader looks for as many subjects as the picture should show."""
    return [reader.read(picture, len(scene.subjects)) for picture, scene in zip(pictures, shown, strict=True)]


def shares(readings: Sequence[SceneReading], shown: Sequence[Prompt | emoji.Scene]) -> dict[str, Any]:
    """Returns the shares of correct backgrounds and of correct subjects, for pictures of one and of two subjects."""
    pairs = list(zip(readings, shown, strict=True))
    one, two = (
        [len(set(r.subjects) & set(s.subjects)) for r, s in pairs if len(s.subjects) == count] for count in (1, 2)
    )
    return {
        "background": share(sum(r.colour == s.colour for r, s in pairs), len(pairs)),
        "subject": share(sum(one) + sum(two), len(one) + 2 * len(two)),
        "subject_of_one": share(sum(one), len(one)),
        "subject_of_two": share(sum(two), 2 * len(two)),
        "both_of_two": share(sum(found == 2 for found in two), len(two)),
    }


def is_right(reading: SceneReading, shown: Prompt | emoji.Scene) -> bool:
    """Returns whether background and all subjects are read as they should be."""
    return reading.colour == shown.colour and set(reading.subjects) == set(shown.subjects)


def distance(a: UInt8[np.ndarray, "..."], b: UInt8[np.ndarray, "..."]) -> float:
    """Returns the mean absolute difference of pictures of one shape, in levels of 255."""
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean())


def mean_distance(pictures: Pixels | Sequence[Pixels]) -> float:
    """Returns the mean of `distance` over all pairs of pictures."""
    return float(np.mean([distance(a, b) for a, b in itertools.combinations(pictures, 2)]))


def make_pictures(pipe: Pipeline, batch: int = BATCH, **options: Any) -> Make:
    """Returns a Make that samples from the pipeline. `options` are passed to `text_to_image`.

    It always makes `batch` pictures at a time, so that a single program is compiled.
    """

    def make(
        prompts: Sequence[str], seeds: Sequence[int], num_steps: int | None = None, guidance_scale: float | None = None
    ) -> Pixels:
        given = options if num_steps is None else {**options, "num_steps": num_steps}
        out = []
        for start in range(0, len(prompts), batch):
            part = [list(values[start : start + batch]) for values in (prompts, seeds)]
            count = len(part[0])
            texts, numbers = (placement.fill(values, batch) for values in part)
            made = text_to_image(pipe, texts, seed=numbers, guidance_scale=guidance_scale, **given)
            out.append(made[:count])
        return np.concatenate(out)

    return make


def through_autoencoder(pipe: Pipeline, batch: int = BATCH) -> Callable[[Pixels], Pixels]:
    """Returns a function that encodes pictures to the mean of their latents, and decodes them."""
    vae, scale = AutoencoderKL(pipe.config.vae, jnp.dtype(pipe.dtype)), pipe.config.vae.scale_factor

    @jax.jit
    def around(params: Params, image: Image) -> Image:
        network = vae.bind({"params": params})
        return network.decode(latent_from_moments(network.encode(image), None, scale))

    def in_batches(pictures: Pixels) -> Pixels:
        out = []
        for start in range(0, len(pictures), batch):
            part = pictures[start : start + batch]
            filled = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
            out.append(to_uint8(np.asarray(around(pipe.params["vae"], to_float(filled))))[: len(part)])
        return np.concatenate(out)

    return in_batches


@pinned()
def evaluate(
    make: Make,
    around: Callable[[Pixels], Pixels],
    sprites: emoji.Sprites,
    *,
    prompts: int = 200,
    seed: int = 0,
    scales: Sequence[float] = SCALES,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Any], FigurePictures]:
    """Returns all figures, in terms of JSON, and the pictures for the plate. They depend only on model and seed.

    `make` samples pictures. `around` encodes and decodes pictures with the autoencoder. `prompts` is the number of
    prompts with held-out pairs of subject and colour. The same number of prompts has trained pairs, twice as many real
    pictures are read, and a quarter as many prompts are made with other seeds, steps (STEPS) and guidance scales.

    Raises ValueError for fewer than 4 prompts.
    """
    if prompts < 4:
        raise ValueError(f"at least 4 prompts are needed, so that one of them shows two subjects; got {prompts}")
    reader = Reader(sprites)
    figures: dict[str, Any] = {"prompts": prompts, "seed": seed}

    scenes = emoji.scenes(FRESH + seed, 0, RENDERS * prompts)
    real = np.stack([sprites.draw(scene) for scene in scenes])
    say(f"reading {len(real)} real pictures, as drawn and after the autoencoder")
    figures["reader"] = shares(read(reader, real, scenes), scenes)
    decoded = around(real)
    figures["autoencoder"] = {**shares(read(reader, decoded, scenes), scenes), "distance": distance(real, decoded)}

    numbers = [seed + i for i in range(prompts)]
    sets = {}
    for name in "trained", "held_out":
        asked = draw_prompts(seed, prompts, held_out=name == "held_out")
        say(f"{prompts} pictures of pairs that were {name.replace('_', ' ')}")
        pictures = make([prompt.text for prompt in asked], numbers)
        sets[name] = asked, pictures, read(reader, pictures, asked)
        figures[name] = shares(sets[name][2], asked)

    asked, pictures, readings = sets["held_out"]
    few = asked[: in_curves(prompts)]
    texts, numbers = [prompt.text for prompt in few], numbers[: len(few)]
    between_prompts = mean_distance(pictures[: len(few)])

    say(f"{len(few)} prompts with {SEEDS} seeds each")
    others = [make(texts, [number + k * prompts for number in numbers]) for k in range(1, SEEDS)]
    seeds = np.stack([pictures[: len(few)], *others], axis=1)
    apart = [[distance(a, b) for a, b in itertools.combinations(of_prompt, 2)] for of_prompt in seeds]
    figures["seeds"] = {
        "pictures_of_a_prompt": SEEDS,
        "distance_between_seeds": float(np.mean(apart)),
        "least_distance_between_seeds": float(np.min(apart)),
        "distance_between_prompts": between_prompts,
        "ratio": float(np.mean(apart)) / between_prompts,
    }

    by_steps = {}
    for n in STEPS:
        say(f"{len(few)} prompts with {n} steps")
        by_steps[n] = make(texts, numbers, num_steps=n)
    found = {n: read(reader, made, few) for n, made in by_steps.items()}
    most = STEPS[-1]
    figures["steps"] = []
    for n in STEPS:
        moved = float(np.mean([distance(a, b) for a, b in zip(by_steps[n], by_steps[most])]))
        alike = sum((a.colour, set(a.subjects)) == (b.colour, set(b.subjects)) for a, b in zip(found[n], found[most]))
        row = {"steps": n, "distance": moved, "ratio": moved / between_prompts, "read_alike": share(alike, len(few))}
        figures["steps"].append({**row, **shares(found[n], few)})

    by_scale = {}
    for scale in scales:
        say(f"{len(few)} prompts with guidance scale {scale}")
        by_scale[scale] = make(texts, numbers, guidance_scale=scale)
    figures["scales"] = [{"scale": k, **shares(read(reader, made, few), few)} for k, made in by_scale.items()]
    right = [is_right(reading, prompt) for reading, prompt in zip(readings, asked)]
    return figures, FigurePictures(asked, pictures, right, by_steps, by_scale, seeds)
