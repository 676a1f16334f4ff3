"""Builds a run's training set, from its configuration to batches."""

import dataclasses
import functools
from typing import Any

import numpy as np

from sdjax.config import ConfigError, ModelConfig
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.train.config import DataConfig
from sdjax.train.data.buckets import Buckets
from sdjax.train.data.cached import Cached
from sdjax.train.data.loader import Loader
from sdjax.train.data.moment_tars import MomentTars, are_tars
from sdjax.train.data.order import Order
from sdjax.train.data.pictures import Part, Pictures
from sdjax.train.data.signatures import encoder_of, is_signature, probe
from sdjax.train.data.sources import open_source
from sdjax.typing import Params

TEXTS = ("caption", "key")  # entries of a batch that stay on the host


Latents = Cached | MomentTars
Examples = Latents | Pictures


def open_parts(data: DataConfig, batch_size: int, *, captions: bool) -> Latents | list[Part]:
    """Returns the parts of a training set that do not depend on a model: opened sources, or stored latents.

    Raises ConfigError or `sdjax.train.data.records.SourceError` for a set that cannot be used.
    """
    if are_tars(data.cached):
        return MomentTars(data.cached, least=batch_size, captions=data.captions)
    if data.cached:
        return Cached(data.cached, least=batch_size, captions=data.captions)
    parts = []
    for part in data.parts:
        source = part["source"] if captions else {"default": "", **part["source"]}
        own = {name: value for name, value in part.items() if name != "source"}
        parts.append(Part(open_source(source), **{**own, "captions": data.captions_of(part)}))
    return parts


def make_examples(data: DataConfig, parts: Latents | list[Part], model: ModelConfig, batch_size: int) -> Examples:
    """Returns the set's examples in the sizes of a model. Raises as `open_parts`, and if no batch can be filled."""
    if isinstance(parts, MomentTars):
        parts = parts.of_model(model.vae.latent_channels, model.vae.factor)
    examples = _pictures(data, parts, model, batch_size) if isinstance(parts, list) else parts
    Order(examples.streams, batch_size, seed=0)
    return examples


def _pictures(data: DataConfig, parts: list[Part], model: ModelConfig, batch_size: int) -> Pictures:
    side = model.image_size if data.side is None else data.side
    step = max(64, model.vae.factor) if side >= 256 else model.vae.factor
    if side % step:
        raise ConfigError(f"data.side is a multiple of {step}; got {side}")
    step = step if data.bucket_step is None else data.bucket_step
    if step % model.vae.factor:
        raise ConfigError(f"data.bucket_step is a multiple of {model.vae.factor}; got {step}")
    try:
        buckets = _buckets(data, parts, side, step)
    except ValueError as error:
        raise ConfigError(f"data.side, data.bucket_step and data.bucket_sides: {error}") from None
    return Pictures(
        parts, buckets, least=batch_size, crop=data.crop, flip=data.flip, resample=data.resample, masks=data.masks,
        hints=data.hints, hint_options=data.hint_options,
    )  # fmt: skip


def _buckets(data: DataConfig, parts: list[Part], side: int, step: int) -> Buckets:
    if not data.buckets:
        return Buckets.square(side)
    if data.enlarge:
        return Buckets.around(side, step=step, sides=data.bucket_sides)
    tables = [part.source.table for part in parts]
    widths, heights = (np.concatenate([table[name] for table in tables]) for name in ("width", "height"))
    return Buckets.of_pictures(widths, heights, side, step=step)


def make_loader(
    data: DataConfig, model: ModelConfig, tokenizer: Tokenizer | None, *, batch_size: int, seed: int,
    params: Params | None = None, sharding: Any = None, examples: Examples | None = None,
) -> Loader:  # fmt: skip
    """Returns the loader of a training set for a model. Without `tokenizer` captions are not needed.

    `params` are the model's parameters, to check that a cache of latents was made by this model. `sharding` is that of
    the batches. `examples` is the set if it is already open. Raises as `open_parts`.
    """
    if examples is None:
        parts = open_parts(data, batch_size, captions=tokenizer is not None)
        examples = make_examples(data, parts, model, batch_size)
    tokens = None
    if isinstance(examples, Cached) and params is not None:
        _check_cache(examples, model, tokenizer, params)
    if tokenizer is not None and (not isinstance(examples, Cached) or examples.captions.changes):
        text = model.text
        tokens = functools.partial(tokenizer, length=text.max_length, pad_token_id=text.pad_token_id)
    return Loader(
        examples, batch_size=batch_size, seed=seed, tokens=tokens, sharding=sharding, threads=data.threads,
        workers=data.workers, bad_limit=data.bad_limit,
    )  # fmt: skip


def text_of(examples: Examples) -> str:
    """Returns how batches hold captions: "ids" or "context"."""
    return examples.text if isinstance(examples, Latents) else "ids"


def text_in(data: DataConfig) -> str:
    """Returns how the batches of a set will hold captions: "ids" or "context". Only caches are opened."""
    return Cached(data.cached).text if data.cached and not are_tars(data.cached) else "ids"


def _check_cache(cached: Cached, model: ModelConfig, tokenizer: Tokenizer | None, params: Params) -> None:
    """Raises ConfigError for latents or captions of another model than the one that is trained on them."""
    cache = cached.caches[0]  # the others are of the same model
    if not is_signature(cache.manifest["autoencoder"], encoder_of(params)):
        raise ConfigError(f"{cache.name} holds latents of another autoencoder than the model's: make it again")
    if cached.text == "context":
        if not is_signature(cache.manifest["text_encoder"], params["text"]):
            raise ConfigError(f"{cache.name} holds the output of another text encoder than the model's: make it again")
    elif tokenizer is not None and cache.manifest["tokens"] != probe(tokenizer, model.text):
        raise ConfigError(f"{cache.name} holds tokens for another text encoder than the model's: make it again")


def arrays(batch: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of a batch that go to the devices."""
    return {name: value for name, value in batch.items() if name not in TEXTS}


def held_out(data: DataConfig) -> DataConfig:
    """Returns a set's configuration for validation, without random crops, flips and orders of tags."""
    parts = tuple({**part, "captions": dataclasses.asdict(data.captions_of(part).fixed())} for part in data.parts)
    data = dataclasses.replace(data, parts=parts, captions=data.captions.fixed())
    return data if data.cached else dataclasses.replace(data, crop="centre", flip=0.0)
