"""DeepCache: in most calls, only the outer layers of the UNet are computed; the inner ones' features are kept.

Source: Ma et al. 2023, "DeepCache: Accelerating Diffusion Models for Free" (arXiv 2312.00858), sections 3.2 and 3.3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from sdjax.adapters.memory import Moment, Recall, level_shape
from sdjax.adapters.patch import Context, Interceptor, path_of
from sdjax.adapters.spans import Run, set_fields
from sdjax.checks.arguments import number, whole
from sdjax.config import UNetConfig

LONGEST = 2048  # calls of a run that a plan speaks of; later ones compute everything
MOST_POWER = 8


@dataclass(frozen=True)
class DeepCache:
    """The settings of DeepCache for one picture.

    Of `interval` calls one computes the whole network; 1 is all of them. The others compute only the skips 0 to
    `branch` and the layers that take these. Skip 0 is the first convolution; each layer of the way down has one more.

    With `power` above 1 the calls are not evenly spread: as many are dense around call `center`, and the rest lie the
    farther apart the higher the power is. Paper, eq. 9.

    Raises ValueError for values out of range.
    """

    interval: int = 3
    branch: int = 0
    center: int = 0
    power: float = 1.0

    def __post_init__(self) -> None:
        wholes = {name: whole(name, getattr(self, name), low) for name, low in CHECKED.items()}
        set_fields(self, {**wholes, "power": number("power", self.power, 1, MOST_POWER)})
        if self.power == 1 and self.center:
            raise ValueError("center has no effect with power 1, an even plan: give a power above 1, or leave it out")

    @property
    def patch(self) -> "KeptFeatures":
        """The static part."""
        return KeptFeatures(self.branch)

    def numbers(self, run: Run) -> Int[np.ndarray, "n"]:
        """Returns for each call the last call up to it that computes everything."""
        whole_ones = np.zeros(LONGEST, bool)
        whole_ones[plan(run.calls, self.interval, self.center, self.power)] = True
        return np.maximum.accumulate(np.where(whole_ones, np.arange(LONGEST, dtype=np.int32), 0))

    def check(self, config: UNetConfig) -> None:
        """Raises ValueError for a branch that the network does not have."""
        whole(
            "branch",
            self.branch,
            0,
            len(config.channels) * (config.num_res_blocks + 1) - 1,
            context=" for this network",
        )


CHECKED = {"interval": 1, "branch": 0, "center": 0}  # the smallest values


def plan(calls: int, interval: int, center: int = 0, power: float = 1.0) -> list[int]:
    """Returns the numbers of the calls that compute everything, of a run of so many calls; 0 is one of them.

    With power 1 it is every `interval`-th. Else they are int(l^power + center) for as many l, evenly spaced from
    (-center)^(1/power) to (calls - center)^(1/power), where powers keep the sign; equal ones count once.
    """
    calls = min(max(calls, 1), LONGEST)
    if power == 1 or interval == 1:
        return list(range(0, calls, interval))
    center = min(center, calls - 1)
    ends = -(center ** (1 / power)), (calls - center) ** (1 / power)
    spread = np.linspace(*ends, math.ceil(calls / interval), endpoint=False)
    chosen = np.trunc(np.sign(spread) * np.abs(spread) ** power + 1e-9).astype(int) + center
    return sorted({0, *(int(one) for one in chosen[1:] if 0 < one < calls)})


@struct.dataclass
class Features:
    """The memory: what enters the join of skip `branch`, and the number of the call that computed it (-1: none)."""

    map: Float[Array, "b h w c"]
    made: Int[Array, "b"]


@dataclass(frozen=True)
class KeptFeatures:
    """Keeps what the inner layers give to the join of skip `branch`. Its per-image arrays are `DeepCache.numbers`.

    An entry is computed if the plan asks for it since its features were made. So a branch of guidance that has rested
    is computed when it is back.
    """

    branch: int

    def begin(self, config: UNetConfig, shape: tuple[int, ...], dtype: DTypeLike) -> Features:
        """Returns the memory before the first call."""
        level, before_end = self._place(config)
        inner = level if before_end else min(level + 1, len(config.channels) - 1)
        sizes = level_shape(config, shape, level)
        return Features(jnp.zeros((*sizes, config.channels[inner]), dtype), jnp.full(shape[0], -1, jnp.int32))

    def needed(self, own: Int[Array, "b n"], moment: Moment, memory: Features) -> Bool[Array, "b"]:
        """Returns which entries compute everything."""
        at = jnp.minimum(moment.index, LONGEST - 1)
        last = jnp.take_along_axis(own, at[:, None], axis=1)[:, 0]
        return memory.made < jnp.where(moment.index < LONGEST, last, moment.index)

    def _place(self, config: UNetConfig) -> tuple[int, bool]:
        """Returns the level of the skip, and whether other joins of this level come before its own."""
        level, number_there = divmod(self.branch, config.num_res_blocks + 1)
        return level, number_there < config.num_res_blocks

    def intercept(self, shared: None, own: Recall) -> Interceptor:
        """Returns the interceptor of the join of the skip, and of the layers inside of it."""
        config: list[UNetConfig] = []

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = path_of(context)
            if not path:
                config[:] = [context.module.config]
                return method(*args, **kwargs)
            number_of_layer = depth(path, config[0])
            if number_of_layer is None or number_of_layer < self.branch:
                return method(*args, **kwargs)
            if number_of_layer > self.branch:
                return method(*args, **kwargs) if own.needed is not None else skipped(context.module, path, args)
            if not path.partition("/")[2].startswith("joins_"):
                return method(*args, **kwargs)
            x, skip = args
            memory: Features = own.memory
            if own.needed is None:
                return method(memory.map.astype(x.dtype), skip)
            chosen = jnp.where(own.needed[:, None, None, None], x, memory.map.astype(x.dtype))
            made = jnp.where(own.needed, own.moment.index, memory.made)
            own.kept = Features(chosen.astype(memory.map.dtype), made)
            return method(chosen, skip)

        return intercept


def depth(path: str, config: UNetConfig) -> int | None:
    """Returns the smallest branch at which a layer is computed in each call; None for other paths.

    A layer of the way down makes the skip of this number, and one of the way up takes it.
    """
    each, levels = config.num_res_blocks + 1, len(config.channels)
    block, _, layer = path.partition("/")
    if path == "mid_block":
        return levels * each
    side, _, at = block.rpartition("_")
    if "/" in layer or side not in ("down_blocks", "up_blocks"):
        return None
    name, _, place = layer.rpartition("_")
    if not name:
        return None
    if side == "down_blocks":
        return int(at) * each + (each if name == "downsamplers" else int(place) + 1)
    level = levels - 1 - int(at)
    return level * each + (0 if name == "upsamplers" else each - 1 - int(place))


def skipped(module: Any, path: str, args: tuple[Any, ...]) -> Array:
    """Returns zeros in the shape of a layer's output, in the place of calling it."""
    x, name = args[0], path.rpartition("/")[2].rpartition("_")[0]
    b, height, width, c = x.shape
    if name == "joins":
        c += args[1].shape[-1]
    elif name == "resnets":
        c = module.channels
    elif name == "downsamplers":
        height, width = -(-height // 2), -(-width // 2)
    elif name == "upsamplers":
        height, width = args[1]
    return jnp.zeros((b, height, width, c), x.dtype)
