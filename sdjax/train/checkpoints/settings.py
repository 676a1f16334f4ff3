"""Compares the settings that a run was started with, stored in its folder, with those it is resumed with."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from sdjax import errors
from sdjax.config import ConfigError
from sdjax.loading import reference
from sdjax.loading.run_layout import REFERENCE, SETTINGS
from sdjax.train.config import TrainConfig

# These may not change within a run: its state depends on them
KEPT = ("model", "train", "trainable", "seed", "autoencoder", "objective.kind", "optim.name")
SHOWN = 100  # characters of a value in a message


class Change(NamedTuple):
    """A setting that differs: its name, such as "optim.steps", and its values then and now, in terms of JSON."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name} was {_shown(self.old)} when this run was started, and is {_shown(self.new)} now"


def stored(config: TrainConfig) -> dict[str, Any]:
    """Returns a configuration in terms of JSON, with its number of warm-up steps filled in."""
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    values["optim"]["warmup"] = config.optim.warmup_steps
    del values["optim"]["warmup_most"]  # only used to compute `warmup`
    return values


def with_own_warmup(config: TrainConfig, before: Mapping[str, Any]) -> TrainConfig:
    """Returns the configuration with the warm-up that the run began with, unless the configuration sets one.

    Otherwise a run that is made longer would warm up again.
    """
    own = before.get("optim", {}).get("warmup")
    if config.optim.warmup is not None or not isinstance(own, int) or own + config.optim.cooldown > config.optim.steps:
        return config
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, warmup=own))


def changes(config: Any, now: Mapping[str, Any], before: Mapping[str, Any], within: str = "") -> list[Change]:
    """Returns the differences between a configuration, in terms of JSON, and the stored one.

    A field that the stored one does not have counts as its default.
    """
    found = []
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if name not in now:
            continue
        old = before[name] if name in before else _default(field)
        if dataclasses.is_dataclass(value) and isinstance(old, Mapping):
            found += changes(value, now[name], old, f"{within}{name}.")
        elif now[name] != old:
            found.append(Change(within + name, old, now[name]))
    return found


def resumed(config: TrainConfig, folder: pathlib.Path, say: Callable[[str], None]) -> TrainConfig:
    """Returns the configuration of a resumed run, with the warm-up that it began with. `say` gets each change.

    Raises ConfigError if settings that the state depends on have changed, or if the run started from another model.
    """
    path = folder / SETTINGS
    if not path.exists():
        raise ConfigError(f"{folder} holds checkpoints but no {SETTINGS}: train in another folder")
    try:
        with errors.doing("reading the settings", path):
            before = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); train in another folder") from None
    config = with_own_warmup(config, before)
    found = changes(config, stored(config), before)
    found = [change for change in found if change.name != "model.copy"]  # the model is kept as it was
    if (folder / REFERENCE).exists():
        places = [change for change in found if change.name in reference.CHANGES]
        if places and jax.process_index() == 0:
            reference.move(folder, config.model)
        found = [change for change in found if change not in places]
    check(found, folder, config.optim.name)
    for change in found:
        say(f"{change}: the run goes on with the new value")
    return config


def check(found: list[Change], folder: Any, optimiser: str) -> None:
    """Raises ConfigError for changes that do not fit the state of a run."""
    kept = [change for change in found if _is_kept(change, optimiser)]
    if kept:
        raise ConfigError(
            f"{folder} holds a training with another {' and another '.join(change.name for change in kept)}: "
            f"{'; '.join(map(str, kept))}. Its state depends on this: go back to the old "
            f"value{'s' * (len(kept) > 1)} ({SETTINGS} there keeps all), or train in another folder"
        )


def _is_kept(change: Change, optimiser: str) -> bool:
    name, old, new = change
    if name in ("ema.decay", "optim.clip"):
        return (old is None) != (new is None)
    if name == "optim.weight_decay":
        return optimiser == "adafactor" and bool(old) != bool(new)
    if name in ("optim.part_rates", "optim.up_rate"):
        unset: tuple[dict[str, float], float] = ({}, 1.0)
        fixed = [[k for k, rate in v.items() if not rate] if isinstance(v, dict) else [] for v in (old, new)]
        return (old in unset) != (new in unset) or fixed[0] != fixed[1]
    if name == "optim.rates":  # parameters that do not learn have no state
        fixed = [[pattern for pattern, factor in rates or () if not factor] for rates in (old, new)]
        return bool(old) != bool(new) or fixed[0] != fixed[1]
    return name in KEPT or name.partition(".")[0] in KEPT


def _default(field: dataclasses.Field) -> Any:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is dataclasses.MISSING:
        return None
    plain = dataclasses.is_dataclass(default) and not isinstance(default, type)
    return json.loads(json.dumps(dataclasses.asdict(default) if plain else default))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
