"""Networks as the denoiser calls them: static descriptions that take parameters and conditioning as arguments."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from sdjax.adapters.memory import Recall, Remembering, if_any
from sdjax.adapters.patch import Patch, Timed, patched
from sdjax.adapters.seamless import Seamless
from sdjax.config import UNetConfig
from sdjax.diffusion.conditioning import Conditioning
from sdjax.nn import UNet
from sdjax.samplers.rule import Memory, Noisy, choose_images
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
    holds the arrays that all images share, or is None. Per-image arrays are in `Conditioning.patches`. Convolutions
    wrap around along the axes of `seamless`.

    A patch with a method `active` (`adapters.patch.Timed`) changes only the images in which it is active. A patch with
    memory (`adapters.memory.Remembering`) is outside of the others. The network's memory is that of these patches.
    """

    unet: UNetConfig
    dtype: str
    patches: tuple[Patch, ...] = ()
    seamless: str = ""

    def init(self, params: Params, x: Noisy) -> Memory:
        """Returns the memory of each patch that has one, in order."""
        kept = [one for one in self.patches if isinstance(one, Remembering)]
        return tuple(one.begin(self.unet, x.shape, jnp.dtype(self.dtype)) for one in kept)

    def __call__(
        self, params: Params, x: Noisy, t: Timestep, conditioning: Conditioning, memory: Memory
    ) -> tuple[Noisy, Memory]:
        """Returns the UNet's prediction, float32, and the memory for the next call."""
        shared: Sequence[PyTree] = [None] * len(self.patches)
        if self.patches:
            params, shared = params["unet"], params["patches"]
        own = list(conditioning.patches or [None] * len(self.patches))
        if conditioning.concat is not None:
            x = jnp.concatenate([x, conditioning.concat.astype(x.dtype)], axis=-1)
        network = UNet(self.unet, jnp.dtype(self.dtype))
        keeping = [i for i, patch in enumerate(self.patches) if isinstance(patch, Remembering)]
        timed = [i for i, patch in enumerate(self.patches) if isinstance(patch, Timed)]

        def call(which: Sequence[int], undecided: Sequence[int], recalls: Mapping[int, Recall]) -> tuple[Array, Memory]:
            """Returns the prediction with the patches `which`, and those `undecided` ones that are active."""
            if undecided:
                first, *rest = undecided
                active = cast(Timed, self.patches[first]).active(t, own[first])
                with_it = functools.partial(call, [*which, first], rest, recalls)
                return _of_each(active, with_it, functools.partial(call, which, rest, recalls))
            chosen = [*sorted(which), *keeping]
            recalled = {i: dataclasses.replace(one) for i, one in recalls.items()}
            own_seamless = [Seamless(self.seamless)] if self.seamless else []
            with (
                patched(own_seamless, everywhere=True),  # outside of the others
                patched(
                    [self.patches[i] for i in chosen], [shared[i] for i in chosen],
                    [recalled.get(i, own[i]) for i in chosen],
                ),
            ):  # fmt: skip
                out = network.apply(
                    {"params": params}, x, t, conditioning.context, conditioning.label, conditioning.guidance_scale,
                    context_length=conditioning.context_length,
                )  # fmt: skip
            return cast(Array, out), tuple(recalled[i].kept for i in keeping)

        def decide(undecided: Sequence[int], recalls: Mapping[int, Recall]) -> tuple[Array, Memory]:
            """Returns the prediction, without the work that no entry needs of patches with memory."""
            if not undecided:
                always = [i for i in range(len(self.patches)) if i not in (*timed, *keeping)]
                return call(always, timed, recalls)
            first, *rest = undecided
            before, moment = memory[keeping.index(first)], conditioning.moment
            assert moment is not None  # the denoiser sets it
            needed = cast(Remembering, self.patches[first]).needed(own[first], moment, before)
            run, skip = ({**recalls, first: Recall(before, some, moment)} for some in (needed, None))
            return if_any(needed, lambda: decide(rest, run), lambda: decide(rest, skip))

        return decide(keeping, {})


def _of_each(active: Bool[Array, "b"], on: Callable[[], PyTree], off: Callable[[], PyTree]) -> PyTree:
    """Returns the results of `on` for active images and of `off` for the others. Each is computed only if needed."""
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(off))
    these = jax.lax.cond(jnp.any(active), on, lambda: nothing)
    others = jax.lax.cond(jnp.all(active), lambda: nothing, off)
    return choose_images(active, these, others)
