"""Networks as the denoiser calls them: static descriptions that take parameters and conditioning as arguments."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, cast

import jax.numpy as jnp
from jaxtyping import Array

from sdjax.adapters.patch import Patch, patched
from sdjax.config import UNetConfig
from sdjax.diffusion.conditioning import Conditioning
from sdjax.nn import UNet
from sdjax.samplers.rule import Memory, Noisy
from sdjax.typing import Params, Timestep


class Network(Protocol):
    """A denoising network. It is hashable and static: networks that are equal share a compiled program."""

    def __hash__(self) -> int: ...

    def init(self, params: Params, x: Noisy) -> Memory:
        """Returns the network's memory before the first call: (), or arrays with x's batch as their first axis."""
        ...

    def __call__(
        self, params: Params, x: Noisy, t: Timestep, conditioning: Conditioning, memory: Memory
    ) -> tuple[Noisy, Memory]:
        """Returns the network's prediction for x, which has unit variance, and its memory for the next call."""
        ...


@dataclasses.dataclass(frozen=True)
class FunctionNetwork:
    """A function (x, t, conditioning) -> prediction as a network without parameters and memory."""

    function: Callable[[Noisy, Timestep, Conditioning], Noisy]

    def init(self, params: Params, x: Noisy) -> Memory:
        """Returns no memory."""
        return ()

    def __call__(
        self, params: Params, x: Noisy, t: Timestep, conditioning: Conditioning, memory: Memory
    ) -> tuple[Noisy, Memory]:
        """Returns the function's prediction."""
        return self.function(x, t, conditioning), memory


@dataclasses.dataclass(frozen=True)
class UNetNetwork:
    """A UNet that computes in `dtype`, with patches over its layers.

    Its parameters are the UNet's. With patches they are {"unet": the UNet's, "patches": one entry per patch}. An entry
    holds the arrays that all images share, or is None. Per-image arrays are in `Conditioning.patches`.
    """

    unet: UNetConfig
    dtype: str
    patches: tuple[Patch, ...] = ()

    def init(self, params: Params, x: Noisy) -> Memory:
        """Returns no memory."""
        return ()

    def __call__(
        self, params: Params, x: Noisy, t: Timestep, conditioning: Conditioning, memory: Memory
    ) -> tuple[Noisy, Memory]:
        """Returns the UNet's prediction, float32."""
        shared = None
        if self.patches:
            params, shared = params["unet"], params["patches"]
        if conditioning.concat is not None:
            x = jnp.concatenate([x, conditioning.concat.astype(x.dtype)], axis=-1)
        network = UNet(self.unet, jnp.dtype(self.dtype))
        with patched(self.patches, shared, conditioning.patches or None):
            out = network.apply(
                {"params": params}, x, t, conditioning.context, conditioning.label,
                context_length=conditioning.context_length,
            )  # fmt: skip
        return cast(Array, out), memory
