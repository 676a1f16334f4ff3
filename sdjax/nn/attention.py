"""Attention through one function."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CHUNK = 512  # queries whose scores are held at a time


def attend(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], *, causal: bool = False,
    kernel: str = "auto",
) -> Float[Array, "b n h d"]:  # fmt: skip
    """Returns softmax(q k / sqrt(d)) v for every head, in q's dtype; logits and softmax are float32."""
    b, n, h, d = q.shape
    if n <= CHUNK or n % CHUNK or causal:
        return _naive(q, k, v, causal)
    chunks = q.reshape(b, n // CHUNK, CHUNK, h, d).swapaxes(0, 1)
    out = jax.lax.map(jax.checkpoint(lambda q: _naive(q, k, v, False)), chunks)
    return out.swapaxes(0, 1).reshape(b, n, h, d)


def _naive(q: Array, k: Array, v: Array, causal: bool) -> Array:
    n, m, d = q.shape[1], k.shape[1], q.shape[-1]
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * d**-0.5
    if causal:
        logits = jnp.where(jnp.tril(jnp.ones((n, m), bool)), logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v, preferred_element_type=jnp.float32).astype(q.dtype)
