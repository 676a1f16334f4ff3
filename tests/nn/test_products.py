"""Products of halves on CPUs: what is multiplied, how it is rounded, and how the processor is asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.nn.layers import attention, conv, products
from sdjax.nn.layers.dense import Dense


@pytest.fixture(params=[True, False], ids=["halves", "float32"])
def multiplies(request, monkeypatch):
    """Whether the processor multiplies bfloat16, whatever this one does."""
    monkeypatch.setattr(products, "processor_multiplies_bfloat16", lambda: request.param)
    return request.param


def operands(text):
    """Returns the types that the products of a lowered program multiply, and what they give."""
    lines = [line.rpartition(":")[2] for line in text.splitlines() if "stablehlo.dot_general" in line]
    return {
        tuple(
            part.strip(" ()<>").rpartition("x")[2].rstrip(">")
            for part in line.replace("->", ",").split(",")
            if "x" in part
        )
        for line in lines
    }


def arrays(*shapes, dtype="bfloat16"):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def test_a_linear_layer_is_rounded_once(multiplies):
    x, kernel, bias = arrays((3, 200), (200, 40), (40,))
    y = np.asarray(products.linear(x, kernel, bias), np.float64)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
    error = np.abs(y - exact) / np.abs(exact)
    # bfloat16 has 8 bits: half a unit of the last place; a product rounded before its bias is added may be off by more
    assert (error.max() <= 2**-8) == multiplies
    assert error.max() < 2**-3


def test_products_multiply_what_the_processor_does(multiplies):
    x, kernel, map_, point, q, keys = arrays(
        (2, 8, 32), (32, 16), (1, 8, 8, 512), (3, 3, 512, 8), (1, 256, 2, 8), (1, 80, 2, 8)
    )
    layer = Dense(16, dtype=jnp.bfloat16)
    runs = {
        "linear": (lambda: layer.apply({"params": {"kernel": kernel, "bias": jnp.zeros(16)}}, x)),
        "columns": (lambda: conv.columns(map_, point, strides=(1, 1), padding=((1, 1), (1, 1)))),
        "attention": (lambda: attention.head_by_head(q, keys, keys)),
    }
    halves = {("bf16", "bf16", "f32")}
    for name, run in runs.items():
        found = operands(jax.jit(run).lower().as_text())
        widened = {("bf16", "bf16", "bf16")} if name == "linear" else {("f32", "f32", "f32")}
        assert found == (halves if multiplies else widened), name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_types_are_multiplied_as_ever(multiplies, dtype):
    x, kernel, bias = arrays((5, 30), (30, 20), (20,), dtype=dtype)
    np.testing.assert_array_equal(products.linear(x, kernel, bias), x @ kernel + bias)


def test_gradients_of_products_of_halves_equal_float32s(multiplies):
    x, kernel, bias = arrays((6, 64), (64, 24), (24,))

    def loss(x, kernel, bias):
        return jnp.square(products.linear(x, kernel, bias).astype(jnp.float32)).sum()

    got = jax.grad(loss, (0, 1, 2))(x, kernel, bias)
    want = jax.grad(loss, (0, 1, 2))(*(a.astype(jnp.float32) for a in (x, kernel, bias)))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.bfloat16
        # the output and what comes back are rounded to 8 bits
        assert np.linalg.norm(np.asarray(a, np.float64) - b) <= 1e-2 * np.linalg.norm(b)


@pytest.mark.parametrize(
    ("listed", "said", "answer"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sse\n", "", True),
        ("processor : 0\nflags : fpu amx_bf16\n", "", True),
        ("flags : fpu avx2\nbugs : avx512_bf16_is_no_flag\n", "", False),
        ("Features : fp asimd bf16\n", "", False),
        (None, "", False),
        (None, "1", True),
        ("flags : avx512_bf16\n", "0", False),
    ],
)
def test_the_processor_is_asked_by_its_flags(listed, said, answer, monkeypatch, tmp_path):
    path = tmp_path / "cpuinfo"
    if listed is not None:
        path.write_text(listed)
    monkeypatch.setattr(products, "PROCESSOR", path)
    monkeypatch.setenv("SDJAX_CPU_BFLOAT16", said)
    assert products.processor_multiplies_bfloat16.__wrapped__() == answer


def test_an_unknown_answer_is_refused(monkeypatch):
    monkeypatch.setenv("SDJAX_CPU_BFLOAT16", "yes")
    with pytest.raises(ValueError, match="SDJAX_CPU_BFLOAT16 is 0 or 1, got 'yes'"):
        products.processor_multiplies_bfloat16.__wrapped__()
