"""Pictures whose seed gives another tool's noise, and variations of starting noise."""

import dataclasses

import jax
import numpy as np
import pytest

import sdjax
from sdjax import noise
from sdjax.samplers import SAMPLERS
from sdjax.schedule import NoiseSchedule
from sdjax.tasks.computing import Computing
from sdjax.tasks.expand import expand
from sdjax.tasks.make_batch import batch_of
from sdjax.tasks.noise import step_noise
from sdjax.tasks.request import Request

import models
from checks import count_compilations, near

SHAPE = (4, 8, 8)
DEVICE = {"devices": jax.devices()[:1]}
MIXED = [
    {"seed": 1},
    {"seed": 1, "noise_source": "torch_cpu"},
    {"seed": 2, "noise_source": "comfyui", "variation_seed": 5, "variation_strength": 0.3},
    {"seed": 1, "variation_seed": 2, "variation_strength": 0.5, "ensd": 31337},
]


def request(**options):
    return Request("a cat", **{"sampler": "euler_ancestral", "num_steps": 3, "guidance_scale": 4.0, **options})


def starting(*requests):
    """Returns the pictures' starting noise, [b, c, h, w]."""
    made = batch_of(models.pipeline(), requests, Computing(**DEVICE)).noise()
    return np.moveaxis(np.asarray(made), -1, 1)


def test_the_starting_noise_is_bit_for_bit_that_of_the_source():
    got = starting(*[request(seed=7, noise_source=name) for name in noise.SOURCES])
    for one, source in zip(got, noise.SOURCES.values()):
        np.testing.assert_array_equal(one, source.start(7).randn(SHAPE))


def test_a_mixed_batch_is_what_each_picture_is_alone():
    requests = [request(**options) for options in MIXED]
    together = sdjax.generate(models.pipeline(), requests, **DEVICE)
    for one, picture in zip(requests, together):
        assert near(sdjax.generate(models.pipeline(), [one] * 4, **DEVICE)[0], picture)
    assert len({picture.tobytes() for picture in together}) == 4


def test_another_source_or_variation_compiles_nothing():
    sdjax.generate(models.pipeline(), [request(**options) for options in MIXED], **DEVICE)
    others = [{"noise_source": "torch_cuda"}, {"noise_source": "diffusers", "ensd": 3}, {"seed": 9},
              {"variation_seed": 8, "variation_strength": 1.0, "seed": 4}]  # fmt: skip
    assert count_compilations(
        lambda: sdjax.generate(models.pipeline(), [request(**options) for options in others], **DEVICE)
    ) == 0  # fmt: skip


def test_variations_of_jaxs_noise_go_from_one_seed_to_the_other():
    plain, other, none, all_of_it, half = starting(
        request(seed=1), request(seed=2), request(seed=1, variation_seed=2),
        request(seed=1, variation_seed=2, variation_strength=1.0),
        request(seed=1, variation_seed=2, variation_strength=0.5),
    )  # fmt: skip
    np.testing.assert_array_equal(none, plain)
    np.testing.assert_allclose(all_of_it, other, atol=1e-6)
    np.testing.assert_array_equal(half, noise.mix(plain, other, 0.5))


@pytest.mark.parametrize("source", ["jax", "torch_cpu"])
def test_the_middle_of_resized_noise_is_that_of_the_other_size(source):
    options = {"seed": 3, "noise_source": source}
    small = starting(request(**options, height=64, width=64))[0]
    large = starting(request(**options, height=96, width=80, seed_resize=(64, 64)))[0]
    np.testing.assert_array_equal(large[:, 2:10, 1:9], small)
    plain = starting(request(**options, height=96, width=80))[0]
    np.testing.assert_array_equal(large[:, :2], plain[:, :2])


def test_steps_draw_what_follows_the_starting_noise():
    sampler = SAMPLERS["euler_ancestral"]()
    rows, grid = sampler.steps(NoiseSchedule(), 4), lambda: sampler.grid(NoiseSchedule(), 4)
    generator = noise.TorchCPU(6)
    generator.randn(SHAPE)
    wanted = [generator.randn(SHAPE) for _ in range(3)]  # none into sigma 0
    stream = noise.PictureNoise(noise.SOURCES["torch_cpu"], 6, SHAPE)
    stream.start()
    made = step_noise([rows, rows], [None, stream], [grid] * 2)
    np.testing.assert_array_equal(np.moveaxis(made.noise[1, :3], -1, 1), wanted)
    assert not made.noise[0].any()
    assert list(made.made) == [False, True]
    assert step_noise([SAMPLERS["ddim"]().steps(NoiseSchedule(), 4)] * 2, [None, stream], [grid] * 2) is None


def test_sde_samplers_take_their_noise_from_the_brownian_path():
    sampler = dataclasses.replace(SAMPLERS["dpmpp_2m_sde"](), brownian=True)
    rows = sampler.steps(NoiseSchedule(), 4)
    stream = noise.PictureNoise(noise.SOURCES["torch_cpu"], 6, SHAPE)
    made = step_noise([rows], [stream], [lambda: sampler.grid(NoiseSchedule(), 4)])
    sigma = [float(one) for one in rows.sigma]
    tree = noise.BrownianTree(6, SHAPE, min(sigma), max(sigma), lambda seed, shape: noise.TorchCPU(seed).randn(shape))
    wanted = tree(list(zip(sigma, sigma[1:])))
    np.testing.assert_allclose(np.moveaxis(made.noise[0, :3], -1, 1), wanted, atol=1e-5)


def test_the_brownian_path_spans_the_schedule_of_the_picture():
    options = {"sampler": "dpmpp_sde", "schedule": "leading", "num_steps": 4, "noise_source": "torch_cpu"}
    plain, rescaled = (
        batch_of(models.pipeline(), [Request(seed=6, zero_terminal_snr=tool, **options)], Computing(**DEVICE))
        for tool in (None, "a1111")
    )
    for batch in (plain, rescaled):
        (one,), rows = batch.requests, batch.starts[0].rows
        levels = one.sampler.grid(one.noise_schedule, 4).sigma
        x = np.zeros((1, *SHAPE[1:], SHAPE[0]), np.float32)
        tree = noise.BrownianTree(
            6, SHAPE, levels[levels > 0].min(), levels.max(), lambda seed, shape: noise.TorchCPU(seed).randn(shape)
        )
        made = batch.step_noise([rows], x)[1].noise[0][np.asarray(rows.brownian)]
        np.testing.assert_array_equal(np.moveaxis(made, -1, 1), tree(np.asarray(rows.interval)[rows.brownian].tolist()))


def test_pictures_of_one_variation_strength_are_variations_of_one_picture():
    requests = expand("a cat", num_images=3, seed=5, variation_seed=10, variation_strength=0.2)
    assert [(one.seed, one.variation_seed) for one in requests] == [(5, 10), (5, 11), (5, 12)]
    requests = expand("a cat", num_images=2, seed=[5, 6], variation_strength=[0.2, 0.0], seed_resize=(64, 96))
    assert [(one.seed, one.variation_seed, one.seed_resize) for one in requests] == [(5, None, (64, 96)),
                                                                                  (6, None, (64, 96))]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_source": "cuda"}, "noise_source is one of jax, torch_cpu, .*; got 'cuda'"),
        ({"variation_strength": 1.5}, "variation_strength is a number from 0 to 1; got 1.5"),
        ({"variation_seed": -1}, "a seed lies between 0 and"),
        ({"seed_resize": 512}, r"seed_resize is two whole numbers, \(height, width\) in pixels; got 512"),
        ({"seed_resize": (8, 9000)}, r"seed_resize is a \(height, width\) from 64 to 2048 pixels"),
        ({"ensd": 0.5}, "ensd is a whole number"),
        ({"noise_batch": (3, 3)}, r"noise_batch \(k, n\) is number k, counted from 0, of at most 256"),
        ({"compat": "photoshop"}, "compat is one of compvis, diffusers, a1111, comfyui, k-diffusion; got 'photoshop'"),
        ({"rounding": "up"}, "rounding is one of truncate, nearest; got 'up'"),
    ],
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        request(**options)


def test_a_place_in_a_batch_needs_a_tool_that_draws_batches():
    with pytest.raises(ValueError, match="noise_batch has no effect on jax's noise"):
        sdjax.generate(models.pipeline(), [request(noise_batch=(0, 2))])
