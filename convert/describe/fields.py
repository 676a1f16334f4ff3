"""Checks of the fields of diffusers' config.json files."""

from collections.abc import Mapping
from typing import Any

from sdjax.config import ConfigError
from sdjax.convert.errors import shown


def only(config: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]], what: str) -> None:
    """Raises ConfigError, naming file and field, where a field has none of the values that it may have."""
    for name, values in allowed.items():
        if name in config and config[name] not in values:
            expected = " or ".join(map(repr, values))
            raise ConfigError(f"{what}: {name} is {expected} in Stable Diffusion v1 and v2; got {shown(config[name])}")


def channels_of(config: Mapping[str, Any], what: str, default: list[int]) -> list[Any]:
    """Returns the field block_out_channels. Raises ConfigError if it is no short list."""
    channels = config.get("block_out_channels", default)
    if not isinstance(channels, list) or not 1 <= len(channels) <= 16:
        raise ConfigError(f"{what}: block_out_channels is a short list; got {shown(channels)}")
    return channels
