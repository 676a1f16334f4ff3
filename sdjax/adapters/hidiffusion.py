"""HiDiffusion's two parts: smaller maps inside the UNet at first (RAU-Net), and attention in windows (MSW-MSA).

Source: Zhang et al. 2023, "HiDiffusion" (arXiv 2311.17528), sections 3.2 and 3.3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdjax.adapters.patch import Context, Interceptor
from sdjax.adapters.self_attention import Attend, cut, joined, self_attention
from sdjax.adapters.spans import AsItIs, Inside, Run, Span, check_levels, check_span, make_span, set_fields
from sdjax.checks.arguments import whole
from sdjax.config import UNetConfig
from sdjax.nn.layers.resnet import Downsample, Upsample
from sdjax.typing import Timestep

GOLDEN = 0.6180339887  # the fractional parts of its multiples are spread evenly
SHIFTS = 4  # windows are shifted by 0, 1/4, 2/4 or 3/4 of their sides


@dataclass(frozen=True)
class RAUNet:
    """The settings of the resolution-aware UNet for one picture.

    From share `start` to share `stop` of the way from noise to picture, the downsampling of level `level` (0 is the
    first) shrinks four times instead of twice, and the matching upsampling enlarges four times. The paper's `stop` for
    Stable Diffusion 1.5 at 1024 x 1024 is 0.4.

    Raises ValueError for values out of range.
    """

    level: int = 0
    start: float = 0.0
    stop: float = 0.4

    def __post_init__(self) -> None:
        set_fields(self, {"level": whole("level", self.level, 0), **check_span(self.start, self.stop)})

    @property
    def patch(self) -> "Resampling":
        """The static part."""
        return Resampling(self.level)

    def numbers(self, run: Run) -> Span:
        """Returns the picture's own numbers."""
        return make_span(self.start, self.stop)

    def check(self, config: UNetConfig) -> None:
        """Raises ValueError unless the network has a downsampling at this level."""
        last = len(config.channels) - 2
        if last < 0:
            raise ValueError("rau_net needs a network with a downsampling; this one has none")
        whole("level", self.level, 0, last, context=" for this network")


@dataclass(frozen=True)
class Resampling:
    """Makes one downsampling and the matching upsampling twice as strong. Its per-image arrays are a Span.

    The paper's downsampling is a convolution of stride 4 and dilation 2. This is the usual one, of stride 2, of every
    second row and column, so the convolution itself stays as it is.
    """

    level: int

    def active(self, t: Timestep, own: Span) -> Bool[Array, "b"]:
        """Returns in which images the network is changed."""
        return own.holds(t)

    def intercept(self, shared: None, own: Span) -> Interceptor:
        """Returns the interceptor of `down_blocks_N/downsamplers_0` and of the matching `up_blocks_M/upsamplers_0`."""
        inside = Inside()

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = inside.see(args, context)
            if not path:
                return method(*args, **kwargs)
            assert inside.config is not None
            up = f"up_blocks_{len(inside.config.channels) - 2 - self.level}/"
            if isinstance(context.module, Downsample) and path.startswith(f"down_blocks_{self.level}/"):
                return method(args[0][:, ::2, ::2], *args[1:], **kwargs)
            if isinstance(context.module, Upsample) and path.startswith(up):
                return method(args[0].repeat(2, 1).repeat(2, 2), *args[1:], **kwargs)
            return method(*args, **kwargs)

        return intercept


@dataclass(frozen=True)
class WindowAttention(AsItIs):
    """The settings of attention in windows: in the first `levels` levels, four windows of half the height and width.

    Each place attends to its own window only, which costs a quarter. The windows are shifted from call to call, by an
    amount that depends on the timestep, so no edge stays in one place. A side of odd length is not divided.

    Raises ValueError for values out of range.
    """

    levels: int = 1

    def __post_init__(self) -> None:
        set_fields(self, {"levels": whole("levels", self.levels, 1)})

    def check(self, config: UNetConfig) -> None:
        """Raises ValueError if the network does not have so many levels."""
        check_levels(self.levels, config)

    def intercept(self, shared: None = None, own: None = None) -> Interceptor:
        """Returns the interceptor of `.../attn1/attend`."""

        def changed(attend: Attend, qkv: tuple[Array, Array, Array], inside: Inside, path: str) -> Array:
            assert inside.t is not None
            return in_windows(attend, qkv, inside.sizes.around(path), shift_of(inside.t))

        return self_attention(changed, self.levels)


def shift_of(t: Timestep) -> Int[Array, "b"]:
    """Returns by how many quarters of a window the windows are shifted at each timestep, from 0 to 3."""
    return (jnp.floor(t * GOLDEN * SHIFTS) % SHIFTS).astype(jnp.int32)


def in_windows(
    attend: Attend, qkv: tuple[Array, ...], size: tuple[int, int], shift: Int[Array, "b"]
) -> Float[Array, "b n h d"]:
    """Returns `attend` of queries, keys and values [b, n, h, d] of maps of this size, in four shifted windows."""
    height, width = size
    parts = tuple(2 if side % 2 == 0 else 1 for side in size)
    steps = [side // count // SHIFTS if count == 2 else 0 for side, count in zip(size, parts)]
    down, right = (step * shift for step in steps)
    windows = [cut(_rolled(a.reshape(a.shape[0], height, width, -1), down, right), parts) for a in qkv]
    heads, d = qkv[0].shape[-2:]
    out = attend(*(a.reshape(a.shape[0], -1, heads, d) for a in windows))  # [b windows, n / windows, h, d]
    whole_map = _rolled(joined(out.reshape(*windows[0].shape), parts), -down, -right)
    return whole_map.reshape(qkv[0].shape)


def _rolled(x: Float[Array, "b h w c"], down: Int[Array, "b"], right: Int[Array, "b"]) -> Float[Array, "b h w c"]:
    """Returns maps whose entry (i, j) is x's entry (i + down, j + right), around the edges."""
    b, h, w, _ = x.shape
    rows = (jnp.arange(h) + down[:, None]) % h
    columns = (jnp.arange(w) + right[:, None]) % w
    return x[jnp.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]
