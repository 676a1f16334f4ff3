"""Motion modules as a patch: a batch of frames becomes a clip, in which frames attend to each other.

Source: guoyww/AnimateDiff animatediff/models/unet_blocks.py, which says where the modules stand.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.adapters.patch import Context, Interceptor, path_of, unpatched
from sdjax.config import UNetConfig
from sdjax.nn.motion import MotionConfig, MotionModule
from sdjax.typing import Params

_BLOCK = re.compile(r"(down_blocks_\d+|up_blocks_\d+|mid_block)/(attentions|resnets)_(\d+)")
_NORM = re.compile(r".*/resnets_\d+/norm[12]|conv_norm_out")


@dataclasses.dataclass(frozen=True)
class Motion:
    """Runs a motion module behind every attention block of the UNet, and behind residual blocks without one.

    The batch holds `frames` frames of one clip, in order. If guidance has k branches, those of a frame are neighbours
    (`sdjax.diffusion.conditioning.stack`); each branch is a clip of its own. The shared arrays are the modules'
    parameters. `without_attention` are the blocks whose modules stand behind the residual blocks.

    `over_frames`: the modules' GroupNorm counts all frames of a clip together, as in diffusers. `resnets_over_frames`:
    so do the GroupNorms of the UNet's residual blocks and of its output, as version 1 was trained.
    """

    config: MotionConfig
    frames: int
    without_attention: tuple[str, ...] = ()
    over_frames: bool = False
    resnets_over_frames: bool = False

    def intercept(self, shared: Params, own: None) -> Interceptor:
        """Returns the interceptor of the blocks."""

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = path_of(context)
            if self.resnets_over_frames and _NORM.fullmatch(path):
                (x,) = args
                return self._frames(method(self._clips(x)))
            out = method(*args, **kwargs)
            params = self._params(shared, path)
            if params is None:
                return out
            module = MotionModule(self.config, self.over_frames, out.dtype)
            with unpatched():
                return self._frames(module.bind({"params": params})(self._clips(out)))

        return intercept

    def _params(self, shared: Mapping[str, Any], path: str) -> Params | None:
        """Returns the parameters of the module behind the block of this path; None if there is none."""
        found = _BLOCK.fullmatch(path)
        if found is None:
            return None
        block, kind, number = found.groups()
        if kind != ("resnets" if block in self.without_attention else "attentions"):
            return None
        modules = shared.get(block)
        return None if modules is None else modules[f"motion_modules_{number}"]

    def _clips(self, x: Float[Array, "n h w c"]) -> Float[Array, "b f h w c"]:
        if x.shape[0] % self.frames:
            raise ValueError(f"a clip of {self.frames} frames cannot be made of a batch of {x.shape[0]}")
        return jnp.swapaxes(x.reshape(self.frames, -1, *x.shape[1:]), 0, 1)

    def _frames(self, x: Float[Array, "b f h w c"]) -> Float[Array, "n h w c"]:
        return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def blocks_without_attention(unet: UNetConfig) -> tuple[str, ...]:
    """Returns the names of a UNet's blocks that have no attention."""
    levels = [("down_blocks", unet.heads), ("up_blocks", unet.heads[::-1])]
    return tuple(f"{side}_{i}" for side, heads in levels for i, count in enumerate(heads) if not count)
