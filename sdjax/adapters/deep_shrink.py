"""Deep shrink: large pictures with a network trained on small ones, by smaller maps inside the network at first.

While a picture is mostly noise, the inner layers of the UNet see a shrunken map, which has the size that they were
trained on. So they draw one subject instead of several copies. Later the network is unchanged and adds detail.

Source: Kohya's Deep Shrink (2023); the names and defaults are those of ComfyUI's node PatchModelAddDownscale.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Bool

from sdjax.adapters.patch import Context, Interceptor
from sdjax.adapters.spans import Inside, Run, Span, check_span, make_span, set_fields
from sdjax.checks.arguments import number, whole
from sdjax.config import UNetConfig
from sdjax.nn.layers.interpolation import METHODS, interpolate
from sdjax.typing import Timestep

LARGEST_FACTOR = 8


@dataclass(frozen=True)
class DeepShrink:
    """The settings of deep shrink for one picture.

    The map is shrunk by `factor` behind input block `block`, and enlarged again where the output blocks meet the skip
    of that block. Input block 0 is the first convolution; 3 is the first downsampling of Stable Diffusion. It is active
    from share `start` to share `stop` of the way from noise to picture. `method` of resizing: "bicubic" or "bilinear".

    Raises ValueError for values out of range.
    """

    factor: float = 2.0
    block: int = 3
    start: float = 0.0
    stop: float = 0.35
    method: str = "bicubic"

    def __post_init__(self) -> None:
        factor = number("factor", self.factor, 1, LARGEST_FACTOR)
        if self.method not in METHODS:
            raise ValueError(f"method is one of {', '.join(METHODS)}; got {self.method!r}")
        set_fields(
            self, {"factor": factor, "block": whole("block", self.block, 0), **check_span(self.start, self.stop)}
        )

    @property
    def patch(self) -> "Shrink":
        """The static part."""
        return Shrink(self.factor, self.block, self.method)

    def numbers(self, run: Run) -> Span:
        """Returns the picture's own numbers."""
        return make_span(self.start, self.stop)

    def check(self, config: UNetConfig) -> None:
        """Raises ValueError for a block that the network does not have."""
        next_layer(config, self.block)


@dataclass(frozen=True)
class Shrink:
    """Shrinks the map behind input block `block`. Its per-image arrays are a Span."""

    factor: float
    block: int
    method: str

    def active(self, t: Timestep, own: Span) -> Bool[Array, "b"]:
        """Returns in which images the network is changed."""
        return own.holds(t)

    def intercept(self, shared: None, own: Span) -> Interceptor:
        """Returns the interceptor of the layer behind the block, and of the joins of features and skips."""
        inside = Inside()

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = inside.see(args, context)
            assert inside.config is not None
            if path == next_layer(inside.config, self.block):
                size = [max(1, round(side / self.factor)) for side in args[0].shape[1:3]]
                args = (interpolate(args[0], (size[0], size[1]), method=self.method), *args[1:])
            elif path.startswith("up_blocks_") and path.partition("/")[2].startswith("joins_"):
                x, skip = args
                if x.shape[1:3] != skip.shape[1:3]:
                    args = (interpolate(x, skip.shape[1:3], method=self.method), skip)
            return method(*args, **kwargs)

        return intercept


def next_layer(config: UNetConfig, block: int) -> str:
    """Returns the path of the layer behind input block `block`. Raises ValueError for a block that does not exist."""
    levels, each = len(config.channels), config.num_res_blocks + 1
    last = levels * each - 1 if config.mid_block else levels * each - 2
    if block > last:
        raise ValueError(f"block is from 0 to {last} for this network; got {block}")
    level, j = divmod(block, each)
    if j < config.num_res_blocks:
        return f"down_blocks_{level}/resnets_{j}"
    return f"down_blocks_{level}/downsamplers_0" if level < levels - 1 else "mid_block"
