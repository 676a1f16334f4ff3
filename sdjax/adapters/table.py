"""The patches that a picture may ask for, by name: `PATCHES`. A request, the command line and files choose from it.

To add one, write a frozen dataclass of settings with a `patch`, `numbers` and `check` (`Setting`), and a line here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from jaxtyping import PyTree

from sdjax.adapters.deep_cache import DeepCache
from sdjax.adapters.deep_shrink import DeepShrink
from sdjax.adapters.hidiffusion import RAUNet, WindowAttention
from sdjax.adapters.hypertile import HyperTile
from sdjax.adapters.patch import Patch
from sdjax.adapters.spans import Run
from sdjax.adapters.t_gate import TGate
from sdjax.adapters.token_downsampling import TokenDownsampling
from sdjax.adapters.token_merging import TokenMerging
from sdjax.checks.arguments import is_sequence, shown
from sdjax.config import UNetConfig
from sdjax.spelling import meant


class Setting(Protocol):
    """What one picture asks of a patch: a frozen dataclass whose fields are numbers and texts.

    Pictures whose settings have equal patches share a batch, each with its own numbers.
    """

    @property
    def patch(self) -> Patch:
        """The static part, for which a program is compiled."""
        ...

    def numbers(self, run: Run) -> PyTree:
        """Returns the picture's arrays, without a batch axis; None if the patch has none."""
        ...

    def check(self, config: UNetConfig) -> None:
        """Raises ValueError if a network of this description cannot be changed so."""
        ...


Chosen: TypeAlias = Setting | str | Mapping[str, Any]

PATCHES: dict[str, Any] = {
    "deep_shrink": DeepShrink,
    "rau_net": RAUNet,
    "window_attention": WindowAttention,
    "token_merging": TokenMerging,
    "token_downsampling": TokenDownsampling,
    "hypertile": HyperTile,
    "deep_cache": DeepCache,
    "t_gate": TGate,
}


def make_settings(chosen: Any) -> tuple[Setting, ...]:
    """Returns the settings of one picture's patches, from a sequence of them; None means no patches.

    Each is a settings object, a text such as "deep_shrink:factor=2,stop=0.3", or a mapping with "name" and the options.

    Raises ValueError for unknown names and options, for values out of range, and for two patches of one name.
    """
    several = [] if chosen is None else chosen if is_sequence(chosen) else [chosen]
    settings = tuple(map(make_setting, several))
    names = [type(setting).__name__ for setting in settings]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"a picture takes each patch once; got {names.count(name)} of {name}")
    return settings


def make_setting(chosen: Any) -> Setting:
    """Returns the settings of one patch (`make_settings`)."""
    if isinstance(chosen, str):
        chosen = _parsed(chosen)
    if isinstance(chosen, Mapping):
        options = dict(chosen)
        name = options.pop("name", None)
        if not isinstance(name, str) or name not in PATCHES:
            raise ValueError(
                f"unknown patch {shown(name)}{meant(name, PATCHES)}; the known ones are {', '.join(PATCHES)}"
            )
        own = {field.name for field in dataclasses.fields(PATCHES[name])}
        unknown = sorted(map(str, set(options) - own))
        if unknown:
            raise ValueError(
                f"the patch {name} has no {' and no '.join(unknown)}{meant(unknown[0], own)}; "
                f"it has {', '.join(sorted(own))}"
            )
        return PATCHES[name](**options)
    if not (dataclasses.is_dataclass(chosen) and all(hasattr(chosen, one) for one in ("patch", "numbers", "check"))):
        raise ValueError(f"a patch is a name of {', '.join(PATCHES)}, or its settings; got {shown(chosen)}")
    return chosen  # type: ignore[return-value]


def describe(setting: Setting) -> dict[str, Any]:
    """Returns the settings of a patch as a mapping that `make_setting` takes, for files."""
    names = {made: name for name, made in PATCHES.items()}
    return {"name": names.get(type(setting), type(setting).__name__), **dataclasses.asdict(setting)}  # type: ignore[call-overload]


def _parsed(text: str) -> dict[str, Any]:
    """Returns the name and options of a text, NAME or NAME:KEY=VALUE,KEY=VALUE."""
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not key or key in options or key == "name":
            raise ValueError(f"options of a patch are written NAME:KEY=VALUE,KEY=VALUE; got {shown(text)}")
        options[key] = _value(value)
    return {"name": name.strip(), **options}


def _value(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
