"""attend against softmax attention in float64 numpy, on every path that this machine can run or lower."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import PartitionSpec as P

from sdjax.nn.layers import attention
from sdjax.nn.layers.attention import attend
from sdjax.pipeline import placement

# Relative to the largest output: float32 sums of up to 4,096 terms; halves to a few units of their last place
TOLERANCE = {"float32": 5e-6, "bfloat16": 2e-2, "float16": 2.5e-3}


def exact(q, k, v, causal=False):
    """Returns softmax(q k / sqrt(d)) v, float64, and the gradients of the sum of its product with `q + 1`."""
    q, k, v = (np.asarray(a, np.float64).swapaxes(1, 2) for a in (q, k, v))
    scale = q.shape[-1] ** -0.5
    logits = q @ k.swapaxes(-1, -2) * scale
    if causal:
        logits = np.where(np.tril(np.ones(logits.shape[-2:], bool)), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = weights @ v
    dout = np.ones_like(out) + np.arange(out.shape[-1]) / out.shape[-1]  # of sum((1 + channel / d) * out)
    dweights = dout @ v.swapaxes(-1, -2)
    dlogits = weights * (dweights - (dweights * weights).sum(-1, keepdims=True)) * scale
    grads = dlogits @ k, dlogits.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ dout
    return out.swapaxes(1, 2), tuple(g.swapaxes(1, 2) for g in grads)


def loss(q, k, v, causal=False, function=attend, **options):
    return (function(q, k, v, causal=causal, **options) * (1 + jnp.arange(q.shape[-1]) / q.shape[-1])).sum()


def inputs(n, m, h, d, dtype="float32", b=1, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (b, n, h, d), (b, m, h, d), (b, m, h, d)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def check(got, want, tolerance):
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=tolerance * np.abs(want).max())


# (queries, keys, heads, head size, causal): text, cross-attention, v1's and v2's heads, an odd picture, the autoencoder
SHAPES = [
    (1, 77, 2, 40, False),
    (77, 77, 2, 64, True),
    (64, 64, 2, 160, False),
    (256, 77, 2, 160, False),
    (700, 700, 2, 80, True),
    (4096, 77, 2, 40, False),
    (1024, 4096, 1, 64, False),
    (3705, 3705, 1, 40, False),
    (1024, 1024, 1, 512, False),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64_softmax_attention(shape):
    *shape, causal = shape
    args = inputs(*shape)
    check(attend(*args, causal=causal), exact(*args, causal)[0], TOLERANCE["float32"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rounds_only_inputs_and_outputs(dtype):
    args = inputs(1000, 300, 2, 40, dtype)
    got = attend(*args)
    assert got.dtype == dtype
    check(got, exact(*args)[0], TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(77, 77, 2, 64, True), (1100, 1100, 1, 40, False), (1030, 77, 2, 40, False),
                                   (900, 900, 1, 16, True)], ids=str)  # fmt: skip
def test_gradients_equal_float64(shape, monkeypatch):
    monkeypatch.setattr(attention, "CPU_SCORES", 2**17)  # several chunks, the last one not full
    *shape, causal = shape
    args = inputs(*shape)
    for got, want in zip(jax.grad(loss, (0, 1, 2))(*args, causal), exact(*args, causal)[1], strict=True):
        check(got, want, 1e-5)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("causal", [False, True])
def test_head_by_head_on_one_device_and_on_many(devices, causal, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(attention, "CPU_SCORES", 2**14)
    args = inputs(333, 200, 2, 24)
    check(attention.head_by_head(*args, causal=causal), exact(*args, causal)[0], TOLERANCE["float32"])


@pytest.mark.parametrize("limit", [1, 2**14, 2**18])
def test_chunks_of_any_size_give_the_same(limit):
    args = inputs(333, 200, 2, 24)
    got = attention.in_chunks(*args, causal=True, limit=limit)
    check(got, exact(*args, True)[0], TOLERANCE["float32"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("lengths", [(77, 77), (1100, 400)], ids=str)
def test_logits_a_hundredfold_stay_finite(lengths, dtype):
    q, k, v = inputs(*lengths, 2, 64, dtype)
    q, k = q * 100, k * 30  # products of up to 10^5: past float16's 65,504
    got = attend(q, k, v)
    assert np.isfinite(got).all()
    assert np.abs(np.einsum("bnhd,bmhd->bhnm", *(np.asarray(a, np.float32) for a in (q, k)))).max() > 65504
    # The softmax picks one key for nearly every query, so only the outputs' rounding is left
    check(got, exact(q, k, v)[0], TOLERANCE[dtype])


def largest_array(compiled):
    """Returns the elements of the largest array that a compiled program names, in fusions too."""
    sizes = re.findall(r"\b(?:f32|bf16|f16)\[([\d,]+)\]", compiled.as_text())
    return max(math.prod(map(int, size.split(","))) for size in sizes)


@pytest.mark.parametrize("shape", [(2, 4096, 8, 40), (1, 3705, 5, 64), (1, 16384, 1, 512)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cpu_never_holds_the_score_matrix(shape, dtype):
    b, n, h, d = shape
    args = (jax.ShapeDtypeStruct(shape, dtype),) * 3
    compiled = attention._attend.lower(*args, None, False).compile()
    scores = b * h * n * n
    # XLA's CPU backend keeps what its fused products pass on outside its plan, so the program's text is read too
    assert largest_array(compiled) <= max(scores / 16, 2 * b * n * h * d)
    assert compiled.memory_analysis().temp_size_in_bytes < scores * 4 / 5


def lowered(function, args, platform):
    return export.export(jax.jit(function), platforms=[platform])(*args).mlir_module()


def shaped(n, m, h, d, dtype="bfloat16", b=2):
    return tuple(jax.ShapeDtypeStruct((b, length, h, d), dtype) for length in (n, m, m))


GRADIENT = jax.grad(lambda q, k, v: loss(q, k, v).astype(jnp.float32), (0, 1, 2))


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of compute capability 8.0, and in cuDNN's place XLA; returns what cuDNN would have been called with."""
    calls, public = [], jax.nn.dot_product_attention

    def stand_in(q, k, v, *, implementation, **options):
        assert implementation == "cudnn"
        calls.append({"queries": q.shape, "keys": k.shape, **options})
        return public(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(attention, "cuda_capability", lambda: 8.0)
    attention._attend.clear_cache()
    yield calls
    attention._attend.clear_cache()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(4096, 4096, 8, 40), (4096, 77, 8, 40), (3705, 3705, 8, 40), (1024, 1024, 8, 80),
                                   (9216, 9216, 5, 64)], ids=str)  # fmt: skip
def test_a_gpu_attends_by_cudnn_with_even_lengths(shape, dtype, gpu):
    jax.eval_shape(attend, *shaped(*shape, dtype))
    (call,) = gpu
    assert call["queries"][1] % 2 == call["keys"][1] % 2 == 0  # JAX differentiates no others
    assert (call["key_value_seq_lengths"] is not None) == (shape[0] % 2 or shape[1] % 2)


@pytest.mark.parametrize(
    ("shape", "causal"), [((300, 77, 2, 40), False), ((301, 301, 1, 40), True), ((130, 130, 2, 64), True)], ids=str
)
def test_what_cudnn_is_called_with_is_the_attention(shape, causal, gpu):
    args = inputs(*shape, "bfloat16")
    check(attention.cudnn(*args, causal=causal), exact(*args, causal)[0], TOLERANCE["bfloat16"])
    assert len(gpu) == 1


def test_a_gpu_attends_without_cudnn_where_it_refuses(gpu):
    for args in (shaped(4096, 4096, 1, 512), shaped(4096, 4096, 8, 40, "float32"), shaped(77, 77, 12, 64)):
        jax.eval_shape(attend, *args)
    assert not gpu


def test_a_program_exported_for_cuda_from_a_machine_without_a_gpu_attends_in_chunks():
    if attention.cuda_capability() is not None:
        pytest.skip("this machine has a GPU")
    for function in (attend, GRADIENT):
        text = lowered(function, shaped(4096, 4096, 8, 40), "cuda")
        assert "custom_call" not in text
        assert "dot_general" in text


@pytest.mark.parametrize("shape", [(4096, 4096, 8, 40), (3705, 3705, 8, 40), (1024, 1024, 8, 80), (1024, 1024, 8, 160),
                                   (4096, 4096, 1, 512)], ids=str)  # fmt: skip
def test_lowered_for_tpu_is_the_pallas_kernel(shape):
    assert "tpu_custom_call" in lowered(attend, shaped(*shape), "tpu")


def test_lowered_for_tpu_gradient_is_the_pallas_kernels():
    assert lowered(GRADIENT, shaped(3705, 3705, 2, 40), "tpu").count("@tpu_custom_call") == 3  # forward, dq, dk and dv


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_float32_asks_for_full_precision_on_accelerators(platform):
    with jax.default_matmul_precision(None):
        text = lowered(attend, shaped(4096, 4096, 8, 40, "float32"), platform)
        assert text.count("precision = [HIGHEST, HIGHEST]") == text.count("stablehlo.dot_general") == 2
    with jax.default_matmul_precision("bfloat16"):
        text = lowered(attend, shaped(4096, 4096, 8, 40, "float32"), platform)
        assert "HIGHEST" not in text


def test_lowered_for_cpu_has_no_foreign_kernel():
    assert "custom_call" not in lowered(attend, shaped(4096, 4096, 8, 40), "cpu")


@pytest.mark.parametrize(
    "shape", [(600, 520, 2, 40, False), (512, 512, 1, 160, False), (530, 530, 1, 80, True)], ids=str
)
def test_splash_kernel_interpreted_equals_float64(shape):
    *shape, causal = shape
    args = inputs(*shape, "bfloat16")
    check(attention.splash(*args, causal=causal, interpret=True), exact(*args, causal)[0], TOLERANCE["bfloat16"])


def test_splash_kernel_gradients_interpreted_equal_float64():
    args = inputs(600, 520, 1, 40)
    function = functools.partial(attention.splash, interpret=True)
    for got, want in zip(jax.grad(functools.partial(loss, function=function), (0, 1, 2))(*args), exact(*args)[1],
                         strict=True):  # fmt: skip
        check(got, want, 1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_vmap_keeps_the_kernel(platform, shared):
    q, k, v = (jax.ShapeDtypeStruct((3, *a.shape), a.dtype) for a in shaped(1025, 513, 2, 40))
    if shared:
        k, v = (jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in (k, v))
    axes = (0, None, None) if shared else 0
    text = lowered(jax.vmap(attend, axes), (q, k, v), platform)
    kernel = {"cpu": "dot_general", "tpu": "tpu_custom_call"}[platform]
    assert kernel in text


def test_same_under_vmap_map_checkpoint_and_several_devices():
    args = inputs(300, 200, 2, 40, b=8)
    want = exact(*args)[0]
    mesh = placement.make_mesh()
    apart = jax.tree.map(lambda a: a[:, None], args)  # batch of 1, eight times
    spec = P(placement.BATCH)
    ways = {
        "vmap": lambda: jax.vmap(attend)(*apart)[:, 0],
        "map": lambda: jax.lax.map(lambda a: attend(*a), apart)[:, 0],
        "checkpoint": lambda: jax.jit(jax.checkpoint(attend))(*args),
        "pmap": lambda: jax.pmap(attend)(*apart)[:, 0],
        "shard_map": lambda: jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec)(*args),
        "unchecked": lambda: jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(*args),
        "sharded jit": lambda: jax.jit(attend)(*placement.split(args, mesh)),
    }
    for way in ways.values():
        check(way(), want, TOLERANCE["float32"])


def test_checked_shard_map_traces_no_kernel_that_it_cannot_check():
    spec = P(placement.BATCH)
    spread = jax.shard_map(attend, mesh=placement.make_mesh(), in_specs=spec, out_specs=spec, check_vma=True)
    args = inputs(512, 512, 1, 40, "bfloat16", b=8)
    check(jax.jit(spread)(*args), exact(*args)[0], TOLERANCE["bfloat16"])


def test_batch_spread_over_devices_needs_no_communication():
    args = placement.split(inputs(300, 200, 2, 40, b=8), placement.make_mesh())
    text = jax.jit(attend).lower(*args).compile().as_text()
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", text)


LENGTHS = np.array([77, 2, 231, 150])


def with_lengths(n, h, d, dtype, junk):
    """Returns queries, and keys and values of LENGTHS' lengths, behind which they hold `junk`."""
    q, k, v = inputs(n, int(LENGTHS.max()), h, d, dtype, b=len(LENGTHS))
    hidden = (np.arange(k.shape[1]) >= LENGTHS[:, None])[..., None, None]
    return q, *(jnp.where(hidden, jnp.asarray(junk, dtype), a) for a in (k, v))


def alone(q, k, v, i):
    """Returns one entry without padding."""
    return tuple(a[i : i + 1, : None if a is q else LENGTHS[i]] for a in (q, k, v))


def gradients(function):
    """Returns the function of q, k and v that returns the gradients of `loss`, and the attention itself."""

    def both(*args):
        return loss(*args, function=function), function(*args)

    return jax.jit(jax.grad(both, (0, 1, 2), has_aux=True))


def kernels_of_lengths(monkeypatch):
    """Returns every way to attend to keys of different length, on any platform."""
    monkeypatch.setattr(attention, "CPU_SCORES", 2**13)

    def by_public_xla(q, k, v, *, implementation, **options):
        return public(q, k, v, implementation="xla", **options)

    public = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", by_public_xla)
    return {
        "attend": attend,
        "one product": attention.in_chunks,
        "chunks": functools.partial(attention.in_chunks, limit=2**13),
        "heads": attention.head_by_head,
        "cudnn": attention.cudnn,
    }


@pytest.mark.few(4)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", ["attend", "one product", "chunks", "heads", "cudnn"])
def test_a_context_gives_what_it_gives_alone_beside_longer_ones(kernel, dtype, monkeypatch):
    function = kernels_of_lengths(monkeypatch)[kernel]
    q, k, v = args = with_lengths(200, 2, 40, dtype, 3.0)
    function = functools.partial(function, key_length=jnp.asarray(LENGTHS))
    slopes, got = gradients(function)(*args)
    for i, length in enumerate(LENGTHS):
        want, wanted = exact(*alone(*args, i))
        check(got[i : i + 1], want, TOLERANCE[dtype])
        for slope, exact_slope, tolerance in zip(slopes, wanted, (2, 2, 1), strict=True):
            check(slope[i : i + 1, : exact_slope.shape[1]], exact_slope, tolerance * max(TOLERANCE[dtype], 1e-5))
        for slope in slopes[1:]:
            assert not np.asarray(slope[i, length:], np.float32).any()


@pytest.mark.few(2)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("devices", [1, 8])
def test_padding_may_hold_anything(devices, causal, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    attention._attend.clear_cache()
    lengths = jnp.asarray(LENGTHS)
    run = jax.value_and_grad(lambda *args: loss(*args, causal, key_length=lengths), (0, 1, 2))
    plain = run(*with_lengths(231, 2, 16, "float32", 0.0))
    for junk in (jnp.nan, jnp.inf, 1e30):
        jax.tree.map(np.testing.assert_array_equal, run(*with_lengths(231, 2, 16, "float32", junk)), plain)
    attention._attend.clear_cache()


@pytest.mark.slow
def test_splash_kernel_interpreted_takes_keys_of_different_length():
    q, k, v = inputs(520, 600, 1, 40, b=2)
    lengths = np.array([513, 130])
    slopes, got = gradients(functools.partial(attention.splash, interpret=True, key_length=jnp.asarray(lengths)))(
        q, k, v
    )
    for i, length in enumerate(lengths):
        want, wanted = exact(*(a[i : i + 1, :m] for a, m in ((q, None), (k, length), (v, length))))
        check(got[i : i + 1], want, TOLERANCE["float32"])
        for slope, exact_slope in zip(slopes, wanted, strict=True):
            check(slope[i : i + 1, : exact_slope.shape[1]], exact_slope, 1e-5)


def test_lengths_that_hide_nothing_change_nothing():
    q, k, v = inputs(300, 231, 2, 40, b=2)
    np.testing.assert_allclose(attend(q, k, v, key_length=jnp.array([231, 231])), attend(q, k, v), atol=2e-6)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_lengths_keep_the_platforms_kernel(platform):
    lengths = jax.ShapeDtypeStruct((2,), jnp.int32)
    args = shaped(1024, 1024, 2, 40)
    text = lowered(lambda q, k, v, lengths: attend(q, k, v, key_length=lengths), (*args, lengths), platform)
    assert ("tpu_custom_call" in text) == (platform == "tpu")


def test_refuses_lengths_that_do_not_fit(unchecked_shapes):
    args = inputs(8, 8, 2, 16, b=2)
    with pytest.raises(ValueError, match="key_length is an integer for each of 2 entries; got int32"):
        attend(*args, key_length=jnp.array([3]))
    with pytest.raises(ValueError, match="got float32"):
        attend(*args, key_length=jnp.array([3.0, 4.0]))


def test_refuses_arrays_that_do_not_fit(unchecked_shapes):
    q, k, v = inputs(8, 8, 2, 16)
    with pytest.raises(ValueError, match="of one dtype"):
        attend(q, k.astype(jnp.bfloat16), v)
    with pytest.raises(ValueError, match=r"k and v \[b, m, h, d\]"):
        attend(q, k[..., :8], v[..., :8])
