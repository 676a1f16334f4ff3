"""Training of LoRA and DoRA: two small matrices beside each kernel."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array

from sdjax.adapters.attached import CHANGE, MAGNITUDE
from sdjax.adapters.delta import Delta, LowRank
from sdjax.adapters.dora import WeightDecomposed, lengths
from sdjax.loading.trainable.changes import Factors, RankedChanges, uniform
from sdjax.typing import Key, Params

START = "start_"  # before the names of factors that do not learn


@dataclasses.dataclass(frozen=True)
class LoRATraining(RankedChanges):
    """Low-rank changes scale * down @ up.

    - `rslora` divides alpha by the root of the rank instead of the rank.
    - `dora` also learns the length of each output's weights.
    - `pissa` starts from the kernel's largest singular values, which the kernel itself then lacks. Files of such a
      training have twice the rank. Otherwise `up` starts from zeros and `down` from uniform numbers, as in PEFT and in
      kohya's scripts.

    Sources: Hu et al. 2021 (arXiv 2106.09685); rsLoRA: Kalajdzievski 2023 (arXiv 2312.03732); DoRA: Liu et al. 2024
    (arXiv 2402.09353); PiSSA: Meng et al. 2024 (arXiv 2404.02948).
    """

    rslora: bool = False
    dora: bool = False
    pissa: bool = False
    kind: Literal["lora"] = "lora"

    @property
    def held(self) -> str | None:
        """See Addition."""
        return f"/{START}(down|up)$" if self.pissa else None

    def scale_of(self, path: str, shape: tuple[int, ...]) -> float:
        """Returns what multiplies the product of the factors."""
        rank = self.rank_of(path, shape)
        return self.alpha_of(path, shape) / (math.sqrt(rank) if self.rslora else rank)

    def start(self, path: str, kernel: Array, key: Key) -> dict[str, Array]:
        """Returns `down` [c, r] or [h, w, c, r] and `up` [r, d]; with DoRA the lengths, [d]."""
        shape, kernel = kernel.shape, jnp.asarray(kernel, jnp.float32)
        rows, d = math.prod(shape[:-1]), shape[-1]
        rank = min(self.rank_of(path, shape), rows, d)
        if self.pissa:
            u, s, v = jnp.linalg.svd(kernel.reshape(rows, d), full_matrices=False)
            root = jnp.sqrt(s[:rank] / self.scale_of(path, shape))
            made = {"down": (u[:, :rank] * root).reshape(*shape[:-1], rank), "up": root[:, None] * v[:rank]}
            made |= {START + name: factor for name, factor in made.items()}
        else:
            made = {"down": uniform(key, (*shape[:-1], rank), rows), "up": jnp.zeros((rank, d))}
        return made | ({"magnitude": lengths(kernel)} if self.dora else {})

    def low_rank(self, path: str, factors: Factors) -> LowRank:
        """Returns the product of the factors as a change, without DoRA's lengths."""
        down, up = factors["down"], factors["up"]
        scale = self.scale_of(path, (*down.shape[:-1], up.shape[-1]))
        if self.pissa:
            down = jnp.concatenate([down, factors[START + "down"]], axis=-1)
            up = jnp.concatenate([up, -factors[START + "up"]], axis=0)
        return LowRank(down, up, jnp.asarray(scale, jnp.float32))

    def delta(self, path: str, factors: Factors) -> Delta:
        """Returns the change."""
        low = self.low_rank(path, factors)
        return WeightDecomposed(low, factors["magnitude"]) if self.dora else low

    def attach(self, trained: Params, frozen: Params) -> Params:
        """Returns the networks with the factors beside the kernels."""
        return self._beside(trained, frozen, "")

    def _beside(self, trained: Params, frozen: Params, path: str) -> dict[str, Any]:
        out = dict(frozen)
        for name, node in trained.items():
            below = frozen.get(name)
            if isinstance(below, Mapping):
                out[name] = self._beside(node, below, f"{path}{name}/")
            elif below is None:
                out[name] = node
            else:
                out[CHANGE] = self.low_rank(path + name, node)
                if self.dora:
                    out[MAGNITUDE] = node["magnitude"]
        return out
