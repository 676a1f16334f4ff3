"""Several conditionings side by side: each for a part of the picture and of the schedule, averaged by weight.

Source: ComfyUI's comfy/samplers.py, calc_cond_batch and get_area_and_mult. With one conditioning for each part this is
MultiDiffusion's average (Bar-Tal et al. 2023, arXiv 2302.08113, eq. 5) over regions with prompts of their own.
"""

from collections.abc import Mapping
from typing import ClassVar, TypeAlias

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from sdjax.diffusion.guidance import Call, Rule
from sdjax.samplers.rows import Numbers
from sdjax.samplers.rule import Noisy

SIDES = ("conditional", "unconditional")
Area: TypeAlias = tuple[int, int, int, int]  # top, left, height, width, in entries of the latent


@struct.dataclass
class Parts(Rule):
    """Averages the outputs of several conditionings on either side of guidance, before guidance joins the sides.

    `weights` [b, k, h, w] are those of the conditional branches and behind them of the unconditional ones, of which
    there are `counts`; 0 outside of a branch's part. `during` [b, k, 2]: a branch counts at noise sigma with
    during[..., 0] >= sigma >= during[..., 1]. Where nothing counts, x0 is 0.
    """

    weights: Numbers
    during: Numbers
    counts: tuple[int, int] = struct.field(pytree_node=False)
    applies: ClassVar = "always"

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches behind the first of each side."""
        return tuple(name for side, count in zip(SIDES, self.counts) for name in names_of(side, count)[1:])

    def joined(self, outputs: Mapping[str, Noisy], call: Call) -> Mapping[str, Noisy]:
        """Returns the outputs with the average of each side in the place of its first branch."""
        made = dict(outputs)
        first = 0
        for side, count in zip(SIDES, self.counts):
            if side in outputs:
                made[side] = self._average([outputs[name] for name in names_of(side, count)], first, call)
            first += count
        return made

    def _average(self, outputs: list[Noisy], first: int, call: Call) -> Noisy:
        total: Array | float = 0.0
        summed: Array | float = 0.0
        sigma = jnp.broadcast_to(jnp.asarray(call.row.sigma), call.x.shape[:1])
        weights, during = jnp.asarray(self.weights), jnp.asarray(self.during)
        for k, output in enumerate(outputs, first):
            on = (during[:, k, 0] >= sigma) & (sigma >= during[:, k, 1])
            weight = jnp.where(on[:, None, None], weights[:, k], 0)[..., None]  # [b, h, w, 1]
            total, summed = total + weight, summed + weight * output
        there = jnp.asarray(total) > 0
        return jnp.where(there, summed / jnp.where(there, total, 1), call.output(jnp.zeros_like(call.x), "x0"))


def names_of(side: str, count: int) -> list[str]:
    """Returns the names of the branches of one side: "conditional", "conditional 2", ..."""
    return [side if i == 1 else f"{side} {i}" for i in range(1, count + 1)]
