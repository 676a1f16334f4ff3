"""Conditioning: the network's inputs besides the noisy latent and the timestep."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from sdjax.adapters.memory import Moment
from sdjax.typing import Context, Latent, Length

Stages = Float[Array, "b s m d"]  # the contexts of prompts that change while sampling


@struct.dataclass
class Conditioning:
    """The inputs of one branch of guidance. All arrays have the batch as their first axis.

    `context`: encoded text; [b, stages, m, d] if the prompts change while sampling (`Rows.stage`). `context_length`:
    number of valid tokens of each context, [b] or [b, stages]; None means all. `concat`: extra
    channels beside the latent's (mask, depth, low-resolution image). `label`: int [b] (the upscaler's noise level) or
    float [b, d] (unCLIP's image embedding). `guidance_scale` [b]: the scale that a latent consistency model takes as
    an input. `patches`: the per-image arrays of each patch of the network. `moment`: where in its run each entry is,
    for networks with memory; the denoiser sets it.
    """

    context: Context | Stages | None = None
    context_length: Length | Int[Array, "b s"] | None = None
    concat: Latent | None = None
    label: Int[Array, "b"] | Float[Array, "b d"] | None = None
    guidance_scale: Float[Array, "b"] | None = None
    patches: tuple[PyTree, ...] = ()
    moment: Moment | None = None

    def at(self, stage: Int[Array, "b"]) -> "Conditioning":
        """Returns the conditioning with each image's context of this stage, where contexts have stages."""
        if self.context is None or self.context.ndim == 3:
            return self
        pick = jax.vmap(lambda stages, number: stages[number])
        length = self.context_length
        return dataclasses.replace(
            self,
            context=pick(self.context, stage),
            context_length=length if length is None or length.ndim == 1 else pick(length, stage),
        )


def stack(branches: Sequence[Conditioning]) -> Conditioning:
    """Returns the conditioning of k branches in one batch, interleaved: entry k i + j is entry i of branch j.

    A concatenation would move data between devices when the batch is spread over them. Contexts of different lengths
    are padded with zeros; `context_length` is then the number of valid tokens of each.

    Raises ValueError if only some branches have an input, or if its shapes differ in another way.
    """
    if len(branches) == 1:
        return branches[0]
    branches = _of_one_length(branches)
    stacked = {}
    for field in dataclasses.fields(Conditioning):
        values = [getattr(branch, field.name) for branch in branches]
        structures = {jax.tree.structure(value) for value in values}
        if len(structures) != 1:
            raise ValueError(f"guidance needs {field.name} in all conditionings or in none; only some have it")
        shapes = [[leaf.shape for leaf in jax.tree.leaves(value)] for value in values]
        if any(other != shapes[0] for other in shapes):
            raise ValueError(
                f"guidance needs {field.name} of one shape in all conditionings; "
                f"got {' and '.join(', '.join(map(str, shape)) for shape in shapes)}"
            )
        stacked[field.name] = jax.tree.map(_interleaved, *values)
    return Conditioning(**stacked)


def _interleaved(*leaves: Array) -> Array:
    return jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:])


def _of_one_length(branches: Sequence[Conditioning]) -> Sequence[Conditioning]:
    """Returns the branches with contexts padded to the longest. If one branch needs lengths, all get them."""
    contexts = [branch.context for branch in branches if branch.context is not None]
    lengths = {context.shape[-2] for context in contexts}
    padded = len(lengths) > 1 or any(branch.context_length is not None for branch in branches)
    if not padded or len(contexts) < len(branches):
        return branches
    return [_padded(branch, max(lengths)) for branch in branches]


def _padded(branch: Conditioning, length: int) -> Conditioning:
    assert branch.context is not None
    *images, n, _ = branch.context.shape
    counts = jnp.full(images, n, jnp.int32) if branch.context_length is None else branch.context_length
    context = jnp.pad(branch.context, [(0, 0)] * len(images) + [(0, length - n), (0, 0)])
    return dataclasses.replace(branch, context=context, context_length=counts)
