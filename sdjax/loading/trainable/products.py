"""Training of LoHa and LoKr, changes that are products of low-rank ones, and of OFT, rotations of the outputs."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sdjax.adapters.delta import Delta
from sdjax.adapters.families import OFT, LoHa, LoKr, to_files_layout
from sdjax.loading.trainable.changes import Changes, Factors, RankedChanges, uniform
from sdjax.typing import Key


@dataclasses.dataclass(frozen=True)
class LoHaTraining(RankedChanges):
    """Changes that are the product, entry by entry, of two low-rank ones (LoHa).

    They start as in LyCORIS: normal numbers, and zeros for one of the four factors.
    """

    kind: Literal["loha"] = "loha"

    def start(self, path: str, kernel: Array, key: Key) -> dict[str, Array]:
        """Returns `down_1`, `up_1`, `down_2` and `up_2`, in the shapes of LoRA's."""
        shape = kernel.shape
        rank = min(self.rank_of(path, shape), math.prod(shape[:-1]), shape[-1])
        keys = jax.random.split(key, 3)
        down = (*shape[:-1], rank)
        return {
            "down_1": jax.random.normal(keys[0], down), "up_1": 0.1 * jax.random.normal(keys[1], (rank, shape[-1])),
            "down_2": jax.random.normal(keys[2], down), "up_2": jnp.zeros((rank, shape[-1])),
        }  # fmt: skip

    def delta(self, path: str, factors: Factors) -> Delta:
        """Returns the change."""
        shape = (*factors["down_1"].shape[:-1], factors["up_1"].shape[-1])
        one, two = ((factors[f"up_{i}"].T, _flat(factors[f"down_{i}"])) for i in (1, 2))
        return LoHa(*one, *two, scale=self.scale_of(path, shape))


@dataclasses.dataclass(frozen=True)
class LoKrTraining(RankedChanges):
    """Changes that are Kronecker products of a small matrix and a larger one (LoKr).

    `factor` is the small matrix's largest side; -1 makes both as square as can be. The larger matrix has low rank
    unless `rank` is at least half of its larger side, or `full`; then alpha does not count, as in LyCORIS.
    """

    factor: int = -1
    full: bool = False
    kind: Literal["lokr"] = "lokr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 1 and self.factor != -1:
            raise ValueError(f"factor is a whole number from 1 up, or -1; got {self.factor}")

    def start(self, path: str, kernel: Array, key: Key) -> dict[str, Array]:
        """Returns `first` [c1, d1], and `second` [..., c2, d2] or its factors `down` and `up`."""
        *rest, c, d = kernel.shape
        c1, c2 = split(c, self.factor)
        d1, d2 = split(d, self.factor)
        rank = self.rank_of(path, kernel.shape)
        one, two = jax.random.split(key)
        first = uniform(one, (c1, d1), c1)
        if self.full or 2 * rank >= max(c2, d2):
            return {"first": first, "second": jnp.zeros((*rest, c2, d2))}
        return {
            "first": first,
            "down": uniform(two, (*rest, c2, rank), math.prod(rest) * c2),
            "up": jnp.zeros((rank, d2)),
        }

    def delta(self, path: str, factors: Factors) -> Delta:
        """Returns the change."""
        if "second" in factors:
            return LoKr(w1=factors["first"].T, w2=to_files_layout(factors["second"]))
        (c1, d1), down, up = factors["first"].shape, factors["down"], factors["up"]
        shape = (*down.shape[:-2], c1 * down.shape[-2], d1 * up.shape[-1])
        return LoKr(w1=factors["first"].T, w2_a=up.T, w2_b=_flat(down), scale=self.scale_of(path, shape))


@dataclasses.dataclass(frozen=True)
class OFTTraining(Changes):
    """Rotations of the outputs of kernels, in groups of at most `size`, a divisor of the number of outputs (OFT).

    `constraint`: the rotations of a kernel with d outputs together stay within this times d; None for no limit.
    """

    size: int = 32
    constraint: float | None = None
    kind: Literal["oft"] = "oft"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 2 or (self.constraint is not None and not 0 < self.constraint < math.inf):
            raise ValueError(f"size is at least 2, and constraint is above 0; got {self.size} and {self.constraint}")

    def start(self, path: str, kernel: Array, key: Key) -> dict[str, Array]:
        """Returns `blocks` [n, s, s], zeros."""
        d = kernel.shape[-1]
        size = max(s for s in range(1, min(self.size, d) + 1) if d % s == 0)
        return {"blocks": jnp.zeros((d // size, size, size))}

    def delta(self, path: str, factors: Factors) -> Delta:
        """Returns the change."""
        blocks = factors["blocks"]
        return OFT(blocks, None if self.constraint is None else self.constraint * blocks.shape[0] * blocks.shape[1])


def _flat(down: Array) -> Array:
    """Returns a first factor [..., c, r] as files have it, [r, c ...]."""
    return to_files_layout(down).reshape(down.shape[-1], -1)


def split(side: int, factor: int) -> tuple[int, int]:
    """Returns the side as a product of two numbers, the smaller first: at most `factor`, or its root for -1."""
    most = math.isqrt(side) if factor == -1 else min(factor, math.isqrt(side))
    first = max(n for n in range(1, most + 1) if side % n == 0)
    return first, side // first
