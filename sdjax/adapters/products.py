"""Changes that are products of low-rank ones: Hadamard products (LoHa) and Kronecker products (LoKr)."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from sdjax.adapters.delta import AdapterError, LowRank


@struct.dataclass
class Hadamard:
    """The change scale * A * B, entry by entry, of two low-rank changes whose own scales are 1.

    Source: Hyeon-Woo et al. 2021 (arXiv 2108.06098), section 3.
    """

    first: LowRank
    second: LowRank
    scale: Array | float = 1.0

    def difference(self, base: Array) -> Array:
        """Returns scale * A * B in float32."""
        return self.scale * self.first.difference(base) * self.second.difference(base)


@struct.dataclass
class Kronecker:
    """The change scale * (first ⊗ second) of a kernel [..., c, d], with c = c1 c2 and d = d1 d2.

    `first` is [c1, d1]; `second` is [..., c2, d2], or such a change of low rank whose own scale is 1. Entry
    (i1 c2 + i2, j1 d2 + j2) is first[i1, j1] second[i2, j2].

    Source: Yeh et al. 2023 (arXiv 2309.14859), section 3.2.
    """

    first: Array
    second: Array | LowRank
    scale: Array | float = 1.0

    def difference(self, base: Array) -> Array:
        """Returns the product in float32."""
        c1, d1 = self.first.shape
        if base.shape[-2] % c1 or base.shape[-1] % d1:
            raise AdapterError(f"a factor {self.first.shape} does not fit {base.shape}")
        shape = (*base.shape[:-2], base.shape[-2] // c1, base.shape[-1] // d1)
        if isinstance(self.second, LowRank):
            second = self.second.difference(jnp.zeros(shape))
        elif self.second.shape != shape:
            raise AdapterError(f"factors {self.first.shape} and {self.second.shape} do not fit {base.shape}")
        else:
            second = self.second.astype(jnp.float32)
        product = jnp.einsum("ij,...kl->...ikjl", self.first.astype(jnp.float32), second)
        return self.scale * product.reshape(base.shape)
