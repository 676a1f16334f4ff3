"""Low-rank adapters: merged, and as a patch that gives each image of a batch its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_unet
from flax.traverse_util import flatten_dict

from sdjax.adapters import (
    AdapterError,
    Difference,
    ImageLoRA,
    LoRA,
    LowRank,
    Strength,
    for_images,
    merge,
    patched,
    share_by_images,
)
from sdjax.nn.layers.conv import Conv
from sdjax.nn.layers.dense import Dense
from sdjax.nn.quantised.kinds import KINDS
from sdjax.nn.quantised.leaf import is_quantised
from sdjax.nn.quantised.rounding import quantised

from checks import count_compilations, relative_error

CLOSE = 3e-6  # float32 sums in another order: x (W + D U) against x W + (x D) U


def test_each_image_of_a_batch_has_its_own_adapter():
    """Weight 0 is the plain network bit for bit; the others are what merged parameters give."""
    first, second = small_unet.adapter(1, 2), small_unet.adapter(2, 4)
    del second[f"{small_unet.attention_paths()[0]}/kernel"]  # adapters need not change the same layers
    params, inputs = small_unet.params(), small_unet.inputs()
    own = for_images([(first, 0.0), (first, 0.7), (second, -1.3)])
    got = small_unet.run(params, inputs, (LoRA(),), (own,))
    plain = small_unet.run(params, inputs)
    np.testing.assert_array_equal(got[0], plain[0])
    for i, (adapter, weight) in enumerate([(first, 0.7), (second, -1.3)], start=1):
        want = small_unet.run(merge(params, [(adapter, weight)]), inputs)[i]
        assert relative_error(got[i], want) < CLOSE
        assert relative_error(plain[i], want) > 0.1


def test_other_adapters_of_one_shape_compile_nothing():
    def run(*adapters):
        return small_unet.run(small_unet.params(), small_unet.inputs(), (LoRA(),), (for_images(adapters),))

    adapters = [small_unet.adapter(seed, 4) for seed in (1, 2, 3)]
    run((adapters[0], 1.0), (adapters[1], 0.5), ({}, 1.0))
    assert count_compilations(lambda: run(({}, 0.0), (adapters[2], 2.0), (adapters[0], 1.0))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "blocks", "products"])
def test_gradient_by_the_adapter_is_that_by_the_merged_kernels(remat):
    """By the chain rule: of a kernel W + w s D U, dL/dD = w s dL/dW Ut and dL/dU = w s Dt dL/dW."""
    adapter, params, inputs, weight = small_unet.adapter(1, 2), small_unet.params(), small_unet.inputs(1), 0.7

    def loss(own):
        return jnp.sum(small_unet.run(params, inputs, (LoRA(),), (own,), remat=remat) ** 2)

    got = jax.grad(loss)(for_images([(adapter, weight)]))
    by_kernel = jax.grad(lambda params: jnp.sum(small_unet.run(params, inputs) ** 2))(
        merge(params, [(adapter, weight)])
    )
    for path, change in adapter.items():
        kernel = by_kernel
        for name in path.split("/"):
            kernel = kernel[name]
        factor, layer = weight * change.scale, path.removesuffix("/kernel")
        # Gradients that cancel are small beside the terms of their sums
        np.testing.assert_allclose(got.layers[layer].down[0], factor * kernel @ change.up.T, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(got.layers[layer].up[0], factor * change.down.T @ kernel, rtol=1e-3, atol=1e-3)


class Layers(nn.Module):
    """A convolution of stride 2 and a linear layer."""

    @nn.compact
    def __call__(self, x):
        x = Conv(6, strides=(2, 2), padding=((0, 1), (0, 1)), name="conv")(x)
        return Dense(5, name="dense")(x)


def layers() -> tuple[np.ndarray, dict, dict[str, LowRank]]:
    params = {"conv": {"kernel": small_unet.normal(0, 3, 3, 4, 6), "bias": small_unet.normal(1, 6)},
              "dense": {"kernel": small_unet.normal(2, 6, 5), "bias": small_unet.normal(3, 5)}}  # fmt: skip
    adapter = {"conv/kernel": LowRank(small_unet.normal(4, 3, 3, 4, 2), small_unet.normal(5, 2, 6), 0.5),
               "dense/kernel": LowRank(small_unet.normal(6, 6, 3), small_unet.normal(7, 3, 5))}  # fmt: skip
    return small_unet.normal(8, 2, 6, 6, 4), params, adapter


def test_convolutions_are_changed_as_merged_ones():
    x, params, adapter = layers()
    with patched([LoRA()], own=[for_images([({}, 1.0), (adapter, 0.8)])]):
        got = Layers().apply({"params": params}, x)
    np.testing.assert_allclose(got[0], Layers().apply({"params": params}, x)[0], rtol=1e-6, atol=1e-6)
    merged = merge(params, [(adapter, 0.8)])
    np.testing.assert_allclose(got[1], Layers().apply({"params": merged}, x)[1], rtol=1e-5, atol=1e-4)
    # The change of a convolution by its definition: every position's matrix is a product
    change = np.einsum("hwcr,rd->hwcd", adapter["conv/kernel"].down, adapter["conv/kernel"].up)
    np.testing.assert_allclose(merged["conv"]["kernel"] - params["conv"]["kernel"], 0.8 * 0.5 * change, atol=1e-6)
    assert merged["conv"]["bias"] is params["conv"]["bias"]


def test_merging_rounds_once():
    kernel = jnp.ones([1, 1], jnp.bfloat16)
    # bfloat16's step at 1 is 2**-7: each of the two terms alone would be lost, their sum is not
    change = LowRank(jnp.full([1, 2], 1.2 * 2**-9), jnp.ones([2, 1]))
    for weight, want in (1.0, 1 + 2**-7), (0.5, 1):
        got = merge({"kernel": kernel}, [({"kernel": change}, weight)])["kernel"]
        assert got == want
        assert got.dtype == jnp.bfloat16
    # Two adapters are added before rounding, too
    halves = merge({"kernel": kernel}, [({"kernel": change}, 0.5), ({"kernel": change}, 0.5)])["kernel"]
    assert halves == 1 + 2**-7


def test_adapters_that_do_not_fit_name_every_layer():
    x, params, adapter = layers()
    wrong = {
        **adapter,
        "dense/kernel": LowRank(np.ones([7, 2]), np.ones([2, 5])),
        "conv/deeper/kernel": adapter["conv/kernel"],
    }
    with pytest.raises(AdapterError, match=r"'dense/kernel'.*no 'conv/deeper/kernel'"):
        merge(params, [(wrong, 1.0)])
    with (
        patched([LoRA()], own=[for_images([(wrong, 1.0)] * 2)]),
        pytest.raises(AdapterError, match=r"'conv/deeper'.*'dense' is \(6, 5\), the change \(7, 5\)"),
    ):
        Layers().apply({"params": params}, x)
    with pytest.raises(AdapterError, match="different shapes for 'dense/kernel'"):
        for_images([(adapter, 1.0), (wrong, 1.0)])


def test_images_without_any_adapter_need_no_arrays():
    own = for_images([({}, 1.0), ({}, 0.5)])
    assert own.layers == {}
    assert isinstance(own, ImageLoRA)
    x, params, _ = layers()
    with patched([LoRA()], own=[own]):
        got = Layers().apply({"params": params}, x)
    np.testing.assert_array_equal(got, Layers().apply({"params": params}, x))


def test_every_block_has_its_weight():
    numbers = tuple(range(1, 27))
    paths = {
        "text/layers_0/fc1/kernel": 1, "unet/down_blocks_0/resnets_0/conv1/kernel": 3,
        "unet/down_blocks_0/downsamplers_0/conv/kernel": 5, "unet/down_blocks_3/resnets_1/conv1/kernel": 13,
        "unet/mid_block/attentions_0/proj_in/kernel": 14, "unet/up_blocks_0/upsamplers_0/conv/kernel": 17,
        "unet/up_blocks_3/attentions_2/proj_in/kernel": 26,
    }  # fmt: skip
    strength = Strength(0.5, blocks=numbers)
    assert {path: 2 * strength.of(path) for path in paths} == paths
    assert strength.of("unet/conv_in/kernel") == 0.5
    few = Strength(text=2.0, blocks=tuple(range(10, 27)))  # BASE, IN01 ...
    assert few.of("text/layers_0/fc1/kernel") == 20
    assert few.of("unet/down_blocks_0/attentions_0/proj_in/kernel") == 11
    assert few.of("unet/down_blocks_0/downsamplers_0/conv/kernel") == 1
    assert few.of("unet/up_blocks_3/attentions_2/proj_in/kernel") == 26
    with pytest.raises(ValueError, match="17 or 26 numbers; got 3"):
        Strength(blocks=(1, 2, 3))


def changes_of_all_leaves(seed):
    """Returns an adapter of all projections' kernels and, as differences, of all biases and norms of the network."""
    leaves = flatten_dict(small_unet.params(), sep="/")
    vectors = [path for path in leaves if path.endswith(("/bias", "/scale"))]
    out = {path: Difference(0.2 * small_unet.normal(seed + i, *leaves[path].shape)) for i, path in enumerate(vectors)}
    return {**out, **small_unet.adapter(seed, 2)}


def test_biases_and_norms_differ_from_image_to_image():
    """Weight 0 is the plain network bit for bit; the other image is what merged parameters give."""
    adapter, params, inputs = changes_of_all_leaves(3), small_unet.params(), small_unet.inputs()
    assert {path.rpartition("/")[2] for path in adapter} == {"kernel", "bias", "scale"}
    want = small_unet.run(merge(params, [(adapter, 0.6)]), inputs)[1]
    plain = small_unet.run(params, inputs)
    one = for_images([({}, 1.0), (adapter, 0.6), (adapter, 0.0)])
    shared, factors = share_by_images([adapter], [[0.0], [Strength(0.6)], [0.0]])
    assert shared.whole["conv_out/bias"].shape == (1, 4)  # once, whatever the batch
    for of_all, own in (None, one), (shared, factors):
        got = small_unet.run(params, inputs, (LoRA(),), (own,), shared=(of_all,))
        np.testing.assert_array_equal(got[0], plain[0])
        np.testing.assert_array_equal(got[2], plain[2])
        assert relative_error(got[1], want) < CLOSE
        assert relative_error(plain[1], want) > 0.1


def test_adapters_that_images_share_are_kept_once_and_each_image_takes_its_part():
    params, inputs = small_unet.params(), small_unet.inputs()
    adapters = small_unet.adapter(1, 2), small_unet.adapter(2, 3)
    weights = [[0.7, -0.4], [0.0, 0.0], [0.0, 1.1]]

    def run(weights):
        shared, own = share_by_images(adapters, weights)
        assert {one.down.shape[1:] for one in shared.layers.values()} == {(8,)}  # 2 + 3, to a power of two
        return small_unet.run(params, inputs, (LoRA(),), (own,), shared=(shared,))

    got = run(weights)
    for i, of_image in enumerate(weights):
        want = small_unet.run(merge(params, list(zip(adapters, of_image))), inputs)[i]
        assert relative_error(got[i], want) < CLOSE
    assert count_compilations(lambda: run([[0.1, 0.2], [0.3, 0.4], [0.5, -0.6]])) == 0


def test_an_adapter_works_unmerged_on_quantised_kernels():
    """It gives what it gives on the same kernels as arrays. Merging makes arrays of the leaves that it changes."""
    x, params, adapter = layers()
    packed = {
        name: {**layer, "kernel": quantised(KINDS["int8"], np.asarray(layer["kernel"]), "float32")}
        for name, layer in params.items()
    }
    arrays = {name: {**layer, "kernel": layer["kernel"].whole()} for name, layer in packed.items()}
    got = []
    for base in packed, arrays:
        with patched([LoRA()], own=[for_images([({}, 1.0), (adapter, 0.8)])]):
            got.append(Layers().apply({"params": base}, x))
    np.testing.assert_allclose(*got, rtol=1e-5, atol=1e-4)
    merged, want = (flatten_dict(merge(base, [(adapter, 0.8)]), sep="/") for base in (packed, arrays))
    assert not any(map(is_quantised, merged.values()))
    assert all(np.array_equal(merged[path], want[path]) for path in want)
