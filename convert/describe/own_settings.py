"""Settings that diffusers' files cannot hold. They are in our own file beside them, which diffusers does not read.

Examples are the default guidance scale, the name, and a default size that differs from the release's.
"""

from collections.abc import Mapping
from typing import Any

from sdjax.config import ConfigError, ModelConfig
from sdjax.convert.containers.diffusers_folder import OWN_SETTINGS


def differing(described: ModelConfig, config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of `config`, as plain data, that are others than in what diffusers' files describe."""
    return _differing(described.to_dict(), config.to_dict())


def applied(described: ModelConfig, file: Mapping[str, Any] | None) -> ModelConfig:
    """Returns the configuration from diffusers' files, updated by the fields in our file. Raises ConfigError."""
    if file is None:
        return described
    fields = file.get("model")
    if not isinstance(fields, Mapping):
        raise ConfigError(f"{OWN_SETTINGS}: its model holds the fields of a description; got {type(fields).__name__}")
    try:
        return ModelConfig.from_dict(_merged(described.to_dict(), fields))
    except ConfigError as error:
        raise ConfigError(f"{OWN_SETTINGS}: {error}") from None


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    out = {}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            if inner := _differing(before, value):
                out[name] = inner
        elif value != before:
            out[name] = value
    return out


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(old)
    for name, value in new.items():
        both = isinstance(value, Mapping) and isinstance(out.get(name), Mapping)
        out[name] = _merged(out[name], value) if both else value
    return out
