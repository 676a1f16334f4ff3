"""conv2d against a convolution written out in float64 numpy, by every method that it may choose."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from sdjax.nn.layers import conv, products, winograd
from sdjax.nn.layers.conv import conv2d

SAME, POINT, CORNER = ((1, 1), (1, 1)), ((0, 0), (0, 0)), ((0, 1), (0, 1))
# float32 sums of up to 9 * 520 terms; halves round inputs and output to 8 and 11 bits
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}

# (batch, height, width, channels), (kernel height, width), features, strides, padding; the first four by one product,
# the fifth by Winograd's
CASES = [
    ((2, 8, 8, 520), (3, 3), 24, (1, 1), SAME),
    ((1, 9, 7, 512), (3, 3), 8, (2, 2), SAME),
    ((2, 6, 5, 512), (3, 3), 8, (2, 2), CORNER),
    ((2, 20, 20, 48), (1, 1), 16, (1, 1), POINT),
    ((2, 31, 37, 80), (3, 3), 96, (1, 1), SAME),
    ((2, 20, 18, 32), (3, 3), 16, (1, 1), SAME),
    ((1, 21, 19, 32), (3, 3), 16, (2, 2), CORNER),
    ((1, 12, 10, 4), (3, 3), 16, (1, 1), SAME),
]


def exact(x, kernel, strides, padding):
    """Returns the convolution in float64: output (r, s) sums x[r * stride + i, s * stride + j] kernel[i, j]."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), *padding, (0, 0)))
    kernel = np.asarray(kernel, np.float64)
    rows, cols = kernel.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(x, (rows, cols), axis=(1, 2))  # [b, h, w, c, rows, cols]
    return np.einsum("bhwcij,ijcd->bhwd", windows[:, :: strides[0], :: strides[1]], kernel, optimize=True)


def inputs(shape, window, features, dtype="float32"):
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal(shape), rng.standard_normal((*window, shape[-1], features))
    return jnp.asarray(x, dtype), jnp.asarray(kernel / np.sqrt(kernel[..., 0].size), dtype)


def check(got, want, tolerance):
    assert got.shape == want.shape
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.few(10)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_float64(case, dtype):
    shape, window, features, strides, padding = case
    x, kernel = inputs(shape, window, features, dtype)
    bias = jnp.arange(features).astype(dtype)
    got = jax.jit(lambda x, kernel: conv2d(x, kernel, bias, strides=strides, padding=padding))(x, kernel)
    assert got.dtype == dtype
    check(got, exact(x, kernel, strides, padding) + np.arange(features), TOLERANCE[dtype])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_methods_equal_float64(case):
    shape, window, features, strides, padding = case
    x, kernel = inputs(shape, window, features)
    for method in (conv.columns, conv.convolution):
        check(method(x, kernel, strides=strides, padding=padding), exact(x, kernel, strides, padding), 1e-5)


@pytest.mark.few(2)
@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_gradients_of_the_product_are_those_of_the_convolution(case):
    shape, window, features, strides, padding = case
    x, kernel = inputs(shape, window, features)
    weight = jnp.asarray(
        np.random.default_rng(1).standard_normal(exact(x, kernel, strides, padding).shape), jnp.float32
    )

    def loss(x, kernel, method):
        return (method(x, kernel, strides=strides, padding=padding) * weight).sum()

    got = jax.grad(loss, (0, 1))(x, kernel, conv2d)
    want = jax.grad(loss, (0, 1))(x, kernel, conv.convolution)
    for a, b in zip(got, want, strict=True):
        check(a, np.asarray(b), 1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_method_is_chosen_when_lowered(case):
    shape, window, features, strides, padding = case
    args = inputs(shape, window, features)
    run = jax.jit(lambda x, kernel: conv2d(x, kernel, strides=strides, padding=padding))
    text = {p: export.export(run, platforms=[p])(*args).mlir_module() for p in ("cpu", "cuda", "tpu")}
    assert "stablehlo.convolution" in text["cuda"]
    assert "stablehlo.convolution" in text["tpu"]
    assert ("stablehlo.convolution" in text["cpu"]) == (case not in CASES[:5])


SHAPES = [(2, 8, 8, 5), (1, 7, 9, 3), (3, 1, 2, 4), (2, 1, 1, 3), (1, 31, 6, 2)]


@pytest.mark.few(1)
@pytest.mark.parametrize("largest", [2**29, 2**12], ids=["whole", "bands"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_winograd_and_its_gradients_equal_float64(shape, largest, monkeypatch):
    monkeypatch.setattr(winograd, "LARGEST", largest)
    assert (winograd._bands(2, 8, 8, 5, jnp.float32)[1] > 1) == (largest == 2**12)
    x, kernel = inputs(shape, (3, 3), 7)
    slope = jnp.asarray(np.random.default_rng(1).standard_normal((*shape[:3], 7)), jnp.float32)
    y, back = jax.vjp(winograd.winograd, x, kernel)
    check(y, exact(x, kernel, (1, 1), SAME), 2e-6)
    dx, dk = back(slope)
    # The map's gradient is the convolution of the slope with the kernel turned by half a turn
    check(dx, exact(slope, jnp.swapaxes(kernel[::-1, ::-1], 2, 3), (1, 1), SAME), 2e-6)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    check(dk, np.einsum("bhwcij,bhwd->ijcd", windows, np.asarray(slope, np.float64)), 2e-6)


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_winograd_in_halves_is_float32s_rounded_once(dtype, monkeypatch):
    monkeypatch.setattr(products, "processor_multiplies_bfloat16", lambda: False)
    x, kernel = inputs((2, 12, 10, 32), (3, 3), 16, dtype)
    want = winograd.winograd(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(dtype)
    got = winograd.winograd(x, kernel)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(jnp.float32), want.astype(jnp.float32))
    dx, dk = jax.vjp(winograd.winograd, x, kernel)[1](got)
    assert (dx.dtype, dk.dtype) == (jnp.dtype(dtype), jnp.dtype(dtype))


@pytest.mark.parametrize("largest", [2**29, 2**13], ids=["whole", "bands"])
def test_winograd_in_products_of_bfloat16_rounds_what_it_multiplies(largest, monkeypatch):
    monkeypatch.setattr(products, "processor_multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(winograd, "LARGEST", largest)
    x, kernel = inputs((2, 13, 10, 64), (3, 3), 48, "bfloat16")
    # Both factors are rounded to 8 bits, to half of 2^-8 at most and a third of that as a rule; what is summed is not
    check(winograd.winograd(x, kernel), exact(x, kernel, (1, 1), SAME), 6e-3)
    assert "f32>) -> tensor<" in (text := jax.jit(winograd.winograd).lower(x, kernel).as_text())
    taken = [line for line in text.splitlines() if "dot_general" in line]
    assert len(taken) == 16
    assert all(line.count("bf16") == 2 for line in taken)


@pytest.fixture
def one_device(monkeypatch):
    """Traces as where there is one device."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def test_winograd_keeps_pictures_apart(one_device):
    x, kernel = inputs((2, 6, 6, 3), (3, 3), 4)
    whole = winograd.winograd(x, kernel)
    for bad in (jnp.nan, jnp.inf):
        np.testing.assert_array_equal(winograd.winograd(x.at[0].set(bad), kernel)[1], whole[1])


def test_winograd_transforms_no_kernel_before_its_turn(one_device):
    x = jax.ShapeDtypeStruct((1, 4, 4, 128), jnp.float32)
    kernels = [jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.float32)] * 6
    program = jax.jit(lambda x, kernels: functools.reduce(winograd.winograd, kernels, x)).lower(x, kernels).compile()
    transformed = 16 * 128 * 128 * 4
    assert program.memory_analysis().temp_size_in_bytes < 3 * transformed
