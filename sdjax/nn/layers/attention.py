"""Attention as one function. It chooses the kernel for platform, shape and dtype when it is lowered.

| platform | half precision                                  | float32                             |
|----------|-------------------------------------------------|-------------------------------------|
| cuda     | cuDNN's fused kernel for the shapes it takes    | chunks of queries, full precision   |
| tpu      | JAX's splash kernel for long sequences          | chunks of queries, full precision   |
| cpu      | chunks of queries of one head                   | the same                            |
| others   | chunks of queries                               | the same                            |

For few queries and keys (a prompt's 77 tokens, an 8 x 8 map) it is one plain product on every platform. Every method
keeps only a limited part of the score matrix in memory, and all have gradients. `benchmarks/attention.py` measures
them.

A machine without an NVIDIA GPU cannot lower cuDNN's kernel. A program exported there for CUDA uses chunks of queries.
"""

import contextvars
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.nn.jax_settings import setting
from sdjax.nn.layers import rows
from sdjax.nn.layers.products import cpu_dtype
from sdjax.scoped import scoped
from sdjax.typing import Length

SMALL = 2**14  # up to this number of queries times keys a fused kernel saves nothing
CPU_SCORES = 2**21  # scores held at a time on a CPU (8 MiB), once for each 128 of head size: a chunk near the cache
SCORES = 2**26  # scores held at a time elsewhere (256 MiB): enough to fill a GPU
FEWEST_ROWS = 64  # smallest number of queries in a chunk, so that products stay matrix products
SPLASH_LENGTH = 512  # with at least so many queries and keys, padding to the TPU kernel's blocks is worthwhile
SPLASH_BLOCK = 512
HALVES = (jnp.dtype("float16"), jnp.dtype("bfloat16"))
LANES = 128  # a TPU's vector registers: head sizes are padded to a multiple

Queries = Float[Array, "b n h d"]
KeyVectors = Float[Array, "b m h d"]
Values = Float[Array, "b m h e"]
Attended = Float[Array, "b n h e"]


class Division(NamedTuple):
    """How arrays are divided over a mesh: the axes of the batch, and that of the heads."""

    mesh: Mesh
    batch: tuple[str, ...]
    heads: str


_division: contextvars.ContextVar[Division | None] = contextvars.ContextVar("division", default=None)


def over_mesh(mesh: Mesh, batch: tuple[str, ...], heads: str) -> AbstractContextManager[Division | None]:
    """Returns a context for tracing a function that XLA divides over a mesh: kernels are divided by hand.

    `batch` names the axes that the batch is spread over, `heads` the axis of the heads.
    """
    return scoped(_division, Division(mesh, batch, heads))


def attend(q: Queries, k: KeyVectors, v: Values, *, key_length: Length | None = None, causal: bool = False) -> Attended:
    """Returns softmax(q k / sqrt(d)) v for every head, in q's dtype; logits and softmax are float32.

    `key_length` is the number of valid keys of each entry of the batch, from 1 to m. Keys and values after them are
    padding. Results and gradients do not depend on the padding, and its gradients are 0. `causal` hides key j from
    query i < j.

    float32 is computed in full precision on every platform (no TF32, no bfloat16 passes) unless
    `jax_default_matmul_precision` asks for less. Inside `jax.shard_map` with check_vma=True the fused kernels, which
    JAX cannot check, are left out. XLA cannot divide the TPU kernel over devices by itself: either the whole function
    runs in `jax.shard_map`, or it is traced inside `over_mesh`.

    Raises ValueError for shapes or dtypes that do not fit together.
    """
    b, n, h, d = q.shape
    if k.shape != (b, k.shape[1], h, d) or v.shape != k.shape or not q.dtype == k.dtype == v.dtype:
        got = ", ".join(f"{a.dtype}{list(a.shape)}" for a in (q, k, v))
        raise ValueError(f"attention takes q [b, n, h, d] and k and v [b, m, h, d] of one dtype; got {got}")
    if key_length is not None and (key_length.shape != (b,) or not jnp.issubdtype(key_length.dtype, jnp.integer)):
        raise ValueError(f"key_length is an integer for each of {b} entries; got {key_length.dtype}{key_length.shape}")
    mesh = rows.current()
    if mesh is not None:
        return _over_rows(mesh, q, k, v, key_length, causal)
    return _attend(q, k, v, key_length, causal, _division.get())


def _over_rows(mesh: Mesh, q: Queries, k: KeyVectors, v: Values, key_length: Length | None, causal: bool) -> Attended:
    """Returns attention of maps whose rows, and so the queries, are spread over the devices of a mesh.

    If the number of devices divides the heads, each device exchanges its rows for all rows of some heads, and back.
    This moves the fewest numbers. Otherwise each device gets all keys and values for its own queries.
    """
    (b, n, h, _), m, count = q.shape, k.shape[1], mesh.shape[rows.ROWS]
    divides = n % count == 0 and not causal
    by_heads = divides and h % count == 0 and m == n and key_length is None
    batch = rows.batch_axis(mesh, b)
    whole, own = P(batch), P(batch, *[rows.ROWS] * divides)

    def part(q: Array, k: Array, v: Array, *length: Array) -> Array:
        if not by_heads:
            return _attend(q, k, v, *(length or (None,)), causal)
        parts = jax.lax.all_to_all(jnp.stack([q, k, v]), rows.ROWS, 3, 2, tiled=True)  # [3, b, n, h / count, d]
        return jax.lax.all_to_all(_attend(*parts, None, False), rows.ROWS, 1, 2, tiled=True)

    lengths = () if key_length is None else (key_length,)
    keys = own if by_heads else whole
    return rows.in_parts(part, mesh, (own, keys, keys, *[whole] * len(lengths)), own)(q, k, v, *lengths)


@functools.partial(jax.jit, static_argnums=(4, 5))  # traced and lowered once for all layers of one shape
def _attend(
    q: Queries, k: KeyVectors, v: Values, key_length: Length | None, causal: bool, division: Division | None = None
) -> Attended:
    n, m, d = q.shape[1], k.shape[1], q.shape[-1]
    args: tuple[Array, ...] = (q, k, v)
    if key_length is not None:  # a weight of 0 is not enough: 0 times a padded value that is not finite is not 0
        seen = (jnp.arange(m) < key_length[:, None])[..., None, None]
        args = (q, jnp.where(seen, k, 0), jnp.where(seen, v, 0), key_length)
    if n * m <= SMALL:
        return in_chunks(*args, causal=causal)
    kernels: dict[str, Callable[..., Array]] = {"cpu": functools.partial(head_by_head, causal=causal)}
    unchecked = not any(jax.typeof(a).manual_axis_type.varying for a in args)
    capability = cuda_capability()
    if unchecked and capability is not None and cudnn_takes(d, q.dtype, capability):
        kernels["cuda"] = functools.partial(cudnn, causal=causal)
    if unchecked and splash_takes(n, m, q.dtype):
        kernels["tpu"] = _divided(functools.partial(splash, causal=causal), division, q)
    return jax.lax.platform_dependent(*args, default=functools.partial(in_chunks, causal=causal), **kernels)


def _divided(kernel: Callable[..., Array], division: Division | None, q: Queries) -> Callable[..., Array]:
    """Returns the kernel; inside `over_mesh`, each device runs it on its entries and heads, where these divide."""
    if division is None or division.mesh.size == 1:
        return kernel
    mesh, (b, _, h, _) = division.mesh, q.shape
    spread = b % math.prod(mesh.shape[name] for name in division.batch) == 0
    batch = division.batch if spread else None
    whole = P(batch, None, division.heads if h % mesh.shape[division.heads] == 0 else None)

    def run(q: Queries, k: KeyVectors, v: Values, *length: Length) -> Array:
        inputs = (whole, whole, whole, P(batch))[: 3 + len(length)]
        return jax.shard_map(kernel, mesh=mesh, in_specs=inputs, out_specs=whole, check_vma=False)(q, k, v, *length)

    return run


def in_chunks(
    q: Queries, k: KeyVectors, v: Values, key_length: Length | None = None, *, causal: bool = False, limit: int = SCORES
) -> Float[Array, "b n h _"]:
    """Returns attention with about `limit` scores in memory at a time: all heads, one chunk of queries after the other.

    If all scores fit, it is one product. The gradient computes the scores again, chunk by chunk.
    """
    b, n, h, d = q.shape
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))  # [b, h, n, d]
    rows = max(limit // (b * h * k.shape[2]), FEWEST_ROWS)
    if rows >= n:
        return _products(q, k, v, key_length, 0, causal).swapaxes(1, 2)
    count = -(-n // rows)
    rows = -(-n // count)  # chunks of one length, the last one padded by less than `count` rows
    q = jnp.pad(q, ((0, 0), (0, 0), (0, count * rows - n), (0, 0)))
    chunks = jnp.moveaxis(q.reshape(b, h, count, rows, d), 2, 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # prevent_cse: a scan's body needs no barrier
    def chunk(first: Array, q: Array) -> Array:
        return _products(q, k, v, key_length, first, causal)

    out = jax.lax.map(lambda args: chunk(*args), (rows * jnp.arange(count), chunks))  # [count, b, h, rows, d]
    return jnp.moveaxis(out, 0, 2).reshape(b, h, count * rows, d)[:, :, :n].swapaxes(1, 2)


def head_by_head(
    q: Queries, k: KeyVectors, v: Values, key_length: Length | None = None, *, causal: bool = False
) -> Attended:
    """Returns attention in chunks, one head after the other, for a CPU's cache.

    If the processor cannot multiply a half-precision type directly, it is converted to float32.

    With one device, pictures are computed one after the other too. With several devices the whole batch is inside the
    loop, so that a batch that is spread over them needs no communication.
    """
    # Wide heads need more queries per chunk, because every chunk lays out all keys and values again
    limit = CPU_SCORES * -(-q.shape[-1] // 128)
    dtype = cpu_dtype(q.dtype)

    def head(qkv: tuple[Array, Array, Array], key_length: Length | None) -> Array:
        q, k, v = (a.astype(dtype)[:, :, None] for a in qkv)
        if dtype != jnp.float32:  # summing rows of float32 takes a CPU longer than another column of the product
            v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)
        return in_chunks(q, k, v, key_length, causal=causal, limit=limit)[:, :, 0].astype(qkv[0].dtype)

    if jax.device_count() > 1:
        heads = tuple(jnp.moveaxis(a, 2, 0) for a in (q, k, v))
        out = jax.lax.map(lambda qkv: head(qkv, key_length), heads)  # [h, b, n, d]
        return jnp.moveaxis(out, 0, 2)
    b, n, h, d = q.shape
    heads = tuple(a.swapaxes(1, 2).reshape(b * h, 1, a.shape[1], d) for a in (q, k, v))
    lengths = None if key_length is None else jnp.repeat(key_length, h)[:, None]  # [b h, 1]
    out = jax.lax.map(lambda args: head(*args), (heads, lengths))  # [b h, 1, n, d]
    return out.reshape(b, h, n, d).swapaxes(1, 2)


def _products(q: Array, k: Array, v: Array, key_length: Length | None, first: Array | int, causal: bool) -> Array:
    """Returns attention of q [b, h, n, d], whose rows start at query `first`, by two products.

    If v has a last column of ones beyond q's width, the product also gives the sum of the weights.
    """
    # None follows a precision the user set; without one, XLA would round float32 to TF32 or bfloat16 on accelerators
    unset = q.dtype == jnp.float32 and setting("jax_default_matmul_precision") is None
    precision = jax.lax.Precision.HIGHEST if unset else None
    einsum = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    logits = einsum("bhnd,bhmd->bhnm", q, k) * q.shape[-1] ** -0.5
    n, m = logits.shape[-2:]
    if key_length is not None:
        logits = jnp.where(jnp.arange(m) < key_length[:, None, None, None], logits, -jnp.inf)
    if causal:
        logits = jnp.where(jnp.arange(m) <= first + jnp.arange(n)[:, None], logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    out = einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v)
    if v.shape[-1] > q.shape[-1]:
        out, total = out[..., :-1], out[..., -1:]
    else:
        total = weights.sum(-1, keepdims=True)
    return (out / total).astype(q.dtype)  # divided last: d numbers a query instead of m


def cudnn(q: Queries, k: KeyVectors, v: Values, key_length: Length | None = None, *, causal: bool = False) -> Attended:
    """Returns attention by cuDNN's fused kernel, which scales and sums in float32."""
    n, m = q.shape[1], k.shape[1]
    # JAX 0.10 cannot batch the kernel unless all its arguments are batched (under jax.vmap a context may be shared).
    # Both branches of `where` are equal, so XLA removes it; but for jax.vmap the result depends on q, k and v
    either = jnp.isnan(q[:, :1, :1, :1] + k[:, :1, :1, :1] + v[:, :1, :1, :1])  # [b, 1, 1, 1]
    queries = keys = None
    if (
        n % 2 or m % 2 or key_length is not None
    ):  # JAX refuses to differentiate odd lengths: pad, and give the true ones
        q, k, v = (jnp.pad(a, ((0, 0), (0, a.shape[1] % 2), (0, 0), (0, 0))) for a in (q, k, v))
        queries, keys = jnp.int32(n), jnp.int32(m) if key_length is None else key_length.astype(jnp.int32)
        queries, keys = (jnp.where(either[:, 0, 0, 0], length, length) for length in (queries, keys))  # [b]
    q, k, v = (jnp.where(either, a, a) for a in (q, k, v))
    out = jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, query_seq_lengths=queries, key_value_seq_lengths=keys, implementation="cudnn"
    )
    return out[:, :n]


def cuda_capability() -> float | None:
    """Returns the lowest compute capability of this machine's NVIDIA GPUs, such as 8.0, or None without GPUs."""
    try:
        return min(float(device.compute_capability) for device in jax.local_devices(backend="cuda"))
    except RuntimeError:  # no such backend
        return None


def cudnn_takes(head_size: int, dtype: DTypeLike, capability: float) -> bool:
    """Returns whether cuDNN's kernel supports heads of this size and dtype on a GPU of this compute capability.

    It supports half precision and multiples of 8 up to 128 (up to 256 from compute capability 9.0). It needs 8.0.
    """
    largest = 256 if capability >= 9.0 else 128
    return jnp.dtype(dtype) in HALVES and head_size % 8 == 0 and head_size <= largest and capability >= 8.0


def splash_takes(n: int, m: int, dtype: DTypeLike) -> bool:
    """Returns whether JAX's splash kernel for TPUs is worthwhile for n queries and m keys of this dtype."""
    return jnp.dtype(dtype) in HALVES and min(n, m) >= SPLASH_LENGTH


def splash(
    q: Queries,
    k: KeyVectors,
    v: Values,
    key_length: Length | None = None,
    *,
    causal: bool = False,
    interpret: bool = False,
) -> Attended:
    """Returns attention by JAX's splash kernel for TPUs; lengths and head size are padded, padded keys masked.

    `interpret` runs the kernel's program anywhere, slowly.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    b, n, h, d = q.shape
    m = k.shape[1]

    def pad(a: Array) -> Array:
        a = jnp.pad(a, ((0, 0), (0, -a.shape[1] % SPLASH_BLOCK), (0, 0), (0, -d % LANES)))
        return a.swapaxes(1, 2)  # [b, h, n, d]

    # The kernel scales nothing; float32 inside, rounded once: the product of two halves is exact there
    q, k, v = pad((q.astype(jnp.float32) * d**-0.5).astype(q.dtype)), pad(k), pad(v)
    size = SPLASH_BLOCK
    blocks = kernel.BlockSizes(block_q=size, block_kv=size, block_kv_compute=size, block_q_dkv=size, block_kv_dkv=size,
                               block_kv_dkv_compute=size, block_q_dq=size, block_kv_dq=size)  # fmt: skip
    mask = (masks.CausalMask if causal else masks.FullMask)((q.shape[2], k.shape[2]))
    run = kernel.make_splash_mha_single_device(masks.MultiHeadMask([mask] * h), block_sizes=blocks, interpret=interpret)

    def segments(length: Array | int) -> kernel.SegmentIds:
        """Returns segment ids. Padded keys are in another segment than all queries, padded queries included."""
        seen = (jnp.arange(k.shape[2]) < length).astype(jnp.int32)
        return kernel.SegmentIds(jnp.ones(q.shape[2], jnp.int32), seen)

    if key_length is not None:
        out = jax.vmap(lambda q, k, v, length: run(q, k, v, segments(length)))(q, k, v, key_length)
    elif k.shape[2] == m:
        out = jax.vmap(run)(q, k, v)
    else:
        all_seen = segments(m)
        out = jax.vmap(lambda q, k, v: run(q, k, v, all_seen))(q, k, v)
    return out.swapaxes(1, 2)[:, :n, :, :d]
