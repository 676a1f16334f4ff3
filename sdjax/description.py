"""What all descriptions of a model share: types and values checked, conversion to and from plain dictionaries."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Self


class ConfigError(ValueError):
    """A model description that contradicts itself, or holds a field or value that sdjax does not know."""


def check(condition: bool, message: str) -> None:
    """Raises ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


class Description:
    """A frozen dataclass that checks its fields' types, then itself, and knows the dictionaries of config.json."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(f"{type(self).__name__}.{field.name}", getattr(self, field.name), field.type)
        self._validate()

    def _validate(self) -> None:
        """Raises ConfigError where fields contradict each other."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a JSON-ready dictionary, descriptions inside it as dictionaries too."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the description that `to_dict` wrote. Raises ConfigError, naming every field it does not know."""
        check(isinstance(values, Mapping), f"{cls.__name__} is read from a dictionary, got {type(values).__name__}")
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        unknown = sorted(map(str, set(values) - set(fields)))
        check(not unknown, f"{cls.__name__} has no field {', '.join(unknown)}; its fields are {', '.join(fields)}")
        out = {}
        for name, value in values.items():
            kind = fields[name]
            inner = next(
                (k for k in (kind, *typing.get_args(kind)) if isinstance(k, type) and issubclass(k, Description)), None
            )
            if inner is not None and value is not None:
                value = inner.from_dict(value)
            elif isinstance(value, list):
                value = tuple(value)
            out[name] = value
        try:
            return cls(**out)
        except TypeError as error:  # a field without default is missing
            raise ConfigError(f"{cls.__name__}: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _check_type(name: str, value: Any, kind: Any) -> None:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        options = args
    elif origin is Literal:
        check(value in args, f"{name} is one of {', '.join(map(str, args))}; got {value!r}")
        return
    elif origin is tuple:
        check(isinstance(value, tuple), f"{name} is a tuple, got {value!r}")
        for item in value:
            _check_type(f"{name}'s entry", item, args[0])
        return
    else:
        options = (kind,)
    wanted = tuple(types.NoneType if option is None else option for option in options)
    fits = isinstance(value, wanted) or (float in wanted and type(value) is int)
    if isinstance(value, bool) and bool not in wanted:
        fits = False
    check(fits, f"{name} is {' or '.join(t.__name__ for t in wanted)}; got {value!r}")
