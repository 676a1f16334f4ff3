"""Image variations: pictures of what other pictures show, by unCLIP, which is told CLIP's embedding of them.

Source: Stability-AI/stablediffusion, scripts/streamlit/stableunclip.py and doc/UNCLIP.MD.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax.checks.arguments import is_sequence, number, shown, texts, whole
from sdjax.checks.notes import note
from sdjax.config import ModelConfig, PriorConfig, VisionConfig
from sdjax.diffusion.unclip import embedding_mean_and_std, mix_labels, noise_embedding
from sdjax.nn import VisionEncoder
from sdjax.nn.jax_settings import pinned
from sdjax.pictures import preprocess
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline
from sdjax.pipeline.programs import one_by_one
from sdjax.purpose import UNCLIP_LEVELS, check_task
from sdjax.samplers.noise import EMBEDDING, draw_noise
from sdjax.tasks import inputs
from sdjax.tasks.batch import Batch, make_batch
from sdjax.tasks.prior import GUIDANCE_SCALE, Prior
from sdjax.tasks.request import SizedOptions
from sdjax.tasks.results import advice
from sdjax.tasks.session import Making, Session, task
from sdjax.typing import Image, Keys, Params

Embeddings = Float[Array, "n d"]

WITHOUT = "this model has no image tower"


@task()
def image_variations(
    pipe: Pipeline,
    image: Any = None,
    prompt: str | Sequence[str] = "",
    *,
    embeddings: Embeddings | None = None,
    weights: Sequence[float] | None = None,
    noise_level: int | Sequence[int] = 0,
    mix_noise_level: int | None = None,
    dialect: str = "ldm",
    **options: Unpack[SizedOptions],
) -> Session:
    """Returns pictures of what the given ones show, and the prompts say, uint8 [b, height, width, 3].

    `image` as for `sdjax.image_to_image`; `embeddings` are those of more pictures, or of texts (`Prior.embed`), behind
    them. Without `weights` every one makes pictures of its own: one for all prompts, one prompt for all, or one each.
    With them, a number each, of any sign, all are mixed into one: the mean of their labels with these weights.

    `noise_level`, 0 to 999, is how much noise is put on an embedding, one for all or one each: the more, the less the
    pictures keep to it. `mix_noise_level` puts noise on the mixed one once more. `dialect` is how pictures are prepared
    for CLIP: "ldm", as in training, or "huggingface", as in diffusers (`sdjax.pictures.preprocess`).

    `options` are `sdjax.text_to_image`'s, with what it raises; also ValueError for a model that takes no embedding, one
    without an image tower, what is no picture, and numbers out of range or that do not fit.
    """
    check_task(pipe.config, "image_variations", "unclip")
    known = np.zeros((0, length(pipe.config)), np.float32) if embeddings is None else check_embeddings(pipe, embeddings)
    given = [] if image is None else inputs.open_pictures(image)
    count = len(given) + len(known)
    if not count:
        raise ValueError("at least one picture or embedding is needed, got none")
    levels = check_levels(noise_level, count)
    shares = None if weights is None else check_weights(weights, count)
    if shares is not None and 0 in shares:
        note("weights of 0 leave their pictures out of the mixture")
    if mix_noise_level is not None:
        check_levels(mix_noise_level, 1)
        if shares is None:
            raise ValueError("mix_noise_level puts noise on a mixed embedding; it needs weights")
    if dialect != "ldm" and not given:
        note("dialect has no effect without a picture: leave it out")
    if given and pipe.config.vision is None:
        raise ValueError(f"{WITHOUT}; sdjax.load takes one from another file by vision=, or give embeddings")
    batch = make_batch(pipe, prompt, options, num_inputs=count if shares is None else 1)
    with advice(*batch.size, len(batch.requests), pipe.dtype):
        if given:
            seen = embed_images(pipe, given, dialect=dialect, exact=batch.how.exact, **batch.where)
            known = np.concatenate([seen, known])

    def make(part: Batch) -> Making:
        label = make_labels(part, known, levels, shares, mix_noise_level)
        return (yield from labelled(part, label))

    return Session(batch, make)


@task()
def prior_to_image(
    pipe: Pipeline,
    prior: Prior,
    prompt: str | Sequence[str],
    *,
    prior_prompt: str | Sequence[str] | None = None,
    prior_steps: int = 25,
    prior_scale: float = GUIDANCE_SCALE,
    noise_level: int = 0,
    **options: Unpack[SizedOptions],
) -> Session:
    """Returns pictures of the prompts, uint8 [b, height, width, 3], whose image embeddings a prior has guessed.

    `prior_prompt` is what the prior is told instead of the prompts, one for all or one each; `prior_steps` and
    `prior_scale` are its number of steps and its guidance. The other arguments are `image_variations`' and
    `sdjax.text_to_image`'s. Raises ValueError where the prior's embeddings are none of the model's: Karlo's are those
    of CLIP ViT-L/14, which unCLIP-L takes.
    """
    check_task(pipe.config, "prior_to_image", "unclip")
    check_prior(pipe.config, prior.config)
    (level,) = check_levels(noise_level, 1)
    batch = make_batch(pipe, prompt, options)
    prompts = [request.prompt for request in batch.requests]
    if prior_prompt is not None:
        first = texts("prior_prompt", prior_prompt)
        each = len(prompts) // len(first) if first else 0
        if not first or each * len(first) != len(prompts):
            raise ValueError(f"one prior_prompt, or one for each of the prompts; got {len(first)}")
        prompts = [p for p in first for _ in range(each)]
    seeds = [request.seed for request in batch.requests]
    how = {"num_steps": prior_steps, "guidance_scale": prior_scale, "exact": batch.how.exact}
    with advice(*batch.size, len(seeds), pipe.dtype), jax.default_device(batch.how.mesh.devices.flat[0]):
        guessed = np.asarray(prior.embed(prompts, seeds, **how))
    # Every picture has an embedding of its own
    batch = dataclasses.replace(batch, inputs=list(range(len(seeds))))

    def make(part: Batch) -> Making:
        label = make_labels(part, guessed, [level] * len(seeds), None, None)
        return (yield from labelled(part, label))

    return Session(batch, make)


def labelled(part: Batch, label: Float[Array, "b _"]) -> Making:
    """Returns the pictures of labels; without the prompt the network gets zeros."""
    told = part.told(label=label, unconditional_label=placement.split(np.zeros_like(label), part.how.mesh))
    return part.finish((yield from part.sample(None, part.noise(), told)))


@pinned()
def embed_images(
    pipe: Pipeline,
    image: Any,
    *,
    dialect: str = "ldm",
    mesh: jax.sharding.Mesh | None = None,
    parallel: placement.Parallel = "jit",
    exact: bool = False,
) -> np.ndarray:
    """Returns CLIP's embeddings of pictures, float32 [n, d], not normalised: what unCLIP is told, without noise.

    `image` as for `sdjax.image_to_image`; `exact` as for `sdjax.text_to_image`. Raises ValueError for a model without
    an image tower, what is no picture, and an unknown dialect.
    """
    vision = pipe.config.vision
    if vision is None:
        raise ValueError(WITHOUT)
    mesh = placement.make_mesh() if mesh is None else mesh
    pixels = list(preprocess.clip_pixels(inputs.open_pictures(image), vision.image_size, dialect=dialect))
    filled = np.stack(placement.fill(pixels, mesh.size))
    run = placement.compiled(_embed, (vision, pipe.dtype, exact), mesh, (False, True), parallel)
    return np.asarray(run(pipe.on(mesh)["vision"], placement.split(filled, mesh)))[: len(pixels)]


def _embed(static: tuple[VisionConfig, str, bool], params: Params, pixels: Image) -> Embeddings:
    config, dtype, exact = static

    def apply(pixels: Image) -> Any:
        return VisionEncoder(config, jnp.dtype(dtype)).apply({"params": params}, pixels)

    return one_by_one(apply, pixels) if exact else apply(pixels)


def make_labels(
    batch: Batch,
    embeddings: np.ndarray,
    levels: Sequence[int],
    weights: Sequence[float] | None,
    mix_level: int | None,
) -> Float[Array, "b _"]:
    """Returns the label of every picture of the batch, whose noise is drawn by its own key.

    Without weights it is that of the embedding which the picture is made from, with them the mixed one of all.
    """
    which = placement.fill(batch.inputs, batch.how.mesh.size)
    if weights is None:
        used, at = embeddings[which][None], np.asarray(levels, np.int32)[which][None]  # [1, b, d], [1, b]
    else:
        used = np.repeat(embeddings[:, None], len(which), axis=1)
        at = np.repeat(np.asarray(levels, np.int32)[:, None], len(which), axis=1)
    size = embeddings.shape[-1]
    stats = embedding_mean_and_std(batch.pipe.params, size)
    shares = np.ones(1, np.float32) if weights is None else np.asarray(weights, np.float32)
    label = _labels(mix_level is not None, batch.keys, used, at, shares, stats, np.int32(mix_level or 0))
    return placement.split(label, batch.how.mesh)


@functools.partial(jax.jit, static_argnums=0)
def _labels(
    mixes: bool, keys: Keys, embeddings: Float[Array, "m b d"], levels: Array, weights: Array, stats: Params,
    mix_level: Array,
) -> Float[Array, "b _"]:  # fmt: skip
    m, b, d = embeddings.shape
    noisy = functools.partial(noise_embedding, mean=stats["mean"], std=stats["std"])
    labels = [noisy(embeddings[j], levels[j], draw_noise(keys, EMBEDDING, j, (d,))) for j in range(m)]
    label = mix_labels(jnp.stack(labels), weights)
    if mixes:
        label = noisy(label[:, :d], jnp.broadcast_to(mix_level, (b,)), draw_noise(keys, EMBEDDING, m, (d,)))
    return label


def length(config: ModelConfig) -> int:
    """Returns how many numbers an image embedding of the model has."""
    assert config.unet.label_dim is not None
    return config.unet.label_dim // 2


def check_prior(config: ModelConfig, prior: PriorConfig) -> None:
    """Raises ValueError unless the prior's embeddings are the model's."""
    if prior.embedding != length(config):
        raise ValueError(
            f"this model is told embeddings of {length(config)} numbers, the prior makes some of {prior.embedding}: "
            "Karlo's belongs to Stable unCLIP-L (sd2_unclip_l)"
        )


def check_embeddings(pipe: Pipeline, embeddings: Any) -> np.ndarray:
    """Returns the embeddings as float32 [n, d]. Raises ValueError unless they are finite and the model's."""
    out, size = np.asarray(embeddings, np.float32), length(pipe.config)
    if out.ndim != 2 or out.shape[1] != size or not np.isfinite(out).all():
        raise ValueError(f"embeddings are finite numbers [n, {size}] of this model; got an array {out.shape}")
    return out


def check_levels(noise_level: int | Sequence[int], count: int) -> list[int]:
    """Returns one noise level for each of `count`. Raises ValueError unless they are whole and from 0 to 999."""
    given: Any = noise_level
    levels = list(given) if is_sequence(given) else [given] * count
    if len(levels) != count:
        raise ValueError(f"one noise level, or one for each of the {count} pictures; got {len(levels)}")
    return [whole("a noise level", level, 0, UNCLIP_LEVELS - 1) for level in levels]


def check_weights(weights: Sequence[float], count: int) -> list[float]:
    """Returns the weights. Raises ValueError unless there are `count`, finite, whose sum is not 0."""
    meaning = "weights are finite numbers whose sum is not 0, by which their mean is divided"
    try:
        out = [number("a weight", w) for w in (weights if np.ndim(weights) else [weights])]
    except ValueError:
        raise ValueError(f"{meaning}; got {shown(weights)}") from None
    if len(out) != count:
        raise ValueError(f"one weight for each of the {count} pictures; got {len(out)}")
    if abs(sum(out)) < 1e-6 * max(map(abs, out), default=0) or sum(out) == 0:
        raise ValueError(f"{meaning}; got {out}")
    return out
