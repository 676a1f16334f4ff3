"""Large pictures in windows, seamless pictures and patches in requests, and a second pass with its own settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.adapters import TokenMerging
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.network import FunctionNetwork
from sdjax.diffusion.windows import WindowedNetwork, Windows, starts, weights
from sdjax.tasks.computing import Computing
from sdjax.tasks.make_batch import batch_of
from sdjax.tasks.request import Request
from sdjax.tasks.two_pass import A1111_UPSCALES, check_upscale, enlarge_pixels

import models
from checks import near

FEW = {"num_steps": 2, "devices": jax.devices()[:1]}
POINTWISE = FunctionNetwork(lambda x, t, told: jnp.cos(x) * t[:, None, None, None] + told.concat)
WINDOW_SUM = FunctionNetwork(lambda x, t, told: jnp.broadcast_to(x.sum((1, 2), keepdims=True), x.shape))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("blend", ["mean", "gaussian"])
@pytest.mark.parametrize("wrap", ["", "x", "xy"])
def test_a_network_of_single_places_predicts_the_same_in_windows(blend, wrap):
    x, concat, t = normal(0, 2, 5, 13, 3), normal(1, 2, 5, 13, 3), np.float32([2, 3])
    network = WindowedNetwork(POINTWISE, Windows(4, 1, blend), wrap)
    found, memory = network({}, x, t, Conditioning(concat=concat), network.init({}, x))
    np.testing.assert_allclose(found, np.cos(x) * t[:, None, None, None] + concat, atol=1e-5)
    assert memory == ()


def test_a_place_gets_the_weighted_average_of_its_windows():
    """Two windows of 4 in a row of 6 overlap in two places, where both sums count as much as the weights say."""
    x = normal(0, 1, 4, 6, 1)
    left, right = x[0, :, :4].sum(), x[0, :, 2:].sum()
    for blend in ("mean", "gaussian"):
        found = WindowedNetwork(WINDOW_SUM, Windows(4, 2, blend))({}, x, np.ones(1), Conditioning(), ())[0]
        weight = weights(4, 4, blend)[0]
        for place in range(6):
            of_left, of_right = (weight[i] if 0 <= i < 4 else 0 for i in (place, place - 2))
            want = (of_left * left + of_right * right) / (of_left + of_right)
            np.testing.assert_allclose(found[0, 0, place, 0], want, rtol=1e-5)


def test_windows_cover_an_axis_and_share_at_least_the_overlap():
    for length, side, overlap in [(64, 8, 4), (9, 8, 7), (100, 16, 0), (17, 8, 3)]:
        first = starts(length, side, overlap, False)
        assert (first[0], first[-1] + side) == (0, length)
        assert (np.diff(first) <= side - overlap).all()
        around = np.append(starts(length, side, overlap, True), length)
        assert (np.diff(around) <= side - overlap).all()
    assert starts(8, 8, 0, True).tolist() == [0]


def test_a_window_as_large_as_the_picture_changes_nothing():
    pipe, options = models.pipeline(), {"seed": 3, **FEW}
    plain = sdjax.text_to_image(pipe, "a cat", height=64, width=64, **options)
    assert near(sdjax.text_to_image(pipe, "a cat", height=64, width=64, window=64, **options), plain)


def test_panoramas_may_be_wider_than_other_pictures_and_their_settings_are_checked():
    request = Request("a", width=4096, height=64, window=64, window_overlap=32)
    assert batch_of(models.pipeline(), [request], Computing()).size == (64, 4096)
    for fields, message in [
        ({"width": 4096}, "width is a multiple of 8 from 64 to 2048; got 4096"),
        ({"width": 8200, "window": 64}, "from 64 to 8192; got 8200"),
        ({"window": 68}, "window is a multiple of 8 pixels; got 68"),
        ({"window": 32}, "window is a whole number from 64 up"),
        ({"window": 64, "window_overlap": 64}, "window_overlap is a whole number from 0 to 63"),
        ({"window_overlap": 8}, "window_overlap has no effect without window"),
        ({"window": 64, "window_blend": "sharp"}, "unknown window_blend 'sharp'; the known ones are mean, gaussian"),
        ({"seamless": "z"}, "seamless is one of x, y, xy; got 'z'"),
        ({"patches": "tome"}, "unknown patch 'tome'"),
    ]:
        with pytest.raises(ValueError, match=message):
            batch_of(models.pipeline(), [Request("a", **fields)], Computing())


def test_pictures_of_different_structure_are_different_groups_and_numbers_are_not():
    fields = [
        {}, {"seamless": "x"}, {"patches": ["deep_shrink:block=1"]}, {"patches": ["deep_shrink:block=1,stop=0.6"]},
        {"patches": ["deep_shrink:block=1,factor=3"]}, {"window": 64}, {"window": 64, "window_blend": "gaussian"}, {},
    ]  # fmt: skip
    groups = batch_of(models.pipeline(), [Request("a", **one) for one in fields], Computing()).groups()
    assert groups == [[0, 7], [1], [2, 3], [4], [5], [6]]


@pytest.mark.slow
def test_a_seamless_picture_continues_over_its_edges():
    """Rolled noise makes the rolled picture. Only the side of a map of one level is odd, so any roll works."""
    pipe, noise = models.pipeline(), normal(0, 8, 8, 4)
    options = {"height": 64, "width": 64, "seamless": "x", **FEW}
    plain = sdjax.text_to_image(pipe, "a cat", latents=noise, **options)
    rolled = sdjax.text_to_image(pipe, "a cat", latents=np.roll(noise, 3, 1), **options)
    assert near(rolled, np.roll(plain, 24, 2))
    assert not near(sdjax.text_to_image(pipe, "a cat", latents=noise, **{**options, "seamless": None}), plain)


@pytest.mark.slow
def test_patches_of_requests_reach_the_network():
    pipe = models.pipeline()
    plain, merged = (
        sdjax.generate(pipe, [Request("a", num_steps=2, patches=patches)], devices=FEW["devices"])
        for patches in ((), [TokenMerging(0.75)])
    )
    assert not np.array_equal(plain, merged)


@pytest.mark.parametrize(
    ("own", "same"),
    [
        ({"hires_prompt": "a dog"}, {"prompt": "a dog"}),
        ({"hires_negative_prompt": ["a dog"]}, {"negative_prompt": "a dog"}),
        ({"hires_sampler": "heun"}, {"sampler": "heun"}),
        ({"hires_steps": 3}, {"num_steps": 3}),
        ({"hires_scale": 3.0}, {"guidance_scale": 3.0}),
        pytest.param(
            {"hires_patches": "token_merging:ratio=0.75"},
            {"patches": ["token_merging:ratio=0.75"]},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_second_pass_has_its_own_settings(own, same):
    """With strength 1 it starts from noise alone, so nothing of the first pass is left."""
    pipe, usual = models.pipeline(), {"prompt": "a cat", "strength": 1, "enlarge": 1, "seed": 2, "upscale": "nearest"}
    found = sdjax.two_pass(pipe, **{**usual, **FEW, **own})
    assert near(found, sdjax.two_pass(pipe, **{**usual, **FEW, **same}))
    assert not near(found, sdjax.two_pass(pipe, **usual, **FEW))


def test_names_of_upscalers_of_the_web_ui_are_known():
    assert [check_upscale(name) for name in ("Latent", "Latent (nearest)", "Lanczos")] == [
        "bilinear", "floor nearest", "lanczos",
    ]  # fmt: skip
    assert set(A1111_UPSCALES.values()) == {check_upscale(name) for name in A1111_UPSCALES}
    with pytest.raises(ValueError, match="upscale is one of lanczos, .*Latent, .*; got 'ESRGAN'"):
        check_upscale("ESRGAN")


def test_enlarging_a_seamless_picture_keeps_it_seamless():
    picture = models.picture(16, 24)
    large = enlarge_pixels(picture, (32, 48), "lanczos", "x")
    rolled = enlarge_pixels(np.roll(picture, 5, 1), (32, 48), "lanczos", "x")
    np.testing.assert_array_equal(rolled, np.roll(large, 10, 1))
