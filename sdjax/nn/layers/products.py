"""Products of bfloat16 matrices on CPUs, by the processor's bfloat16 instructions if it has them.

If the result shall be bfloat16, XLA's CPU backend converts the inputs to float32 first. If the result shall be float32,
it multiplies bfloat16 directly and sums in float32. This is twice as fast as a float32 product on processors with
AVX-512 BF16 or AMX. On other processors float32 is faster, so we use float32. `benchmarks/operations.py` measures both.
"""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

PROCESSOR = pathlib.Path("/proc/cpuinfo")
INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}  # Linux's names of the instructions


@functools.cache
def processor_multiplies_bfloat16() -> bool:
    """Returns whether the processor has bfloat16 instructions, according to Linux. On other systems it is False.

    `SDJAX_CPU_BFLOAT16=1` or `0` in the environment overrides this. Raises ValueError for any other value.
    """
    said = os.environ.get("SDJAX_CPU_BFLOAT16", "")
    if said:
        if said not in ("0", "1"):
            raise ValueError(f"SDJAX_CPU_BFLOAT16 is 0 or 1, got {said!r}")
        return said == "1"
    try:
        lines = PROCESSOR.read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("flags") and INSTRUCTIONS & set(line.split()) for line in lines)


def cpu_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Returns the type for products of such arrays on the CPU: the type itself, or float32 if that is faster."""
    own = jnp.dtype(dtype) == jnp.bfloat16 and processor_multiplies_bfloat16()
    return jnp.dtype(jnp.bfloat16 if own else jnp.float32)


def wide(a: Float[Array, "*n c"], b: Float[Array, "c d"]) -> Float[Array, "*n d"]:
    """Returns a @ b, summed in float32 and not rounded."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def linear(
    x: Float[Array, "*n c"], kernel: Float[Array, "c d"], bias: Float[Array, "d"] | None = None
) -> Float[Array, "*n d"]:
    """Returns x @ kernel + bias in x's dtype, by `wide` where a CPU multiplies that type."""
    if cpu_dtype(x.dtype) != x.dtype or x.dtype == jnp.float32:
        return _plain(x, kernel, bias)
    return _linear(x, kernel, bias)


@jax.jit  # traced and lowered once for all layers of one shape
def _linear(x: Array, kernel: Array, bias: Array | None) -> Array:
    return jax.lax.platform_dependent(x, kernel, bias, cpu=_rounded_once, default=_plain)


def _rounded_once(x: Array, kernel: Array, bias: Array | None) -> Array:
    y = wide(x, kernel)
    return (y if bias is None else y + bias.astype(jnp.float32)).astype(x.dtype)


def _plain(x: Array, kernel: Array, bias: Array | None) -> Array:
    y = jnp.matmul(x, kernel)
    return y if bias is None else y + bias
