"""The model that a training starts from: described, read and changed."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sdjax import configs, convert
from sdjax.config import ConfigError, ModelConfig
from sdjax.convert import CheckpointError
from sdjax.convert.bundle import Bundle, bundle_of_params
from sdjax.convert.containers.local_models import local_path
from sdjax.nn import init_params, param_shapes
from sdjax.nn.jax_settings import make_key, pinned
from sdjax.nn.parts import SEPARABLE
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.schedule import PREDICTIONS
from sdjax.typing import Key, Params


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a run starts: a model as `sdjax.load` reads it (`path`, None for the one inside the package), or from
    nothing with `scratch`, the name of a description in `sdjax.configs` or a dictionary that is one.

    `prediction`, `ema`, `vae`, `depth`, `vision`, `noise_stats` are `sdjax.load`'s, but that `ema` "auto" takes the
    weights that were trained where a file holds them beside their average. `changes` replaces fields of the
    description, such as {"schedule": {"zero_terminal_snr": True, "prediction": "v"}}. Where that gives the UNet more
    input channels, its first convolution is widened by zeros: it first does what it did. Parts in `fresh` start from
    random weights. `copy` keeps a copy in the run's folder; False keeps where the files lie, and their SHA-256.
    """

    path: str | None = None
    scratch: str | dict[str, Any] | None = None
    prediction: str | None = None
    ema: str = "auto"
    vae: str | None = None
    depth: str | None = None
    vision: str | None = None
    noise_stats: str | None = None
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    tokenizer: str | None = None  # a folder; for `scratch`
    copy: bool = True

    def __post_init__(self) -> None:
        if self.ema not in ("auto", "yes", "no"):
            raise ValueError(f'model.ema is "auto", "yes" or "no"; got {self.ema!r}')
        if self.prediction not in (None, *PREDICTIONS):
            raise ValueError(f"model.prediction is one of {', '.join(PREDICTIONS)}, or None; got {self.prediction!r}")
        if not self.copy and (self.scratch is not None or self.fresh):
            name = "fresh" if self.fresh else "scratch"
            raise ValueError(
                f"model.copy = False refers to files, which hold no random weights: leave out model.{name}"
            )
        if self.scratch is None:
            if self.tokenizer is not None:
                raise ValueError("model.tokenizer is for model.scratch: a model that is read has its own")
            return
        default = ModelSource()
        for name in ("path", "prediction", "ema", "vae", "depth", "vision", "noise_stats", "fresh"):
            if getattr(self, name) != getattr(default, name):
                raise ValueError(f"model.{name} says nothing of a model from nothing (model.scratch): leave it out")


@pinned()
def bytes_of(source: ModelSource) -> int:
    """Returns how many bytes a copy of the model takes, without reading its weights."""
    if source.scratch is not None:
        shapes = jax.tree.leaves(param_shapes(describe(source)))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in _open(source).leaves.values())


@pinned()
def describe(source: ModelSource) -> ModelConfig:
    """Returns the description of the model that is trained, without reading its weights.

    Raises ConfigError for changes that do not fit, CheckpointError for what is no model.
    """
    before = _scratch(source) if source.scratch is not None else _open(source).config
    config = change(before, source.changes)
    check_fresh(source, config)
    return config


@pinned()
def open_start(source: ModelSource, seed: int) -> Bundle:
    """Returns the model that is trained, with its changes made. Raises as `describe`."""
    if source.scratch is not None:
        config = change(_scratch(source), source.changes)
        tokenizer = Tokenizer() if source.tokenizer is None else Tokenizer.load(local_path(source.tokenizer))
        if tokenizer.vocab_size != config.text.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the text encoder {config.text.vocab_size}: name "
                "the one that belongs to the model by model.tokenizer"
            )
        return bundle_of_params(config, _fresh(config, tuple(param_shapes(config)), seed), tokenizer)
    said: list[str] = []
    model = _open(source, said)
    config = change(model.config, source.changes)
    check_fresh(source, config)
    params, changed = fit_params(model.config, config, model.params)
    if source.fresh:
        params = {**params, **_fresh(config, source.fresh, seed)}
    said = list(dict.fromkeys([*said, *model.report.notices, *changed]))
    return dataclasses.replace(model.with_params(params, config, said), own_tokenizer=model.tokenizer())


def check_fresh(source: ModelSource, config: ModelConfig) -> None:
    """Raises ConfigError unless the parts that start from random weights are parts of the model."""
    known = param_shapes(config)
    unknown = [part for part in source.fresh if part not in known]
    if unknown:
        raise ConfigError(f"model.fresh names parts of the model, {', '.join(known)}; got {unknown[0]!r}")


def change(config: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """Returns a description with fields replaced, those of a description within it one by one."""

    def merged(old: dict[str, Any], new: Mapping[str, Any], name: str) -> dict[str, Any]:
        unknown = [key for key in new if key not in old]
        if unknown:
            raise ConfigError(f"{name} has no {' and no '.join(unknown)}; it has {', '.join(old)}")
        inner = {
            key: merged(old[key], value, f"{name}.{key}") if isinstance(old[key], dict) and value is not None else value
            for key, value in new.items()
        }
        return {**old, **inner}

    return ModelConfig.from_dict(merged(config.to_dict(), changes, "model.changes"))


def fit_params(before: ModelConfig, after: ModelConfig, params: Params) -> tuple[Params, tuple[str, ...]]:
    """Returns the parameters for a changed description, and what was done to them.

    Further input channels of the UNet get weights of zero, so that it makes of a picture what it made before, whatever
    the new ones hold. Raises ConfigError for changes that ask for other parameters.
    """
    notices: tuple[str, ...] = ()
    more = after.unet.in_channels - before.unet.in_channels
    if more > 0:
        kernel = params["unet"]["conv_in"]["kernel"]
        wide = np.concatenate([kernel, np.zeros((*kernel.shape[:2], more, kernel.shape[3]), kernel.dtype)], axis=2)
        unet = {**params["unet"], "conv_in": {**params["unet"]["conv_in"], "kernel": wide}}
        params = {**params, "unet": unet}
        notices = (f"the UNet's first convolution was widened by {more} channels, with weights of 0",)
    wanted = {jax.tree_util.keystr(path): leaf.shape for path, leaf in _leaves(param_shapes(after))}
    found = {jax.tree_util.keystr(path): leaf.shape for path, leaf in _leaves(params)}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise ConfigError(
            f"model.changes ask for {len(wrong)} other parameters, such as {wrong[0]} (there: {found.get(wrong[0])}, "
            f"asked for: {wanted.get(wrong[0])}); what can be changed is the schedule, names, sizes in pixels, and "
            "input channels to be added"
        )
    return params, notices


def _fresh(config: ModelConfig, parts: tuple[str, ...], seed: int) -> Params:
    """Returns random parameters of parts of a model; the others are traced, and not compiled."""

    def init(key: Key) -> Params:
        whole = init_params(config, key)
        return {part: whole[part] for part in parts}

    return jax.tree.map(np.asarray, jax.jit(init)(make_key(seed)))


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _scratch(source: ModelSource) -> ModelConfig:
    if source.path is not None:
        raise ConfigError("a model starts from a path or from scratch, not both")
    if isinstance(source.scratch, str):
        return configs.get(source.scratch)
    assert source.scratch is not None
    return ModelConfig.from_dict(source.scratch)


def _open(source: ModelSource, notices: list[str] | None = None) -> Bundle:
    from sdjax.loading import builtin
    from sdjax.loading.hub import resolve

    say = (lambda text: None) if notices is None else notices.append
    others: dict[str, Any] = {
        name: None if getattr(source, name) is None else resolve(getattr(source, name), say=say) for name in SEPARABLE
    }
    others["prediction"] = source.prediction
    if source.path is None or source.path in builtin.NAMES:
        return builtin.load_model(source.path or builtin.NAME, ema=source.ema, **others)
    path = resolve(source.path, say=say)
    if source.ema == "auto":  # training goes on from what was trained, where a file holds its average beside it
        with contextlib.suppress(CheckpointError):
            return convert.load_model(path, ema="no", **others)
    return convert.load_model(path, ema=source.ema, **others)
