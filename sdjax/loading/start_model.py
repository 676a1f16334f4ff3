"""The start model of a training: describes, reads and changes it."""

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
    """The start model of a run: either `path`, as for `sdjax.load` (None: the built-in model), or `scratch`.

    `scratch` starts with random weights; it is the name of a description in `sdjax.configs`, or a description as a
    dictionary. `prediction`, `ema`, `vae`, `depth`, `vision` and `noise_stats` are those of `sdjax.load`, with one
    difference: if a file has both trained weights and their average, `ema` "auto" takes the trained weights.

    `changes` replaces fields of the description, such as {"schedule": {"zero_terminal_snr": True, "prediction": "v"}}.
    If the UNet gets more input channels, its first convolution is widened with zeros, so that its output does not
    change at first. Parts in `fresh` start from random weights. `copy` keeps a copy in the run's folder; False keeps
    only the paths of the files and their SHA-256.
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
            raise ValueError(f'model.ema must be "auto", "yes" or "no"; got {self.ema!r}')
        if self.prediction not in (None, *PREDICTIONS):
            raise ValueError(f"model.prediction is one of {', '.join(PREDICTIONS)}, or None; got {self.prediction!r}")
        if not self.copy and (self.scratch is not None or self.fresh):
            name = "fresh" if self.fresh else "scratch"
            raise ValueError(
                f"model.copy = False needs a model in files, without random weights: leave out model.{name}"
            )
        if self.scratch is None:
            if self.tokenizer is not None:
                raise ValueError("model.tokenizer needs model.scratch: other models have their own tokenizer")
            return
        default = ModelSource()
        for name in ("path", "prediction", "ema", "vae", "depth", "vision", "noise_stats", "fresh"):
            if getattr(self, name) != getattr(default, name):
                raise ValueError(f"model.{name} has no effect when training from scratch (model.scratch): leave it out")


@pinned()
def bytes_of(source: ModelSource) -> int:
    """Returns the number of bytes of a copy of the model, without reading its weights."""
    if source.scratch is not None:
        shapes = jax.tree.leaves(param_shapes(describe(source)))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in _open(source).leaves.values())


@pinned()
def describe(source: ModelSource) -> ModelConfig:
    """Returns the description of the model to train, without reading its weights.

    Raises ConfigError for changes that do not fit, CheckpointError if the source is not a model.
    """
    before = _scratch(source) if source.scratch is not None else _open(source).config
    config = change(before, source.changes)
    check_fresh(source, config)
    return config


@pinned()
def open_start(source: ModelSource, seed: int) -> Bundle:
    """Returns the model to train, with its changes made. Raises as `describe`."""
    if source.scratch is not None:
        config = change(_scratch(source), source.changes)
        tokenizer = Tokenizer() if source.tokenizer is None else Tokenizer.load(local_path(source.tokenizer))
        if tokenizer.vocab_size != config.text.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the text encoder {config.text.vocab_size}: set "
                "model.tokenizer to the model's tokenizer"
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
    """Raises ConfigError unless all parts in `fresh` are parts of the model."""
    known = param_shapes(config)
    unknown = [part for part in source.fresh if part not in known]
    if unknown:
        raise ConfigError(f"model.fresh must name parts of the model ({', '.join(known)}); got {unknown[0]!r}")


def change(config: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """Returns a description with fields replaced. In nested descriptions only the named fields are replaced."""

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
    """Returns the parameters for a changed description, and notices about the changes.

    New input channels of the UNet get zero weights, so that its output does not depend on them at first. Raises
    ConfigError for changes that need other parameters.
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
            f"model.changes needs {len(wrong)} other parameters, such as {wrong[0]} (found: {found.get(wrong[0])}, "
            f"needed: {wanted.get(wrong[0])}); only the schedule, names and sizes in pixels can be changed, and input "
            "channels can be added"
        )
    return params, notices


def _fresh(config: ModelConfig, parts: tuple[str, ...], seed: int) -> Params:
    """Returns random parameters for the named parts of a model."""

    def init(key: Key) -> Params:
        whole = init_params(config, key)
        return {part: whole[part] for part in parts}

    return jax.tree.map(np.asarray, jax.jit(init)(make_key(seed)))


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _scratch(source: ModelSource) -> ModelConfig:
    if source.path is not None:
        raise ConfigError("a model starts from a path or from scratch: give one of them")
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
    if source.ema == "auto":  # if a file has both, training continues from the trained weights, not from their average
        with contextlib.suppress(CheckpointError):
            return convert.load_model(path, ema="no", **others)
    return convert.load_model(path, ema=source.ema, **others)
