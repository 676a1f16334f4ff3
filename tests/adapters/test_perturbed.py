"""Patches that guidance puts on attention: PAG, SEG, SAG's map, NAG. One branch changes, the others do not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from sdjax.adapters import patched, reporting
from sdjax.adapters.nag import NAG, NAGArrays
from sdjax.adapters.perturbed import (
    AttentionMap,
    PerturbedAttention,
    blurred,
    chosen,
    diffusers_name,
    mask_of,
    self_attentions,
)
from sdjax.config import UNetConfig
from sdjax.nn.layers.multihead import Attention
from sdjax.nn.layers.transformer import SpatialTransformer

RNG = np.random.default_rng(5)
X = jnp.asarray(RNG.standard_normal((6, 4, 6, 8)), jnp.float32)  # two pictures of three branches
TEXT = jnp.asarray(RNG.standard_normal((6, 5, 8)), jnp.float32)
PATH = "mid_block/attentions_0/transformer_blocks_0/attn1"


class Middle(nn.Module):
    """A middle block that is a transformer alone."""

    @nn.compact
    def __call__(self, x, context):
        return SpatialTransformer(2, 1, True, 4, name="attentions_0")(x, context)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, context):
        return Middle(name="mid_block")(x, context)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(Net().init, jax.random.key(0), X, TEXT)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten([jnp.asarray(0.4 * RNG.standard_normal(leaf.shape), jnp.float32) for leaf in leaves])


def run(params, patch=None, own=None, x=X, text=TEXT):
    with patched([patch] if patch else [], own=[own] if patch else []):
        return np.asarray(jax.jit(Net().apply)({"params": params}, x, text))


class Alone:
    """Every query attends to itself alone, in all entries."""

    def intercept(self, shared, own):
        def intercept(method, args, kwargs, context):
            attend = "/".join(context.module.path) == f"{PATH}/attend" and context.method_name == "__call__"
            return args[2] if attend else method(*args, **kwargs)

        return intercept


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_pag_gives_the_values_in_one_branch(params, branch):
    got, plain, alone = run(params, PerturbedAttention("mid", 3, branch)), run(params), run(params, Alone())
    for i in range(6):
        want = alone if i % 3 == branch else plain
        np.testing.assert_allclose(got[i], want[i], rtol=1e-4, atol=1e-4)  # other sizes of batch
    assert np.abs(alone - plain).max() > 1e-2


def test_seg_blurs_queries_and_no_blur_changes_nothing(params):
    plain = run(params)
    sharp = run(params, PerturbedAttention("mid", 3, 2), jnp.array([0.0, 0.0]))
    np.testing.assert_allclose(sharp, plain, rtol=1e-4, atol=1e-4)
    flat = run(params, PerturbedAttention("mid", 3, 2), jnp.array([0.0, 9999.0]))
    np.testing.assert_allclose(flat[:5], plain[:5], rtol=1e-4, atol=1e-4)
    assert np.abs(flat[5] - plain[5]).max() > 1e-3


def test_a_blur_is_scipys_with_reflected_borders():
    x = RNG.standard_normal((2, 10, 12, 3)).astype(np.float32)
    blur = jax.jit(blurred, static_argnames="half")
    got = np.asarray(blur(jnp.asarray(x), jnp.array([1.0, 2.0]), half=4))
    for i, sigma in enumerate((1.0, 2.0)):
        want = x[i]
        for axis in (0, 1):
            want = gaussian_filter1d(want, sigma, axis, mode="mirror", radius=4)
        np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-5)
    far = np.asarray(blur(jnp.asarray(x), jnp.array([9999.0, 0.5])))
    np.testing.assert_allclose(far[0], np.broadcast_to(x[0].mean((0, 1)), x[0].shape), rtol=1e-4, atol=1e-6)
    want = gaussian_filter1d(gaussian_filter1d(x[1], 0.5, 0, mode="mirror", radius=1), 0.5, 1, mode="mirror", radius=1)
    np.testing.assert_allclose(far[1], want, rtol=1e-4, atol=1e-5)


def test_the_map_of_attention_is_one_on_average(params):
    with reporting() as reports, patched([AttentionMap(3, 1)]):
        got = Net().apply({"params": params}, X, TEXT)
    np.testing.assert_allclose(got, run(params), rtol=1e-4, atol=1e-5)
    (attention,) = reports.values()
    assert attention.shape == (2, 4, 6)
    np.testing.assert_allclose(attention.mean((1, 2)), 1, rtol=1e-5)
    mask = np.asarray(mask_of(attention, 8, 12))
    np.testing.assert_array_equal(mask[:, ::2, ::2, 0], np.asarray(attention) > 1)


def softmax(q, k, v):
    weights = np.exp(q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5)
    return weights / weights.sum(-1, keepdims=True) @ v


def test_nag_follows_its_formula(params):
    scale, tau, alpha = 4.0, 5.5, 0.4
    negative = jnp.asarray(RNG.standard_normal((2, 3, 8)), jnp.float32)

    class Cross(nn.Module):
        @nn.compact
        def __call__(self, x, context):
            return Attention(2, biased=False, name="attn2")(x, context)

    weights = params["mid_block"]["attentions_0"]["transformer_blocks_0"]["attn2"]
    x = np.asarray(X.reshape(6, 24, 8))

    def numbers(scale):
        return NAGArrays(*(jnp.full(2, n, jnp.float32) for n in (scale, tau, alpha)), negative, None)

    def cross(patches, own):
        with patched(patches, own=own):
            return np.asarray(Cross().apply({"params": {"attn2": weights}}, x, TEXT))

    plain, got = cross([], []), cross([NAG(3, 1)], [numbers(scale)])

    def attended(x, text):
        heads = lambda a, name: (a @ np.asarray(weights[name]["kernel"])).reshape(-1, 2, 4).swapaxes(0, 1)  # noqa: E731
        return softmax(heads(x, "to_q"), heads(text, "to_k"), heads(text, "to_v")).swapaxes(0, 1).reshape(-1, 8)

    out = weights["to_out_0"]
    for i in range(2):
        entry = 3 * i + 1
        positive, away = attended(x[entry], np.asarray(TEXT[entry])), attended(x[entry], np.asarray(negative[i]))
        z = scale * positive - (scale - 1) * away
        growth = abs(z).sum(-1, keepdims=True) / abs(positive).sum(-1, keepdims=True)
        assert growth.min() < tau < growth.max()  # some tokens are limited and some are not
        z = alpha * np.where(growth > tau, z * tau / growth, z) + (1 - alpha) * positive
        want = z @ np.asarray(out["kernel"]) + np.asarray(out["bias"])
        np.testing.assert_allclose(got[entry], want, rtol=1e-3, atol=1e-4)
        for other in (0, 2):
            np.testing.assert_allclose(got[3 * i + other], plain[3 * i + other], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cross([NAG(3, 1)], [numbers(1.0)]), plain, rtol=1e-3, atol=1e-4)


def test_layers_are_chosen_by_their_names_in_diffusers():
    assert diffusers_name("down_blocks_1/attentions_0/transformer_blocks_0/attn1") == (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    )
    for one, yes, no in (
        ("mid", PATH, "down_blocks_1/attentions_0/transformer_blocks_0/attn1"),
        ("up_blocks.1.attentions.0", "up_blocks_1/attentions_0/transformer_blocks_0/attn1/attend", PATH),
        ("down_blocks.[12],mid", "down_blocks_2/attentions_0/transformer_blocks_0/attn1", "up_blocks_1/attentions_0/t"),
    ):
        assert chosen(one, yes)
        assert not chosen(one, no)


def test_a_unets_self_attentions_have_the_names_of_its_parameters():
    from sdjax.nn import UNet

    config = UNetConfig(channels=(32, 64), heads=(2, 0), mid_heads=2, transformer_depth=(2, 1), num_res_blocks=1,
                        self_attention=(True, True), context_dim=16)  # fmt: skip
    x, text = jnp.zeros((1, 8, 8, config.in_channels)), jnp.zeros((1, 4, 16))
    shapes = jax.eval_shape(UNet(config).init, jax.random.key(0), x, jnp.zeros(1), text)["params"]
    paths = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(shapes)}
    names = {path.partition("/attn1/")[0] + "/attn1" for path in paths if "/attn1/" in path}
    assert set(self_attentions(config)) == names
