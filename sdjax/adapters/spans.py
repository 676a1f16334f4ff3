"""Where patches of the UNet are active: a range of timesteps, and the sizes of the maps inside.

Other tools count from the start of sampling: 0 is pure noise and 1 is the picture. Here such a share is a timestep, as
in ComfyUI: share p is timestep 999 (1 - p). So the number of steps does not matter.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from flax import struct
from jaxtyping import Array, Bool

from sdjax.adapters.patch import Context, path_of
from sdjax.checks.arguments import number
from sdjax.config import UNetConfig
from sdjax.typing import Timestep

LAST = 999  # the timestep of pure noise
Numbers = np.ndarray | Array


class Run(NamedTuple):
    """What the numbers of a picture's patches may depend on: the picture's seed, and the network's number of calls."""

    seed: int = 0
    calls: int = 1


@struct.dataclass
class Span:
    """A range of timesteps for each image, both ends included: from `first`, the noisier one, down to `last`."""

    first: Numbers
    last: Numbers

    def holds(self, t: Timestep) -> Bool[Array, "b"]:
        """Returns whether each timestep is in the range."""
        return (t <= self.first) & (t >= self.last)


def make_span(start: float, stop: float) -> Span:
    """Returns the range from share `start` to share `stop` of the way from noise to picture. 0 and 1 have no limit."""
    first = np.inf if start <= 0 else LAST * (1 - start)
    last = -np.inf if stop >= 1 else LAST * (1 - stop)
    return Span(np.asarray(first, np.float32), np.asarray(last, np.float32))


def check_span(start: float, stop: float) -> dict[str, float]:
    """Returns start and stop as numbers. Raises ValueError unless 0 <= start < stop <= 1."""
    start, stop = number("start", start, 0, 1), number("stop", stop, 0, 1)
    if start >= stop:
        raise ValueError(f"start must be smaller than stop; got start {start:g} and stop {stop:g}")
    return {"start": start, "stop": stop}


def check_levels(levels: int, config: UNetConfig) -> None:
    """Raises ValueError if a network does not have so many levels."""
    have = len(config.channels)
    if levels > have:
        raise ValueError(f"levels is from 1 to {have} for this network; got {levels}")


def set_fields(settings: Any, values: Mapping[str, Any]) -> None:
    """Sets checked values of a frozen dataclass, from its __post_init__."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)


class Sizes(dict[str, tuple[int, int]]):
    """The (height, width) of the maps that transformers get, by the paths of the transformers."""

    def see(self, path: str, args: tuple[Any, ...]) -> None:
        """Remembers the size if the layer at this path is a transformer."""
        if path == transformer_of(path) and path.rpartition("/")[2].startswith("attentions_"):
            self[path] = args[0].shape[1:3]

    def around(self, path: str) -> tuple[int, int]:
        """Returns the size of the map that a layer of a transformer works on."""
        return self[transformer_of(path)]


def transformer_of(path: str) -> str:
    """Returns the path of the transformer that a layer belongs to, such as mid_block/attentions_0."""
    return "/".join(path.split("/")[:2])


@dataclasses.dataclass(frozen=True)
class AsItIs:
    """The base of settings that are a patch themselves, without numbers of single pictures."""

    @property
    def patch(self) -> Self:
        """The static part: all of it."""
        return self

    def numbers(self, run: Run) -> Any:
        """Returns no numbers."""
        return None


@dataclasses.dataclass(eq=False)
class Inside:
    """What an interceptor has seen of a call of the UNet. Call `see` for every layer."""

    config: UNetConfig | None = None
    t: Timestep | None = None
    sizes: Sizes = dataclasses.field(default_factory=Sizes)
    alone: set[str] = dataclasses.field(default_factory=set)  # the attentions that were called without a context

    def see(self, args: tuple[Any, ...], context: Context) -> str:
        """Returns the path of the layer. Remembers timesteps, sizes, and attentions without a context."""
        path = path_of(context)
        self.sizes.see(path, args)
        if not path:
            self.config, self.t = context.module.config, args[1]
        elif path.endswith("/attn1") and len(args) == 1:
            self.alone.add(path)
        return path

    def attends_to_itself(self, path: str) -> bool:
        """Returns whether a layer is the attention of a map to itself."""
        return path in self.alone

    def level(self, path: str) -> int:
        """Returns the level of a layer: 0 has the largest maps. The middle block is behind the last one."""
        assert self.config is not None
        count = len(self.config.channels)
        block, _, number = path.partition("/")[0].rpartition("_")
        if block == "down_blocks":
            return int(number)
        return count - 1 - int(number) if block == "up_blocks" else count

    def at_level(self, path: str, levels: int) -> bool:
        """Returns whether a layer is in one of the first `levels` levels, which have the largest maps."""
        return self.level(path) < levels
