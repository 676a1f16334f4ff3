"""Guidance: rules that combine the network's outputs for several conditionings into one x0.

A rule of guidance is a frozen dataclass of arrays (`flax.struct.dataclass`). Its numbers are arguments of the compiled
program, so other numbers need no new compilation. Its class and its branches are static.

    @flax.struct.dataclass
    class Halfway:
        share: jax.Array | float = 0.5

        @property
        def branches(self):
            return ("unconditional", "conditional")

        def init(self, x):
            return ()

        def combine(self, outputs, call, memory):
            u, c = (call.x0(outputs[name]) for name in self.branches)
            return Denoised(u + per_image(self.share, u) * (c - u), c, u), memory
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sdjax.checks.arguments import number
from sdjax.checks.notes import note
from sdjax.samplers.rows import Numbers, Rows, per_image
from sdjax.samplers.rule import Denoised, Memory, Noisy, choose_images


class Call(NamedTuple):
    """One call of the network as guidance sees it."""

    x: Noisy  # x0 + sigma noise
    row: Rows
    of_x: Numbers | float  # weights of x and of the network's output in x0; they depend on the prediction type
    of_output: Numbers | float

    def x0(self, output: Noisy) -> Noisy:
        """Returns the x0 for an output of the network."""
        return jnp.asarray(self.of_x * self.x + self.of_output * output)


class Guidance(Protocol):
    """A rule of guidance: a pytree whose leaves are numbers, one for the batch or one per image [b]."""

    @property
    def branches(self) -> tuple[str, ...]:
        """The names of the conditionings, in the order of the batch."""
        ...

    def init(self, x: Noisy) -> Memory:
        """Returns the rule's memory before the first call: (), or arrays with x's batch as their first axis."""
        ...

    def combine(self, outputs: Mapping[str, Noisy], call: Call, memory: Memory) -> tuple[Denoised, Memory]:
        """Returns the x0 of a call and the memory for the next one. `outputs` are the network's own, float32."""
        ...


@struct.dataclass
class Unguided:
    """No guidance: the network is called with one conditioning."""

    @property
    def branches(self) -> tuple[str, ...]:
        """One branch."""
        return ("conditional",)

    def init(self, x: Noisy) -> Memory:
        """Returns no memory."""
        return ()

    def combine(self, outputs: Mapping[str, Noisy], call: Call, memory: Memory) -> tuple[Denoised, Memory]:
        """Returns the x0 of the only output."""
        x0 = call.x0(outputs["conditional"])
        return Denoised(x0, x0, x0), memory


@struct.dataclass
class ClassifierFree:
    """Classifier-free guidance: unconditional + scale (conditional - unconditional).

    `rescale` (0 to 1) is the share of the result that is rescaled to the conditional output's standard deviation. It
    avoids overexposed pictures at large scales; 0 costs nothing. With scale 1 and rescale 0 the result is exactly the
    conditional output.

    Source: Ho & Salimans 2022 (arXiv 2207.12598); for `rescale` Lin et al. 2023 (arXiv 2305.08891), eq. 15 and 16.
    """

    scale: Numbers | float
    rescale: Numbers | float = 0.0

    @property
    def branches(self) -> tuple[str, ...]:
        """Two branches."""
        return ("unconditional", "conditional")

    def init(self, x: Noisy) -> Memory:
        """Returns no memory."""
        return ()

    def combine(self, outputs: Mapping[str, Noisy], call: Call, memory: Memory) -> tuple[Denoised, Memory]:
        """Returns the guided x0. It combines outputs of any prediction type, because x0 is linear in them."""
        unconditional, conditional = (outputs[name] for name in self.branches)
        out = guide(unconditional, conditional, self.scale, self.rescale)
        return Denoised(*(call.x0(output) for output in (out, conditional, unconditional))), memory


def guide(unconditional: Noisy, conditional: Noisy, scale: Numbers | float, rescale: Numbers | float = 0.0) -> Noisy:
    """Returns the guided output of `ClassifierFree`."""
    scale, rescale = (jnp.broadcast_to(jnp.asarray(v, jnp.float32), conditional.shape[:1]) for v in (scale, rescale))
    out = unconditional + per_image(scale, conditional) * (conditional - unconditional)
    out = choose_images(scale != 1, out, conditional)
    axes = tuple(range(1, out.ndim))

    def rescaled(out: Noisy) -> Noisy:
        # ddof 1: torch's std, as in the published code
        ratio = jnp.std(conditional, axes, ddof=1, keepdims=True) / jnp.std(out, axes, ddof=1, keepdims=True)
        return choose_images(rescale != 0, out * (1 + per_image(rescale, out) * (ratio - 1)), out)

    return jax.lax.cond(jnp.any(rescale != 0), rescaled, lambda out: out, out)


def make_guidance(scale: float | Sequence[float], rescale: float | Sequence[float] = 0.0) -> Guidance:
    """Returns classifier-free guidance, or none if all scales are 1. Numbers are one for all images or one for each."""
    scales = np.asarray(scale, np.float32)
    return Unguided() if (scales == 1).all() else ClassifierFree(scales, np.asarray(rescale, np.float32))


def check_guidance_scale(scale: float) -> float:
    """Returns the scale as Python's float. Raises ValueError unless it is a finite number."""
    return number("guidance_scale", scale)


def note_unguided(**given: bool) -> None:
    """Gives a note for each argument that is given for a picture without guidance."""
    for name in (name for name, is_given in given.items() if is_given):
        note(f"{name} has no effect at guidance_scale 1 (no guidance): leave it out")
