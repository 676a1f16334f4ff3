"""Image variations by unCLIP: pictures with the content of other pictures. It is conditioned on CLIP's embeddings.

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
from sdjax.tasks.batch import Batch
from sdjax.tasks.inputs import Pictures
from sdjax.tasks.make_batch import make_batch
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
    image: Pictures | None = None,
    prompt: str | Sequence[str] = "",
    *,
    embeddings: Embeddings | None = None,
    weights: Sequence[float] | None = None,
    noise_level: int | Sequence[int] = 0,
    mix_noise_level: int | None = None,
    dialect: str = "ldm",
    **options: Unpack[SizedOptions],
) -> Session:
    """Returns variations of the given pictures, guided by the prompts: uint8 [b, height, width, 3].

    `image` is as for `sdjax.image_to_image`. `embeddings` are further inputs after the pictures: image embeddings, or
    those of texts (`Prior.embed`). Without `weights` every input makes its own pictures: one input for all prompts, one
    prompt for all inputs, or one each. With `weights` (one number per input, of any sign) all inputs are mixed: the
    label is the weighted mean of their labels.

    `noise_level`, 0 to 999, is the noise added to an embedding, one for all or one each. With more noise the pictures
    differ more. `mix_noise_level` adds noise to the mixture. `dialect` is the preprocessing for CLIP: "ldm" as in
    training, or "huggingface" as in diffusers (`sdjax.pictures.preprocess`).

    `options` are those of `sdjax.text_to_image`. Raises whatever it raises, and ValueError if the model takes no
    embedding, if pictures are given and it has no image tower, if an input is not a picture, and if numbers are out of
    range or do not match.
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
            raise ValueError("mix_noise_level adds noise to a mixed embedding; it needs weights")
    if dialect != "ldm" and not given:
        note("dialect has no effect without a picture: leave it out")
    if given and pipe.config.vision is None:
        raise ValueError(f"{WITHOUT}; load one from another file with sdjax.load(..., vision=PATH), or give embeddings")
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
    """Returns pictures of the prompts, uint8 [b, height, width, 3]. The prior predicts their image embeddings.

    `prior_prompt` replaces the prompts for the prior, one for all or one each. `prior_steps` and `prior_scale` are its
    number of steps and its guidance scale. The other arguments are those of `image_variations` and
    `sdjax.text_to_image`. Raises ValueError if the prior's embeddings do not fit the model: Karlo's are those of CLIP
    ViT-L/14, for unCLIP-L.
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
            raise ValueError(f"give one prior_prompt, or one for each of the prompts; got {len(first)}")
        prompts = [p for p in first for _ in range(each)]
    seeds = [request.seed for request in batch.requests]
    how = {"num_steps": prior_steps, "guidance_scale": prior_scale, "exact": batch.how.exact}
    with advice(*batch.size, len(seeds), pipe.dtype), jax.default_device(batch.how.mesh.devices.flat[0]):
        guessed = np.asarray(prior.embed(prompts, seeds, **how))
    # Every picture has its own embedding
    batch = dataclasses.replace(batch, inputs=list(range(len(seeds))))

    def make(part: Batch) -> Making:
        label = make_labels(part, guessed, [level] * len(seeds), None, None)
        return (yield from labelled(part, label))

    return Session(batch, make)


def labelled(part: Batch, label: Float[Array, "b _"]) -> Making:
    """Makes the pictures of these labels. The unconditional label is zeros."""
    conditionings = part.conditionings(
        label=label, unconditional_label=placement.split(np.zeros_like(label), part.how.mesh)
    )
    return part.finish((yield from part.sample(None, part.noise(), conditionings)))


@pinned()
def embed_images(
    pipe: Pipeline,
    image: Pictures,
    *,
    dialect: str = "ldm",
    mesh: jax.sharding.Mesh | None = None,
    parallel: placement.Parallel = "jit",
    exact: bool = False,
) -> np.ndarray:
    """Returns CLIP's embeddings of pictures, float32 [n, d], not normalised. They are unCLIP's input before noise.

    `image` is as for `sdjax.image_to_image`, `exact` as for `sdjax.text_to_image`. Raises ValueError if the model has
    no image tower, if an input is not a picture, and for an unknown dialect.
    """
    vision = pipe.config.vision
    if vision is None:
        raise ValueError(WITHOUT)
    mesh = placement.make_mesh() if mesh is None else mesh
    pixels = list(preprocess.clip_pixels(inputs.open_pictures(image), vision.image_size, dialect=dialect))
    filled = np.stack(placement.fill(pixels, placement.parts(mesh)))
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
    """Returns the label of every picture of the batch. Its noise is drawn with the picture's key.

    Without weights it is the label of the picture's input embedding. With weights it is the mixture of all.
    """
    which = placement.fill(batch.inputs, placement.parts(batch.how.mesh))
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
    """Returns the length of the model's image embeddings."""
    assert config.unet.label_dim is not None
    return config.unet.label_dim // 2


def check_prior(config: ModelConfig, prior: PriorConfig) -> None:
    """Raises ValueError unless the prior's embeddings are the model's."""
    if prior.embedding != length(config):
        raise ValueError(
            f"this model takes embeddings of {length(config)} numbers, the prior makes embeddings of "
            f"{prior.embedding}: Karlo's prior is for Stable unCLIP-L (sd2_unclip_l)"
        )


def check_embeddings(pipe: Pipeline, embeddings: Any) -> np.ndarray:
    """Returns the embeddings as float32 [n, d]. Raises ValueError unless they are finite and the model's."""
    out, size = np.asarray(embeddings, np.float32), length(pipe.config)
    if out.ndim != 2 or out.shape[1] != size or not np.isfinite(out).all():
        raise ValueError(f"embeddings for this model must be finite numbers [n, {size}]; got an array {out.shape}")
    return out


def check_levels(noise_level: int | Sequence[int], count: int) -> list[int]:
    """Returns `count` noise levels. Raises ValueError unless they are whole numbers from 0 to 999."""
    given: Any = noise_level
    levels = list(given) if is_sequence(given) else [given] * count
    if len(levels) != count:
        raise ValueError(f"give one noise level, or one for each of the {count} pictures; got {len(levels)}")
    return [whole("a noise level", level, 0, UNCLIP_LEVELS - 1) for level in levels]


def check_weights(weights: Sequence[float], count: int) -> list[float]:
    """Returns the weights. Raises ValueError unless they are `count` finite numbers whose sum is not 0."""
    meaning = "weights must be finite numbers, and their sum must not be 0, because it divides their mean"
    try:
        out = [number("a weight", w) for w in (weights if np.ndim(weights) else [weights])]
    except ValueError:
        raise ValueError(f"{meaning}; got {shown(weights)}") from None
    if len(out) != count:
        raise ValueError(f"give one weight for each of the {count} pictures; got {len(out)}")
    if abs(sum(out)) < 1e-6 * max(map(abs, out), default=0) or sum(out) == 0:
        raise ValueError(f"{meaning}; got {out}")
    return out
