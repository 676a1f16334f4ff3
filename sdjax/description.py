"""The base of all descriptions of a model: checks of types and values, conversion to and from plain dictionaries."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar

from sdjax.spelling import meant

Built = TypeVar("Built")


class ConfigError(ValueError):
    """A model description contradicts itself, or has an unknown field or value."""


def check(condition: bool, message: str) -> None:
    """Raises ConfigError with the message if the condition is false."""
    if not condition:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True)
class Description:
    """A frozen dataclass. It checks the types and values of its fields, and converts to and from dictionaries."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(f"{type(self).__name__}.{field.name}", getattr(self, field.name), field.type)
        self._validate()

    def _validate(self) -> None:
        """Raises ConfigError if fields contradict each other."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a JSON-ready dictionary. Nested descriptions become dictionaries too."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the description that `to_dict` wrote. Raises ConfigError, listing all unknown fields."""
        return build(cls, values, cls.__name__)


def build(cls: type[Built], values: Mapping[str, Any], name: str = "config") -> Built:
    """Returns an instance of the dataclass `cls` from plain values. Nested descriptions are built too.

    `name` is where the values are, for messages. Raises ConfigError for an unknown field, a missing one or a bad value.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} holds fields with names; got {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = [str(key) for key in values if key not in fields]
    if unknown:
        raise ConfigError(
            f"{name} has no field {', '.join(unknown)}{meant(unknown[0], fields)}; it has {', '.join(fields)}"
        )
    out = {}
    for key, value in values.items():
        table = fields[key].metadata.get("kinds")
        kind = hints[key] if table is None else _kind(table, fields[key].default, value, f"{name}.{key}")
        out[key] = _value(kind, value, f"{name}.{key}")
    missing = [
        key for key, field in fields.items()
        if key not in out and field.default is field.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise ConfigError(f"{name} needs {' and '.join(missing)}")
    try:
        return cls(**out)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from None


def kinds(default: Any, table: Mapping[str, type], **metadata: Any) -> Any:
    """Returns a dataclass field for one of several descriptions. `build` chooses it by the value's "kind"."""
    return dataclasses.field(default=default, metadata={**metadata, "kinds": table})


def _kind(table: Mapping[str, type], default: Any, value: Any, name: str) -> type:
    kind = value.get("kind", default.kind) if isinstance(value, Mapping) else default.kind
    if not isinstance(kind, str) or kind not in table:
        raise ConfigError(f"{name}.kind is one of {', '.join(table)}; got {kind!r}{meant(kind, table)}")
    return table[kind]


def _value(kind: Any, value: Any, name: str) -> Any:
    """Returns the value, converted to the type `kind` of its field. Raises ConfigError if it does not fit."""
    options = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    if value is None and type(None) in options:
        return None
    problems = []
    for option in options:
        try:
            return _one(option, value, name)
        except ConfigError as error:
            problems.append(str(error))
    raise ConfigError(problems[0])


def _one(kind: Any, value: Any, name: str) -> Any:
    if kind is Any:  # checked by the description itself
        return value
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return build(kind, value, name)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{name} is one of {', '.join(map(str, args))}; got {value!r}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is tuple or (origin is not None and issubclass(origin, typing.Sequence) and origin is not str):
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ConfigError(f"{name} is a list; got {value!r}")
        if origin is tuple and args[-1] is not Ellipsis:
            if len(value) != len(args):
                raise ConfigError(f"{name} has {len(args)} entries; got {len(value)}")
            return tuple(_value(arg, item, f"{name}[{i}]") for i, (arg, item) in enumerate(zip(args, value)))
        return tuple(_value(args[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} holds fields with names; got {value!r}")
        return {key: _plain(item) for key, item in value.items()}
    plain = kind if isinstance(kind, type) else object
    if not isinstance(value, plain) or (isinstance(value, bool) and plain in (int, float)):
        raise ConfigError(f"{name} is a {getattr(kind, '__name__', kind)}; got {value!r}")
    return value


def _plain(value: Any) -> Any:
    """Returns the value in JSON's types: dictionaries, lists, numbers and texts."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


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
