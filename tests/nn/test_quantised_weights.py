"""Quantised weights: ggml's blocks bit by bit, rounding, and what a compiled program holds of them."""

import pathlib
import re

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.nn.layers.conv import Conv
from sdjax.nn.layers.dense import Dense
from sdjax.nn.quantised import planes
from sdjax.nn.quantised.blocks import blocks_of, blocks_of_bytes, bytes_of_blocks, leaf_of
from sdjax.nn.quantised.kinds import KINDS, WRITTEN, kind_for, kind_named
from sdjax.nn.quantised.leaf import side_by_side
from sdjax.nn.quantised.rounding import quantised

# Random blocks, and their weights by the gguf package 0.19 (`gguf.quants`), the reference's own reader; also the same
# package's blocks of the numbers "x"
GGML = np.load(pathlib.Path(__file__).parents[1] / "golden" / "ggml_blocks.npz")
BLOCK_KINDS = [name for name, kind in KINDS.items() if kind.block]


def leaf(name):
    kind = KINDS[name]
    return leaf_of(kind, blocks_of_bytes(kind, GGML[name].reshape(-1, kind.size)), (2, 256), "float32")


@pytest.mark.parametrize("name", BLOCK_KINDS)
def test_ggmls_blocks_have_the_weights_that_its_own_reader_gives(name):
    assert np.array_equal(leaf(name).whole(), GGML[f"{name}_weights"].T)


def test_a_compiled_program_makes_the_same_weights_of_every_type():
    leaves = {name: leaf(name) for name in BLOCK_KINDS}
    made = jax.jit(lambda leaves: {name: one.whole() for name, one in leaves.items()})(leaves)
    for name, one in leaves.items():
        np.testing.assert_allclose(made[name], one.whole(), rtol=1e-6, atol=1e-6)  # the compiler may fuse * and +


@pytest.mark.parametrize("name", [name for name in WRITTEN if KINDS[name].block])
def test_blocks_are_written_as_they_were_read(name):
    kind = KINDS[name]
    assert np.array_equal(bytes_of_blocks(kind, blocks_of(leaf(name))).reshape(2, -1), GGML[name])


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_rounding_is_ggmls(name):
    made = quantised(KINDS[name], GGML["x"].T, "float32")
    assert np.array_equal(bytes_of_blocks(KINDS[name], blocks_of(made)).reshape(2, -1), GGML[f"{name}_of_x"])


# Standard normal weights. A code's step is s, and rounding errs by s / sqrt(12) in the mean. For int8 s = m / 127 with
# m = 3.6 of 4608 numbers; for blocks of 32 m is 2.1 in the mean, and s = m / 127, 2 m / 15 or 2 m / 31. float8 has a
# mantissa of 3 bits, so s is 2^-3 of a number's power of two
@pytest.mark.parametrize(
    ("name", "most"),
    [("int8", 0.0098), ("fp8", 0.03), ("q8_0", 0.006), ("q5_0", 0.05), ("q5_1", 0.04), ("q4_0", 0.095), ("q4_1", 0.083),
     ("q4_k", 0.077)],
)  # fmt: skip
def test_rounding_errs_by_what_the_codes_steps_allow(name, most):
    x = np.random.default_rng(0).normal(size=(3, 3, 512, 8)).astype(np.float32)
    made = quantised(KINDS[name], x, "float32")
    assert made.whole().shape == x.shape
    assert most / 2 < np.sqrt(np.square(made.whole() - x).mean()) < most


def test_zero_weights_stay_zero():
    for name in WRITTEN:
        assert not quantised(KINDS[name], np.zeros((256, 3), np.float32), "float32").whole().any()


def test_a_leaf_takes_the_bits_that_its_type_says():
    x = np.zeros((512, 64), np.float32)
    for name in WRITTEN:
        made, bits = quantised(KINDS[name], x, "float32"), KINDS[name].bits_a_weight
        # k types hold small scales of 6 bits as bytes; a scaled type has 32 bits for each output
        assert bits <= 8 * made.nbytes / made.size <= bits + 0.13


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6])
def test_packed_codes_come_back(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (2, 64, 5), dtype=np.uint8)
    packed = planes.split(codes, bits)
    assert sum(plane.nbytes for plane in packed) * 8 == codes.size * bits
    assert np.array_equal(planes.joined(packed, bits).reshape(codes.shape), codes)


def test_a_fused_matrix_is_its_parts_side_by_side():
    for name in ("int8", "q5_1"):
        whole = quantised(KINDS[name], np.random.default_rng(0).normal(size=(64, 12)), "float32")
        parts = [whole.outputs(i, 3) for i in range(3)]
        assert [part.shape for part in parts] == [(64, 4)] * 3
        assert np.array_equal(side_by_side(parts).whole(), whole.whole())
        assert np.array_equal(parts[1].whole(), whole.whole()[:, 4:8])


def test_layers_whose_inputs_do_not_divide_into_blocks():
    assert kind_for(KINDS["q4_k"], 1280).name == "q4_k"
    assert kind_for(KINDS["q4_k"], 320).name == "q5_0"
    assert kind_for(KINDS["q8_0"], 4) is None
    assert kind_for(KINDS["int8"], 4).name == "int8"
    with pytest.raises(ValueError, match=r"one of int8, fp8, q8_0.*; got 'q6_k'"):
        kind_named("q6_k")


class Layers(nn.Module):
    count: int
    width: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.count):
            x = x + Dense(self.width, name=f"dense_{i}", dtype=jnp.bfloat16)(x)
        return x


@pytest.mark.parametrize("name", ["int8", "fp8", "q4_0"])
def test_a_loop_never_holds_more_than_a_layers_kernel(name):
    """XLA moves what does not change out of loops: without the dependence on x, all kernels would be held there."""
    count, width = 8, 256
    net, x = Layers(count, width), jnp.ones((4, width), jnp.bfloat16)
    kernel = quantised(KINDS[name], np.eye(width, dtype=np.float32), "bfloat16")
    params = {f"dense_{i}": {"kernel": kernel, "bias": np.zeros(width, "bfloat16")} for i in range(count)}

    def run(params, x):
        return jax.lax.scan(lambda x, _: (net.apply({"params": params}, x), None), x, None, length=2)[0]

    memory = jax.jit(run).lower(params, x).compile().memory_analysis()
    whole = count * width * width * 2  # of all kernels in bfloat16
    assert memory.argument_size_in_bytes < 0.6 * whole
    assert memory.temp_size_in_bytes < 0.4 * whole  # a kernel in float32, which the CPU multiplies, and one in bfloat16


def test_layers_give_what_they_give_with_the_whole_kernel():
    x = jnp.linspace(-1, 1, 2 * 4 * 4 * 64, dtype=jnp.float32).reshape(2, 4, 4, 64)
    for layer, shape in (Dense(8), (64, 8)), (Conv(8), (3, 3, 64, 8)):
        for name in ("int8", "fp8", "q5_0"):
            packed = quantised(KINDS[name], np.random.default_rng(0).normal(size=shape), "float32")
            bias = np.arange(8, dtype=np.float32)
            got, want = (layer.apply({"params": {"kernel": k, "bias": bias}}, x) for k in (packed, packed.whole()))
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bfloat16", *WRITTEN])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_programs_for_accelerators_read_kernels_as_they_are_stored(name, platform):
    """A program's arguments are the packed kernel; its product's operand is made of them there."""
    x, shape = jax.ShapeDtypeStruct((4, 256), jnp.bfloat16), (256, 64)
    kernel = np.zeros(shape, "bfloat16")
    if name in WRITTEN:
        kernel = quantised(KINDS[name], np.zeros(shape, np.float32), "bfloat16")
    net = Dense(64, use_bias=False, dtype=jnp.bfloat16)
    run = jax.jit(lambda kernel, x: net.apply({"params": {"kernel": kernel}}, x))
    exported = jax.export.export(run, platforms=[platform])(kernel, x)
    assert sum(a.size * a.dtype.itemsize for a in exported.in_avals[:-1]) == kernel.nbytes
    product = next(line for line in exported.mlir_module().splitlines() if "dot_general" in line)
    assert re.search(r"tensor<256x64xbf16>", product)  # in bfloat16, not float32: the fast units' type
