"""Counted floating-point operations against formulas, hand counts and XLA."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdjax.config import ModelConfig, UNetConfig
from sdjax.configs import builtin
from sdjax.nn import UNet, param_shapes
from sdjax.nn.layers.attention import attend, head_by_head, in_chunks
from sdjax.pipeline.placement import BATCH, make_mesh, over_batch
from sdjax.train.planning.flops import count


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def conv(x, kernel, strides=(1, 1), padding=((1, 1), (1, 1)), **options):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def multiplications(function, *args):
    """Returns how many products of an element of x and one of the kernel a bilinear function adds up, by running it.

    With ones for both, every output is the number of products in its sum.
    """
    return int(function(*(jnp.ones(arg.shape) for arg in args)).sum())


def test_a_dense_layer_is_two_operations_a_weight_and_row():
    assert count(lambda x, w: x @ w, shape(5, 7), shape(7, 11)).total == 2 * 5 * 7 * 11
    assert count(functools.partial(jnp.einsum, "bij,bjk->bik"), shape(3, 5, 7), shape(3, 7, 11)).total == 2 * 3 * 5 * 77


def test_gradients_of_a_dense_network_are_three_times_its_forward_pass_less_the_inputs_gradient():
    def loss(w, x):
        return jnp.tanh(x @ w["a"] @ w["b"]).sum()

    w, x = {"a": shape(7, 11), "b": shape(11, 13)}, shape(5, 7)
    forward, first = 2 * 5 * (7 * 11 + 11 * 13), 2 * 5 * 7 * 11
    assert count(loss, w, x).total == forward
    assert count(jax.value_and_grad(loss), w, x).total == 3 * forward - first
    assert count(jax.value_and_grad(loss, argnums=(0, 1)), w, x).total == 3 * forward


@pytest.mark.parametrize(
    ("x", "kernel", "options"),
    [
        ((2, 8, 9, 6), (3, 3, 6, 4), {}),
        ((2, 8, 9, 6), (3, 3, 6, 4), {"padding": ((0, 0), (0, 0))}),
        ((2, 8, 9, 6), (3, 3, 6, 4), {"strides": (2, 2), "padding": ((0, 1), (0, 1))}),
        ((2, 8, 9, 6), (3, 2, 3, 4), {"feature_group_count": 2, "strides": (2, 1)}),
        ((2, 8, 9, 6), (3, 3, 6, 4), {"rhs_dilation": (2, 2)}),
        ((2, 8, 9, 6), (4, 4, 6, 4), {"lhs_dilation": (2, 2), "padding": ((2, 2), (2, 2))}),
        ((4, 8, 9, 6), (3, 3, 6, 4), {"batch_group_count": 2}),
    ],
    ids=["plain", "valid", "strided", "grouped", "dilated", "transposed", "batch groups"],
)
def test_a_convolution_and_both_its_gradients_count_the_products_it_adds_up(x, kernel, options):
    function, args = functools.partial(conv, **options), (shape(*x), shape(*kernel))
    products = multiplications(function, *args)
    assert count(function, *args).total == 2 * products
    out = jax.eval_shape(function, *args)
    for i in range(2):  # linear in each: its transposed map alone
        other = args[1 - i]

        def transposed(other, cotangent, i=i):
            of = (lambda a: function(a, other)) if i == 0 else (lambda a: function(other, a))
            return jax.linear_transpose(of, args[i])(cotangent)

        assert count(transposed, other, out).total == 2 * products


def test_a_3x3_convolution_without_padding_is_the_textbooks_formula():
    total = count(functools.partial(conv, padding=((0, 0), (0, 0))), shape(2, 10, 12, 6), shape(3, 3, 6, 4)).total
    assert total == 2 * 2 * 8 * 10 * 4 * 9 * 6


@pytest.mark.parametrize(
    ("kernel", "chunked"),
    [(attend, False), (in_chunks, False), (functools.partial(in_chunks, limit=2**10), True), (head_by_head, False)],
)
def test_attention_is_two_products_of_queries_by_keys(kernel, chunked):
    b, n, m, h, d = 2, 256, 128, 4, 16
    args = shape(b, n, h, d), shape(b, m, h, d), shape(b, m, h, d)
    forward = 2 * (2 * b * n * m * h * d)
    assert count(kernel, *args).total == forward
    if kernel is attend:
        for platform in ("cpu", "cuda", "tpu", None):
            assert count(kernel, *args, platform=platform).total == forward
    gradients = count(jax.grad(lambda *args: kernel(*args).sum(), argnums=(0, 1, 2)), *args)
    assert gradients.model == 3 * forward
    assert gradients.recomputed == (forward if chunked else 0)


def test_a_scan_counts_its_length_and_a_while_loop_of_products_is_refused():
    w, x = shape(7, 7), shape(5, 7)
    one = 2 * 5 * 7 * 7

    def scanned(w, x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=9)[0].sum()

    assert count(scanned, w, x).total == 9 * one
    assert count(jax.grad(scanned), w, x).total == 3 * 9 * one
    assert count(lambda w, x: jax.lax.fori_loop(0, 4, lambda i, x: x @ w, x), w, x).total == 4 * one
    assert count(lambda w, x: jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x / 2, x), w, x).total == 0
    with pytest.raises(ValueError, match="this one holds products; use jax.lax.scan"):
        count(lambda w, x: jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ w, x), w, x)


def test_a_branch_counts_as_the_largest_and_inner_functions_as_if_written_out():
    w, x = shape(7, 7), shape(5, 7)
    one = 2 * 5 * 7 * 7
    assert count(lambda w, x: jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w), w, x).total == 2 * one

    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    assert count(jax.jit(product), x, w).total == one
    assert count(jax.grad(lambda w, x: jax.jit(product)(x, w).sum()), w, x).total == 3 * one
    assert count(jax.vmap(lambda x, w: x @ w, (0, None)), shape(3, 5, 7), w).total == 3 * one


def test_every_device_of_a_mesh_is_counted():
    mesh = make_mesh()
    spread = over_batch(lambda w, x: x @ w, mesh, (False, True))
    assert count(spread, shape(7, 11), shape(16, 7)).total == 2 * 16 * 7 * 11
    whole = jax.shard_map(  # every device does all of it
        lambda w, x: x @ w, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False
    )
    assert count(whole, shape(7, 11), shape(16, 7)).total == mesh.shape[BATCH] * 2 * 16 * 7 * 11


def test_what_a_checkpoint_computes_again_is_kept_apart():
    def network(w, x, wrap=lambda f: f):
        for _ in range(3):
            x = wrap(lambda x, w: jnp.tanh(jnp.tanh(x @ w) @ w))(x, w)
        return x.sum()

    w, x = shape(7, 7), shape(5, 7)
    plain = count(jax.grad(network), w, x)
    again = count(jax.grad(functools.partial(network, wrap=jax.checkpoint)), w, x)
    assert plain.recomputed == 0
    assert again.model == plain.total
    assert again.recomputed == 6 * (2 * 5 * 7 * 7)  # the forward pass once more


def test_a_kernel_from_outside_is_refused():
    from jax.experimental import pallas

    def kernel(x, out):
        out[...] = x[...] @ x[...]

    with pytest.raises(ValueError, match="operations of pallas_call at the top are not known"):
        count(pallas.pallas_call(kernel, out_shape=shape(8, 8)), shape(8, 8))


def built_in_step(**changes):
    """Returns a training step of the built-in model's UNet and its arguments' shapes; attention is one product."""
    model = ModelConfig.from_dict(builtin.get_config().model.to_dict())
    model = dataclasses.replace(model, unet=dataclasses.replace(model.unet, **changes))
    unet, params, optimizer, b = UNet(model.unet), param_shapes(model)["unet"], optax.adamw(1e-4), 4

    def step(params, opt_state, target, *inputs):
        def loss(params):
            return jnp.square(unet.apply({"params": params}, *inputs) - target).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    x = shape(b, 8, 8, model.unet.in_channels)
    context = shape(b, model.text.max_length, model.unet.context_dim)
    return step, (params, jax.eval_shape(optimizer.init, params), x, x, shape(b), context)


def test_a_training_step_agrees_with_xlas_count_and_is_told_apart_by_layer():
    one_level = {"channels": (96,), "heads": (4,), "transformer_depth": (1,), "self_attention": (True,)}
    step, args = built_in_step(**one_level)
    counted = count(step, *args, platform="cpu")
    # XLA adds what is not counted here: norms, activations, softmax and the optimiser, each some operations a number
    xla = jax.jit(step).lower(*args).cost_analysis()["flops"]
    assert 0.93 * xla < counted.total < xla
    assert sum(counted.by_layer.values()) == counted.total == sum(counted.groups(2).values())
    names = {"UNet/" + name for name in args[0]}
    assert set(counted.groups(2)) == {name for name in names if "norm" not in name}
    assert counted.table().splitlines()[-1].split()[0] == "total"


@pytest.mark.slow
def test_a_training_step_agrees_with_xlas_count_of_the_compiled_program():
    step, args = built_in_step()
    xla = jax.jit(step).lower(*args).compile().cost_analysis()["flops"]
    assert 0.93 * xla < count(step, *args, platform="cpu").total < xla  # as above: the rest is not in products


def multiply_adds(conv, *, products=True, n=64, channels=(320, 640, 1280, 1280), words=77, width=768):
    """Returns the multiply-adds of Stable Diffusion v1's UNet, from the layers that its paper's table lists.

    `conv(n, stride)` gives those of a 3x3 convolution for one pair of channels on an n x n map, padded by 1.
    """

    def resnet(n, c, d):
        return conv(n, 1) * (c * d + d * d) + 1280 * d + (n * n * c * d if c != d else 0)

    def transformer(n, c):
        s = n * n
        linear = 2 * s * c * c + 6 * s * c * c + 2 * words * width * c + s * c * 8 * c + s * 4 * c * c
        return linear + products * (2 * s * s * c + 2 * s * words * c)

    total, c, skips = 320 * 1280 + 1280 * 1280 + conv(n, 1) * 4 * 320, 320, [320]
    for level, d in enumerate(channels):
        for _ in range(2):
            total += resnet(n, c, d) + (transformer(n, d) if level < 3 else 0)
            c = d
            skips.append(c)
        if level < 3:
            total += conv(n, 2) * c * c
            n //= 2
            skips.append(c)
    total += 2 * resnet(n, c, c) + transformer(n, c)
    for level in (3, 2, 1, 0):
        for _ in range(3):
            total += resnet(n, c + skips.pop(), channels[level])
            c = channels[level]
            total += transformer(n, c) if level < 3 else 0
        if level:
            n *= 2
            total += conv(n, 1) * c * c
    return total + conv(n, 1) * c * 4


def test_the_unet_of_stable_diffusion_v1_is_counted_as_by_hand():
    def padded(n, stride):
        return 9 * (n // stride) ** 2

    def unpadded(n, stride):
        return (3 * n - 2) ** 2 if stride == 1 else (3 * n // 2 - 1) ** 2  # a row of padding reaches 3 n / stride taps

    # Published: 338.7 billion (BK-SDM, arXiv 2305.15798, table 1; thop counts padding and leaves out q k and a v)
    assert multiply_adds(padded, products=False) == pytest.approx(338.7e9, rel=1e-3)
    assert multiply_adds(padded) == pytest.approx(401.6e9, rel=1e-3)

    config = UNetConfig()
    unet, x, t, context = UNet(config), shape(1, 64, 64, 4), shape(1), shape(1, 77, 768)
    params = jax.eval_shape(unet.init, jax.random.key(0), x, t, context)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 859_520_964
    assert count(unet.apply, params, x, t, context).total == 2 * multiply_adds(unpadded)
