"""OFT: rotations of a kernel's outputs."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from sdjax.adapters.delta import AdapterError


@struct.dataclass
class Orthogonal:
    """Rotates the outputs of a kernel [..., d] in n groups of s, n s = d: K_j becomes K_j R_j.

    With Q_j = B_j - B_j^T of `blocks` [n, s, s], R_j = (I + Q_j) (I - Q_j)^-1. If `constraint` is above 0, all Q
    together are made at most that long (Frobenius norm).

    Source: Qiu et al. 2023 (arXiv 2306.07280), equations 4 and 5.
    """

    blocks: Array
    constraint: float = 0.0

    def difference(self, base: Array) -> Array:
        """Returns K R - K in float32."""
        n, s, t = self.blocks.shape
        if s != t or n * s != base.shape[-1]:
            raise AdapterError(f"blocks {self.blocks.shape} do not fit {base.shape}")
        blocks = self.blocks.astype(jnp.float32)
        q = blocks - blocks.swapaxes(1, 2)
        if self.constraint > 0:
            size = jnp.sqrt(jnp.square(q).sum() + 1e-12)  # not 0, whose root has no slope
            q = q * jnp.minimum(1.0, self.constraint / size)
        eye = jnp.eye(s)
        # R - I = 2 Q (I - Q)^-1
        turned = 2 * jnp.linalg.solve((eye - q).swapaxes(1, 2), q.swapaxes(1, 2)).swapaxes(1, 2)
        return jnp.einsum("...ns,nst->...nt", base.reshape(*base.shape[:-1], n, s), turned).reshape(base.shape)
