"""The start of image to image: the number of steps for a strength, the start, and CompVis's way to count."""

import gaussian
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.samplers import DDIM, SAMPLERS, make_start
from sdjax.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule()
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


@pytest.mark.parametrize("num_steps", [1, 7, 30, 50, 100, 1000])
def test_every_number_of_steps_has_its_strength(num_steps):
    """k / n leaves exactly k of n steps, though 0.29 * 100 is 28.999... in floating point: off by none."""
    for left in range(num_steps + 1) if num_steps <= 100 else (0, 1, 7, 290, 999, 1000):
        start = make_start(DDIM(), SCHEDULE, num_steps, left / num_steps)
        assert (0 if start.rows is None else len(start.rows.timestep)) == left


@every_sampler
@pytest.mark.parametrize("strength", [0.1, 0.5, 0.75, 0.99])
def test_a_part_of_the_steps_starts_at_its_own_noise(name, strength):
    sampler = SAMPLERS[name]()
    start = make_start(sampler, SCHEDULE, 20, strength)
    skip = 20 - int(strength * 20 + 1e-9)
    assert start.of_x0 == 1
    assert start.of_noise == start.rows.sigma[0] == np.float32(sampler.grid(SCHEDULE, 20).sigma[skip])


@every_sampler
def test_no_strength_is_the_picture_and_full_strength_is_pure_noise(name):
    sampler = SAMPLERS[name]()
    assert make_start(sampler, SCHEDULE, 10, 0.0)[:3] == (None, 1, 0)
    start, rows = make_start(sampler, SCHEDULE, 10), sampler.steps(SCHEDULE, 10)
    assert start.of_x0 == 0
    assert start.of_noise == sampler.initial(jnp.ones(1), rows)[0]
    np.testing.assert_array_equal(start.rows.sigma, rows.sigma)


def compvis_img2img(num_steps, strength, x0, noise):
    """Returns what scripts/img2img.py's stochastic_encode and decode compute, in variance-preserving numpy."""
    a = SCHEDULE.alphas_cumprod
    timesteps = np.arange(0, 1000, 1000 // num_steps) + 1
    t_enc = int(strength * num_steps)
    alphas, before = a[timesteps], np.append(a[0], a[timesteps[:-1]])
    x = np.sqrt(alphas[t_enc]) * x0 + np.sqrt(1 - alphas[t_enc]) * noise
    for i in reversed(range(t_enc)):
        sigma = np.sqrt((1 - alphas[i]) / alphas[i])
        row = type("Row", (), {"sigma": sigma})
        pred = np.asarray(gaussian.Gaussian().denoise(x / np.sqrt(alphas[i]), row))
        epsilon = (x - np.sqrt(alphas[i]) * pred) / np.sqrt(1 - alphas[i])
        x = np.sqrt(before[i]) * pred + np.sqrt(1 - before[i]) * epsilon
    return x


@pytest.mark.parametrize(
    ("num_steps", "strength"), [(50, 0.75), (10, 0.34), (30, 0.8), (30, 1.0), (100, 0.29), (50, 0.02)]
)
def test_compat_is_the_references_counting(num_steps, strength):
    """One step off, in steps asked for where more are made, as 31 for 30, cut as int(0.29 * 100) = 28 is."""
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal((2, 3, 4, 4, 1))
    want = compvis_img2img(num_steps, strength, x0, noise)
    sampler = DDIM(spacing="compvis")
    start = make_start(sampler, SCHEDULE, num_steps, strength, counting="compvis")
    got = gaussian.run(sampler, start.rows, jnp.asarray(start.of_x0 * x0 + start.of_noise * noise), gaussian_keys(3))
    np.testing.assert_allclose(got, want, atol=2e-5)  # float32 against float64
    ours = make_start(sampler, SCHEDULE, num_steps, strength)
    assert ours.of_noise != start.of_noise


def gaussian_keys(count):
    import jax

    return jax.random.split(jax.random.key(0), count)


def test_compat_at_full_strength_is_pure_noise_where_the_reference_fails():
    start = make_start(DDIM(spacing="compvis"), SCHEDULE, 50, 1.0, counting="compvis")  # IndexError there
    assert (start.of_x0, len(start.rows.timestep)) == (0, 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 1.01}, r"strength is a number from 0 to 1 \(.*\); got 1.01"),
        ({"strength": -0.1}, "strength is a number from 0"),
        ({"strength": float("nan")}, "strength is a number from 0"),
        ({"counting": "photoshop"}, "unknown strength_counting 'photoshop'; the known ones are share, compvis"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_start(DDIM(), SCHEDULE, 10, **{"strength": 0.5, **arguments})


def test_a_strength_with_too_many_steps_in_all_is_refused_with_their_number():
    with pytest.raises(
        ValueError, match="strength 0.001 of 10 steps is the end of 10000 steps, with strength_counting"
    ):
        make_start(DDIM(), NoiseSchedule(), 10, 0.001, counting="comfyui")
