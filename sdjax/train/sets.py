"""A run's training set, from its description to batches."""

import dataclasses
import functools
from typing import Any

from sdjax.config import ConfigError, ModelConfig
from sdjax.tokenizer import Tokenizer
from sdjax.train.config import DataConfig
from sdjax.train.data.buckets import Buckets
from sdjax.train.data.cache import encoder_of, is_signature, probe
from sdjax.train.data.cached import Cached
from sdjax.train.data.loader import Loader
from sdjax.train.data.pictures import Part, Pictures
from sdjax.train.data.sources import open_source
from sdjax.typing import Params

PART = ("source", "where", "repeats", "weight", "loss_weight")
TEXTS = ("caption", "key")  # of a batch; they stay on the host


def make_loader(
    data: DataConfig, model: ModelConfig, tokenizer: Tokenizer | None, *, batch_size: int, seed: int,
    params: Params | None = None, sharding: Any = None,
) -> Loader:  # fmt: skip
    """Returns the loader of a training set for a model; without `tokenizer` captions are not needed.

    `params` are the model's, by which a cache of latents is recognised as made by it; `sharding` is where batches will
    lie. Raises ConfigError or `sdjax.train.data.records.SourceError` for a set that cannot be used.
    """
    tokens = None
    if data.cached:
        examples: Any = Cached(data.cached, least=batch_size)
        if params is not None:
            _check_cache(examples, model, tokenizer, params)
    else:
        examples = _pictures(data, model, batch_size, captions=tokenizer is not None)
        if tokenizer is not None:
            text = model.text
            tokens = functools.partial(tokenizer, length=text.max_length, pad_token_id=text.pad_token_id)
    return Loader(
        examples, batch_size=batch_size, seed=seed, tokens=tokens, sharding=sharding, threads=data.threads,
        workers=data.workers, bad_limit=data.bad_limit,
    )  # fmt: skip


def text_of(loader: Loader) -> str:
    """Returns what a loader's batches hold of captions, "ids" or "context"."""
    return loader.examples.text if isinstance(loader.examples, Cached) else "ids"


def _check_cache(cached: Cached, model: ModelConfig, tokenizer: Tokenizer | None, params: Params) -> None:
    """Raises ConfigError for latents or captions of another model than the one that is trained on them."""
    cache = cached.caches[0]  # the others are of the same model
    if not is_signature(cache.manifest["autoencoder"], encoder_of(params)):
        raise ConfigError(f"{cache.name} holds latents of another autoencoder than the model's: make it anew")
    if cached.text == "context":
        if not is_signature(cache.manifest["text_encoder"], params["text"]):
            raise ConfigError(f"{cache.name} holds what another text encoder made of its captions: make it anew")
    elif tokenizer is not None and cache.manifest["tokens"] != probe(tokenizer, model.text):
        raise ConfigError(f"{cache.name} holds tokens for another text encoder than the model's: make it anew")


def _pictures(data: DataConfig, model: ModelConfig, batch_size: int, *, captions: bool) -> Pictures:
    side = model.image_size if data.side is None else data.side
    step = max(64, model.vae.factor) if side >= 256 else model.vae.factor
    if side % step:
        raise ConfigError(f"data.side is a multiple of {step}; got {side}")
    buckets = Buckets.around(side, step=step) if data.buckets else Buckets.square(side)
    parts = []
    for i, part in enumerate(data.parts):
        unknown = [name for name in part if name not in PART]
        if unknown or "source" not in part:
            raise ConfigError(
                f"data.parts[{i}] has a source, and may have {', '.join(PART[1:])}; got {', '.join(part)}"
            )
        source = part["source"] if captions else {"default": "", **part["source"]}
        parts.append(Part(open_source(source), **{name: value for name, value in part.items() if name != "source"}))
    return Pictures(
        parts, buckets, least=batch_size, crop=data.crop, flip=data.flip, resample=data.resample, masks=data.masks
    )  # fmt: skip


def arrays(batch: dict[str, Any]) -> dict[str, Any]:
    """Returns what of a batch goes to the devices."""
    return {name: value for name, value in batch.items() if name not in TEXTS}


def held_out(data: DataConfig) -> DataConfig:
    """Returns a set's description for validation: nothing is drawn at random."""
    return data if data.cached else dataclasses.replace(data, crop="centre", flip=0.0)
