"""DeepCache, T-GATE, HyperTile and token downsampling: what each computes, what it leaves out, and for which images."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.adapters import DeepCache, HyperTile, TGate, TokenDownsampling, TokenMerging
from sdjax.adapters.deep_cache import LONGEST, depth, plan
from sdjax.adapters.hypertile import in_tiles, tiles
from sdjax.adapters.memory import Moment
from sdjax.adapters.spans import Run
from sdjax.adapters.t_gate import cross_attentions
from sdjax.adapters.token_downsampling import downsampled, nearest
from sdjax.config import UNetConfig
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.network import UNetNetwork
from sdjax.diffusion.windows import WindowedNetwork, Windows
from sdjax.nn import UNet
from sdjax.nn.layers.attention import attend

import models

ONE = UNetConfig(channels=(32,), heads=(0,), mid_heads=2, transformer_depth=(1,), context_dim=16,
                 self_attention=(True,), num_res_blocks=1)  # fmt: skip
TWO = dataclasses.replace(
    ONE, channels=(32, 32), heads=(0, 2), transformer_depth=(1, 1), self_attention=(True, True)
)  # fmt: skip
SD = UNetConfig(channels=(320, 640, 1280, 1280), heads=(8, 8, 8, 0), mid_heads=8, transformer_depth=(1, 1, 1, 1))
BRANCHES = ("unconditional", "conditional")
STEPS = 6


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def params(unet: UNetConfig = ONE) -> dict:
    inputs = normal(0, 1, 8, 8, 4), np.float32([1]), normal(1, 1, 3, 16)
    return models.fill_tree(jax.eval_shape(UNet(unet).init, jax.random.key(0), *inputs)["params"])


@functools.partial(jax.jit, static_argnames=("patches", "branches", "windows", "unet"))
def call(patches, tree, x, context, memory, index, own, branches=("conditional",), windows=None, unet=ONE):
    network = UNetNetwork(unet, "float32", patches)
    network = network if windows is None else WindowedNetwork(network, windows, patches=patches)
    moment = Moment(index, index, jnp.full_like(index, STEPS), branches)
    told = Conditioning(context, patches=own, moment=moment)
    return network({"unet": tree, "patches": (None,) * len(patches)}, x, 900.0 - 100.0 * index, told, memory)


def outputs(settings, *, calls=STEPS, size=8, contexts=None, windows=None, unet=ONE):
    """Returns the predictions of a run [calls, b, ...] with the settings of each image; x is another one in each call.

    `contexts` [calls] are numbers that the context is made of.
    """
    b, out, patch = len(settings), [], settings[0].patch
    memory = begin(patch, (b, size, size, 4), windows, unet)
    own = np.stack([np.asarray(one.numbers(Run(calls=calls))) for one in settings])
    for i in range(calls):
        x = np.repeat(normal(10 + i, 1, size, size, 4), b, 0)
        context = np.repeat(normal(100 if contexts is None else contexts[i], 1, 3, 16), b, 0)
        index = jnp.full(b, i, jnp.int32)
        made, memory = call((patch,), params(unet), x, context, memory, index, (own,), windows=windows, unet=unet)
        out.append(np.asarray(made))
    return np.stack(out)


def begin(patch, shape, windows=None, unet=ONE):
    network = UNetNetwork(unet, "float32", (patch,))
    network = network if windows is None else WindowedNetwork(network, windows, patches=(patch,))
    return network.init({}, jnp.zeros(shape))


def spoiled(*blocks: str) -> dict:
    """Returns the parameters with NaN in some blocks, which every result that uses them shows."""
    return {
        name: jax.tree.map(lambda a: np.full_like(a, np.nan), one) if name in blocks else one
        for name, one in params().items()
    }


def test_an_even_plan_computes_every_nth_call():
    assert plan(10, 3) == [0, 3, 6, 9]
    assert plan(4, 1) == plan(4, 1, 2, 1.5) == [0, 1, 2, 3]


def test_a_plan_with_a_centre_is_the_papers_formula():
    """For 50 calls, interval 5, centre 10 and power 1.2: ten l, evenly spaced, give int(l^1.2 + 10)."""
    low, high = -(10 ** (1 / 1.2)), 40 ** (1 / 1.2)
    spread = [low + (high - low) * k / 10 for k in range(10)]
    want = {10 + int(math.copysign(abs(one) ** 1.2, one)) for one in spread}
    assert plan(50, 5, 10, 1.2) == sorted(want)
    chosen = plan(50, 2, 20, 2.0)  # dense at the centre
    gaps = np.diff(chosen)
    assert gaps[np.searchsorted(chosen, 20)] == 1
    assert gaps[-1] > 2


def test_numbers_of_a_plan_name_the_last_call_that_was_computed():
    found = DeepCache(3).numbers(Run(calls=8))
    assert found[:8].tolist() == [0, 0, 0, 3, 3, 3, 6, 6]
    assert len(found) == LONGEST


def test_branches_are_counted_as_in_the_published_code():
    """Branch 0 computes the first convolution and the last block of the way up; each further one a layer more."""
    assert depth("down_blocks_0/resnets_0", SD) == 1
    assert depth("up_blocks_3/resnets_2", SD) == depth("up_blocks_3/joins_2", SD) == 0
    assert depth("up_blocks_3/joins_0", SD) == 2
    assert depth("down_blocks_0/downsamplers_0", SD) == depth("up_blocks_2/upsamplers_0", SD) == 3
    assert depth("down_blocks_3/resnets_1", SD) == depth("up_blocks_0/joins_0", SD) == 11
    assert depth("mid_block", SD) == 12
    assert depth("conv_in", SD) is depth("up_blocks_3/resnets_2/conv1", SD) is None


def test_pictures_of_different_plans_are_each_as_alone():
    pair = outputs([DeepCache(2), DeepCache(3)])
    for i, one in enumerate((DeepCache(2), DeepCache(3))):
        np.testing.assert_allclose(pair[:, i], outputs([one, one])[:, 0], atol=1e-5)
    every = outputs([DeepCache(1), DeepCache(3)])
    np.testing.assert_allclose(every[[0, 3]], every[[0, 3]][:, ::-1], atol=1e-6)
    assert np.abs(every[1, 0] - every[1, 1]).max() > 0.01 * np.abs(every).max()


def test_a_call_that_computes_no_picture_does_not_touch_the_inner_layers():
    """With NaN in the inner layers, what uses them is NaN."""
    x, context, index = normal(0, 2, 8, 8, 4), normal(1, 2, 3, 16), jnp.full(2, 1, jnp.int32)
    inner = spoiled("down_blocks_0", "mid_block")
    patch, numbers = DeepCache().patch, np.stack([DeepCache().numbers(Run(calls=6))] * 2)
    fresh = begin(patch, x.shape)
    for made, finite in ((0, True), (-1, False)):
        memory = (fresh[0].replace(map=jnp.ones_like(fresh[0].map), made=jnp.int32([0, made])),)
        out, _ = call((patch,), inner, x, context, memory, index, (numbers,))
        assert np.isfinite(out).all() == finite


@pytest.mark.slow
@pytest.mark.parametrize("branch", range(4))
def test_interval_1_is_the_plain_network_and_kept_features_are_those_of_the_branch(branch):
    each = outputs([DeepCache(1, branch), DeepCache(2, branch)], calls=2, unet=TWO)
    x, context = normal(10, 1, 8, 8, 4), normal(100, 1, 3, 16)
    plain = UNet(TWO).apply({"params": params(TWO)}, x, jnp.float32([900]), context)
    np.testing.assert_allclose(each[0, 0], plain[0], atol=1e-5)
    assert np.isfinite(each[1]).all()
    assert np.abs(each[1, 0] - each[1, 1]).max() > 1e-4
    odd = outputs([DeepCache(2, branch)] * 2, calls=2, size=7, unet=TWO)
    assert odd.shape == (2, 2, 7, 7, 4)


def test_a_branch_that_the_network_does_not_have_is_refused():
    DeepCache(branch=3).check(TWO)
    DeepCache(branch=11).check(SD)
    with pytest.raises(ValueError, match="branch is a whole number from 0 to 3 for this network; got 4"):
        DeepCache(branch=4).check(TWO)
    with pytest.raises(ValueError, match="center has no effect with power 1"):
        DeepCache(center=4)


def test_after_the_gate_a_prompt_has_no_effect_and_before_it_every_effect():
    """The gate is after 3 of 6 steps. The contexts of the last three steps are others; the third one's attention stays.

    The second picture's gate is at the end, so that it computes everything.
    """
    same = outputs([TGate(0.5), TGate(1.0)])
    other = outputs([TGate(0.5), TGate(1.0)], contexts=[100, 100, 100, 7, 8, 9])
    np.testing.assert_array_equal(same[:, 0], other[:, 0])
    assert np.abs(same[3:, 1] - other[3:, 1]).max() > 1e-4
    np.testing.assert_allclose(same[:3, 0], same[:3, 1], atol=1e-6)
    gated = outputs([TGate(0.5)] * 2)
    np.testing.assert_allclose(gated[:, 0], same[:, 0], atol=1e-5)
    skipping = spoiled()
    skipping["mid_block"] = jax.tree_util.tree_map_with_path(
        lambda path, a: np.full_like(a, np.nan) if "attn2" in jax.tree_util.keystr(path) else a, skipping["mid_block"]
    )
    x, context = normal(0, 2, 8, 8, 4), normal(1, 2, 3, 16)
    (fresh,) = begin(TGate().patch, x.shape)
    for made in (True, False):
        memory, own = (fresh.replace(made=jnp.array([True, made])),), np.float32([0.5, 0.5])
        out, _ = call((TGate().patch,), skipping, x, context, memory, jnp.full(2, 4, jnp.int32), (own,))
        assert np.isfinite(out).all() == made


@pytest.mark.slow
def test_the_kept_attention_is_the_mean_of_both_branches():
    """One picture in two branches with contexts of their own; the conditional one gets the mean."""
    x = np.repeat(normal(0, 1, 8, 8, 4), 2, 0)
    context = normal(1, 2, 3, 16)
    patch, own = TGate().patch, np.float32([0.5, 0.5])
    memory = begin(patch, x.shape)
    _, memory = call((patch,), params(), x, context, memory, jnp.int32([0, 0]), (own,), BRANCHES)
    (path,) = cross_attentions(ONE)
    _, alone = call((patch,), params(), x, context, begin(patch, x.shape), jnp.int32([0, 0]), (own,))
    each, mean = (np.asarray(one[0].outputs[path]) for one in (alone, memory))
    np.testing.assert_allclose(mean[1], each.mean(0), atol=1e-6)
    np.testing.assert_allclose(mean[0], each[0], atol=1e-6)  # nothing uses it: behind the gate there is no guidance


@pytest.mark.slow
def test_windows_have_memories_of_their_own():
    """Windows that do not overlap: each half is as a picture of its own."""
    pair = [DeepCache(2)] * 2
    whole_run = outputs(pair, calls=2, size=16, windows=Windows(8, 0))
    memory, halves = None, []
    for i in range(2):
        x = np.repeat(normal(10 + i, 1, 16, 16, 4), 2, 0)[:, 8:, 8:]
        context = np.repeat(normal(100, 1, 3, 16), 2, 0)
        memory = begin(DeepCache().patch, x.shape) if memory is None else memory
        own = np.stack([DeepCache(2).numbers(Run(calls=2))] * 2)
        made, memory = call((DeepCache().patch,), params(), x, context, memory, jnp.full(2, i, jnp.int32), (own,))
        halves.append(made)
    np.testing.assert_allclose(whole_run[:, :, 8:, 8:], np.stack(halves), atol=1e-4)


def test_attention_in_tiles_is_that_of_each_tile():
    qkv = [normal(i, 2, 48, 2, 4) for i in range(3)]
    found = in_tiles(attend, tuple(map(jnp.asarray, qkv)), (6, 8), (3, 2))
    for i, j in np.ndindex(3, 2):
        cut = [a.reshape(2, 6, 8, 2, 4)[:, 2 * i : 2 * i + 2, 4 * j : 4 * j + 4].reshape(2, 8, 2, 4) for a in qkv]
        got = np.asarray(found).reshape(2, 6, 8, 2, 4)[:, 2 * i : 2 * i + 2, 4 * j : 4 * j + 4]
        np.testing.assert_allclose(got.reshape(2, 8, 2, 4), attend(*map(jnp.asarray, cut)), atol=1e-5)


def test_tiles_divide_a_side_and_have_at_least_the_asked_size():
    assert [tiles(64, 32, 1, k) for k in range(3)] == [2, 2, 2]
    assert [tiles(64, 32, 2, k) for k in range(4)] == [2, 1, 2, 1]  # of 32 and of 64
    assert [tiles(96, 16, 3, k) for k in range(3)] == [6, 4, 3]  # 16, 24 and 32
    assert tiles(37, 4, 1, 0) == 1  # a prime number
    assert tiles(8, 32, 4, 5) == 1


def test_kept_keys_are_the_nearest_ones():
    assert nearest(8, 2).tolist() == [1, 3, 5, 7]  # as torch's "nearest-exact"
    assert nearest(7, 2).tolist() == [1, 3, 5]
    assert nearest(3, 4).tolist() == [1]
    x = jnp.arange(24.0).reshape(1, 24, 1, 1)
    assert downsampled(x, (4, 6), 2).ravel().tolist() == [7, 9, 11, 19, 21, 23]


@functools.partial(jax.jit, static_argnums=0)
def predict(patches, x):
    own = tuple(jax.tree.map(lambda a: jnp.asarray(a)[None], patch.numbers(Run())) for patch in patches)
    tree = {"unet": params(TWO), "patches": (None,) * len(patches)} if patches else params(TWO)
    told = Conditioning(jnp.asarray(normal(1, 1, 3, 16)), patches=own)
    return UNetNetwork(TWO, "float32", patches)(tree, x, jnp.float32([500]), told, ())[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", [TokenMerging(0.0, levels=2), TokenDownsampling(1, 1), HyperTile(64, levels=2), HyperTile(8192, 1, 2)]
)
def test_settings_that_change_nothing_give_the_plain_prediction(setting):
    x = normal(2, 1, 8, 8, 4)
    np.testing.assert_array_equal(predict((setting,), x), predict((), x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        TokenMerging(0.5, levels=2),
        TokenMerging(0.5, levels=2, cross_attention=True, feed_forward=True, random=False),
        TokenDownsampling(2, 2),
        HyperTile(32, 1, 2),
    ],
)
def test_other_settings_change_the_prediction_a_little(setting):
    x = normal(2, 1, 16, 16, 4)
    plain = predict((), x)
    difference = np.abs(predict((setting,), x) - plain).max() / np.abs(plain).max()
    assert 1e-5 < difference < 1


@pytest.mark.torch
@pytest.mark.parametrize(("stride", "ratio"), [(2, 0.5), (2, 0.25), (3, 0.6)])
def test_merging_is_that_of_tomesd(stride, ratio):
    """Without random targets, tomesd keeps the first place of each square, and merges by the mean."""
    torch = pytest.importorskip("torch")
    merging = pytest.importorskip("tomesd.merge")
    from sdjax.adapters.token_merging import match, merge, targets, unmerge

    x = normal(0, 2, 144, 8)
    count = int(ratio * 144)
    their_merge, their_unmerge = merging.bipartite_soft_matching_random2d(
        torch.from_numpy(x), 12, 12, stride, stride, count, no_rand=True
    )
    theirs = their_merge(torch.from_numpy(x))
    is_target = targets((12, 12), stride, 2, jnp.zeros(2), None)
    joins = match(jnp.asarray(x), is_target, (12 // stride) ** 2, count)
    ours = merge(jnp.asarray(x), joins)
    assert ours.shape == theirs.shape
    # The kept places stand in another order in tomesd; after unmerging there is one order
    np.testing.assert_allclose(unmerge(ours, joins), their_unmerge(theirs).numpy(), atol=1e-6)
