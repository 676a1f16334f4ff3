"""Deep shrink, HiDiffusion and token merging: what each changes, where, and for which images of a batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.adapters import DeepShrink, RAUNet, TokenMerging, WindowAttention, make_settings, patched
from sdjax.adapters.deep_shrink import next_layer
from sdjax.adapters.hidiffusion import in_windows, shift_of
from sdjax.adapters.patch import path_of
from sdjax.adapters.spans import Run, make_span
from sdjax.adapters.table import describe
from sdjax.adapters.token_merging import match, merge, targets, unmerge
from sdjax.config import UNetConfig
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.network import UNetNetwork
from sdjax.nn import UNet
from sdjax.nn.layers.attention import attend
from sdjax.tasks.request import Request
from sdjax.tasks.resolve import resolve

import models

UNET = UNetConfig(channels=(32, 32), heads=(2, 2), mid_heads=2, transformer_depth=(1, 1), context_dim=16,
                  self_attention=(True, True), num_res_blocks=1)  # fmt: skip
FULL = UNetConfig(channels=(32, 32, 32, 32), heads=(2, 2, 2, 0), mid_heads=2, transformer_depth=(1, 1, 1, 1),
                  self_attention=(True,) * 4)  # fmt: skip


SEEDS = jnp.uint32([0, 1])


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def params() -> dict:
    inputs = normal(0, 1, 8, 8, 4), np.float32([1]), normal(1, 1, 3, 16)
    return models.fill_tree(jax.eval_shape(UNet(UNET).init, jax.random.key(0), *inputs)["params"])


@functools.partial(jax.jit, static_argnums=0)
def run(patches, x, t, numbers):
    network = UNetNetwork(UNET, "float32", patches)
    tree = {"unet": params(), "patches": (None,) * len(patches)} if patches else params()
    context = jnp.asarray(np.repeat(normal(1, 1, 3, 16), len(x), 0))
    return network(tree, x, t, Conditioning(context, patches=numbers), ())[0]


def predict(settings, x, t):
    """Returns the prediction with these settings, the same for all images."""
    numbers = tuple(jax.tree.map(lambda a: np.repeat(a, len(x)), one.numbers(Run())) for one in settings)
    return np.asarray(run(tuple(one.patch for one in settings), x, np.float32(t), numbers))


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", [DeepShrink(block=1, stop=0.5), pytest.param(RAUNet(stop=0.5), marks=pytest.mark.slow)]
)
def test_a_patch_changes_only_the_images_whose_timestep_is_in_its_range(setting):
    x = normal(2, 2, 8, 8, 4)
    mixed, plain = predict([setting], x, [900, 100]), predict([], x, [900, 100])
    # Another program sums in another order
    np.testing.assert_allclose(mixed[1], plain[1], atol=1e-5 * np.abs(plain).max())
    assert np.abs(mixed[0] - plain[0]).max() > 0.01 * np.abs(plain).max()
    np.testing.assert_allclose(predict([setting], x[:1], [900])[0], mixed[0], atol=1e-4)


def test_a_span_of_shares_is_one_of_timesteps():
    span = make_span(0.25, 0.5)
    t = np.float32([800, 999 * 0.75, 600, 999 * 0.5, 400])
    np.testing.assert_array_equal(span.holds(t), [False, True, True, True, False])
    np.testing.assert_array_equal(make_span(0, 1).holds(t), [True] * 5)


@pytest.mark.slow
def test_deep_shrink_shrinks_the_maps_behind_its_block_and_no_others():
    sizes = {}

    class Watch:
        def intercept(self, shared=None, own=None):
            def intercept(method, args, kwargs, context):
                if args and getattr(args[0], "ndim", 0) == 4:
                    sizes[path_of(context)] = args[0].shape[1]
                return method(*args, **kwargs)

            return intercept

    # Watch is nearest to the network, so it sees the maps that the layers get
    settings = DeepShrink(factor=2, block=2)
    span = jax.tree.map(lambda a: a[None], settings.numbers(Run()))
    with patched((Watch(), settings.patch), own=(None, span)):
        UNet(UNET).apply({"params": params()}, jnp.zeros((1, 8, 8, 4)), jnp.ones(1), jnp.zeros((1, 3, 16)))
    assert sizes["down_blocks_0/downsamplers_0"] == 8
    assert sizes["down_blocks_1/resnets_0"] == 2  # 4, halved
    assert sizes["mid_block"] == 2
    assert sizes["up_blocks_0/resnets_1"] == 4  # joined with the skip of block 2
    assert sizes["up_blocks_1/resnets_0"] == 8


def test_input_blocks_are_counted_as_in_other_tools():
    # openaimodel.py's input_blocks of Stable Diffusion: 12, of which 3, 6 and 9 halve the map
    behind = [next_layer(FULL, block) for block in range(12)]
    assert behind[0] == "down_blocks_0/resnets_0"
    assert behind[2:4] == ["down_blocks_0/downsamplers_0", "down_blocks_1/resnets_0"]
    assert behind[11] == "mid_block"
    with pytest.raises(ValueError, match="block is from 0 to 11 for this network; got 12"):
        next_layer(FULL, 12)


def test_downsampling_of_every_second_pixel_is_the_dilated_convolution_of_the_paper():
    x, kernel = normal(0, 1, 16, 12, 3), normal(1, 3, 3, 3, 5)
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    want = jax.lax.conv_general_dilated(x, kernel, (4, 4), ((2, 2), (2, 2)), rhs_dilation=(2, 2), **layout)
    found = jax.lax.conv_general_dilated(x[:, ::2, ::2], kernel, (2, 2), ((1, 1), (1, 1)), **layout)
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_attention_in_windows_is_that_of_each_window():
    qkv = [normal(i, 2, 64, 2, 4) for i in range(3)]
    found = in_windows(attend, tuple(map(jnp.asarray, qkv)), (8, 8), jnp.int32([0, 2]))
    for image, shift in enumerate((0, 2)):  # quarters of a window of four
        maps = [np.roll(a[image].reshape(8, 8, 2, 4), (-shift, -shift), (0, 1)) for a in qkv]
        want = np.zeros((8, 8, 2, 4), np.float32)
        for window in np.ndindex(2, 2):
            at = tuple(slice(4 * i, 4 * i + 4) for i in window)
            want[at] = attend(*(jnp.asarray(a[at].reshape(1, 16, 2, 4)) for a in maps))[0].reshape(4, 4, 2, 4)
        np.testing.assert_allclose(found[image].reshape(8, 8, 2, 4), np.roll(want, (shift, shift), (0, 1)), atol=1e-5)


def test_windows_of_odd_maps_and_shifts():
    v = jnp.asarray(normal(0, 1, 35, 1, 2))
    whole = in_windows(lambda q, k, v: v, (v, v, v), (5, 7), jnp.int32([3]))
    np.testing.assert_array_equal(whole, v)
    shifts = shift_of(jnp.arange(1000.0))
    assert set(np.asarray(shifts).tolist()) == {0, 1, 2, 3}


def test_merging_places_that_are_equal_changes_no_attention():
    """Each 2 x 2 is one vector: with ratio 0.75 every place is joined to its own target, and attention is the same."""
    cells = normal(0, 2, 4, 4, 8)
    x = jnp.asarray(cells.repeat(2, 1).repeat(2, 2).reshape(2, 64, 8))
    joins = match(x, targets((8, 8), 2, 2, jnp.float32([900, 31]), SEEDS), 16, 48)
    small = merge(x, joins)
    assert small.shape == (2, 16, 8)

    def attention(x):
        return attend(*(x[:, :, None],) * 3)[:, :, 0]

    np.testing.assert_allclose(unmerge(attention(small), joins), attention(x), atol=1e-5)


def test_merged_places_are_averaged_and_the_others_kept():
    x = jnp.asarray(normal(0, 1, 16, 3))
    joins = match(x, targets((4, 4), 2, 1, jnp.float32([5]), SEEDS[:1]), 4, 5)
    back = np.asarray(unmerge(merge(x, joins), joins))[0]
    kept, to = np.asarray(joins.kept[0]), np.asarray(joins.to[0])
    np.testing.assert_allclose(back[kept], x[0][kept], atol=1e-6)
    for number, place in enumerate(np.asarray(joins.targets[0])):
        group = [place, *np.asarray(joins.joined[0])[to == number]]
        np.testing.assert_allclose(back[group], np.tile(np.asarray(x[0])[group].mean(0), (len(group), 1)), atol=1e-6)


def test_targets_are_one_in_each_square_and_change_with_timestep_and_seed():
    found = np.asarray(targets((5, 6), 2, 4, jnp.float32([1, 2, 2, 2]), jnp.uint32([0, 0, 0, 1]))).reshape(4, 5, 6)
    np.testing.assert_array_equal(found[:, :4].reshape(4, 2, 2, 3, 2).sum((2, 4)), np.ones((4, 2, 3)))
    assert not found[:, 4].any()
    assert (found[0] != found[1]).any()
    np.testing.assert_array_equal(found[1], found[2])
    assert (found[3] != found[2]).any()  # another seed
    fixed = np.asarray(targets((6, 6), 3, 1, jnp.float32([7]), None)).reshape(6, 6)
    np.testing.assert_array_equal(np.argwhere(fixed), [[0, 0], [0, 3], [3, 0], [3, 3]])


@pytest.mark.few(1)
@pytest.mark.parametrize("setting", [WindowAttention(), TokenMerging(0.3), WindowAttention(levels=2)])
def test_patches_of_attention_change_the_prediction_a_little(setting):
    x = normal(2, 1, 8, 8, 4)
    plain = predict([], x, [500])
    difference = np.abs(predict([setting], x, [500]) - plain).max() / np.abs(plain).max()
    assert 1e-5 < difference < 1


def test_settings_come_as_names_texts_mappings_and_objects():
    made = make_settings(["deep_shrink:factor=1.5,stop=0.2", {"name": "token_merging", "ratio": 0.25}, RAUNet()])
    assert made == (DeepShrink(factor=1.5, stop=0.2), TokenMerging(0.25), RAUNet())
    assert make_settings(tuple(map(describe, made))) == made
    assert make_settings(None) == make_settings(()) == ()
    assert make_settings("token_merging:random=false,feed_forward=True") == (
        TokenMerging(random=False, feed_forward=True),
    )


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["shrink"], "unknown patch 'shrink' .did you mean deep_shrink.*; the known ones are deep_shrink, rau_net, "),
        (["token_merging:part=1"], "the patch token_merging has no part; it has cross_attention, feed_forward, "),
        (["token_merging:ratio"], "written NAME:KEY=VALUE,KEY=VALUE; got"),
        (["token_merging:ratio=0.9"], r"ratio is a number from 0 to 0.75 \(with stride 2\); got 0.9"),
        (["deep_shrink:start=0.5,stop=0.5"], "start must be smaller than stop; got start 0.5 and stop 0.5"),
        (["deep_shrink:factor=nan"], "factor is a number from 1 to 8; got nan"),
        (["deep_shrink:method=area"], "method is one of bilinear, bicubic; got 'area'"),
        (["rau_net", "rau_net:level=1"], "a picture takes each patch once; got 2 of RAUNet"),
        ([3], "a patch is a name of deep_shrink, .*, or its settings; got 3"),
        ([{"ratio": 0.5}], "unknown patch None"),
    ],
)
def test_wrong_settings_are_one_sentence(chosen, message):
    with pytest.raises(ValueError, match=message):
        make_settings(chosen)


def test_a_network_without_such_levels_is_refused_before_it_is_built():
    for text, message in (
        ("window_attention:levels=9", "levels is from 1 to 2 for this network; got 9"),
        ("token_merging:levels=3", "levels is from 1 to 2 for this network; got 3"),
        ("rau_net:level=1", "level is a whole number from 0 to 0 for this network; got 1"),
        ("deep_shrink:block=4", "block is from 0 to 3 for this network; got 4"),
    ):
        with pytest.raises(ValueError, match=message):
            make_settings(text)[0].check(UNET)
    with pytest.raises(ValueError, match="levels is from 1 to 1 for this network; got 2"):
        resolve(models.pipeline(), [Request(patches="window_attention:levels=2")])
    with pytest.raises(ValueError, match="rau_net needs a network with a downsampling"):
        RAUNet().check(models.TINY.unet)
