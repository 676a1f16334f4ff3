"""The Brownian path of an image: what its increments are, and that they depend on the key and the time alone."""

import dataclasses

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.samplers import SAMPLERS, Grid, draws
from sdjax.samplers.noise import brownian_noise
from sdjax.samplers.tools import recipe

KEYS = jax.random.split(jax.random.key(5), 3)
SHAPE = (16, 16, 4)
PATHS = jax.random.split(jax.random.key(6), 4)

increment = jax.jit(brownian_noise, static_argnums=2)


def noise(keys, high, low, shape=SHAPE):
    return np.asarray(increment(keys, jnp.tile(jnp.array([[high, low]], jnp.float32), (len(keys), 1)), shape))


def test_increments_over_parts_sum_up_to_that_over_the_whole():
    ends = [14.6, 9.1, 2.0, 1.999, 0.3, 0.0292]
    length = lambda high, low: np.sqrt(np.log(high / low))  # noqa: E731
    parts = sum(noise(KEYS, a, b) * length(a, b) for a, b in zip(ends, ends[1:]))
    np.testing.assert_allclose(
        parts, noise(KEYS, ends[0], ends[-1]) * length(ends[0], ends[-1]), atol=1e-4
    )  # float32 times


def test_the_sign_is_the_directions_and_an_empty_interval_gives_zeros():
    np.testing.assert_array_equal(noise(KEYS, 0.5, 3.0), -noise(KEYS, 3.0, 0.5))
    assert not noise(KEYS, 2.0, 2.0).any()


def test_increments_are_unit_normal_and_independent_where_intervals_do_not_meet():
    draws = np.stack([noise(KEYS, *ends) for ends in ((14.6, 4.0), (4.0, 3.99), (3.99, 0.03), (4096.0, 14.6))])
    draws = draws.reshape(4 * len(KEYS), -1)  # 1024 numbers each: a deviation is known to 2.2 %, a correlation to 3.1 %
    np.testing.assert_allclose(draws.std(axis=1), 1, atol=0.09)
    np.testing.assert_allclose(draws.mean(axis=1), 0, atol=0.13)
    np.testing.assert_allclose(np.corrcoef(draws) - np.eye(len(draws)), 0, atol=0.14)
    assert abs(np.mean(draws**4) - 3) < 0.4


def test_a_path_is_the_images_alone():
    ends = np.array([[3.0, 2.0], [14.0, 0.1], [0.5, 0.4]], np.float32)
    together = increment(KEYS, ends, SHAPE)
    for i in range(3):
        np.testing.assert_array_equal(together[i], increment(KEYS[i : i + 1], ends[i : i + 1], SHAPE)[0])


@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "er_sde", "seeds_2", "seeds_3"])
def test_more_steps_refine_the_same_picture(name):
    """With independent draws two runs would differ by the data's deviation, 0.8, whatever their steps."""
    sampler, ends = SAMPLERS[name](), []
    for n in (150, 300):
        rows = sampler.steps(gaussian.SCHEDULE, n)
        ends.append(gaussian.run(sampler, rows, gaussian.Gaussian().start(rows.sigma[0]), PATHS))
    assert np.abs(ends[1] - ends[0]).max() < 0.12
    independent = dataclasses.replace(sampler, brownian=False)
    rows = independent.steps(gaussian.SCHEDULE, 300)
    other = gaussian.run(independent, rows, gaussian.Gaussian().start(rows.sigma[0]), PATHS)
    assert np.abs(other - ends[1]).max() > 0.2


def test_every_draw_of_a_run_says_between_which_sigmas_it_lies():
    for name, make in SAMPLERS.items():
        rows = make().steps(gaussian.SCHEDULE, 6)
        if not hasattr(rows.coef, "noise"):
            continue
        uses = (rows.coef.noise != 0) | (rows.coef.churn != 0)
        np.testing.assert_array_equal(uses, draws(rows, idle=False), name)
        assert (rows.brownian <= uses).all()


@pytest.mark.parametrize("name", ["er_sde", "seeds_2", "seeds_3", "dpmpp_sde", "dpmpp_3m_sde"])
def test_comfyui_draws_a_path_for_its_dpm_solvers_only(name):
    assert recipe("comfyui", name).sampler.brownian == name.startswith("dpmpp")
    assert SAMPLERS[name]().brownian


def test_a_table_of_sigmas_takes_the_place_of_a_spacing():
    sigma = np.array([9.0, 4.1443, 1.7324, 0.6395, 0.2])
    timestep = gaussian.SCHEDULE.timestep(sigma, "log_sigma")
    for name in ("euler_ancestral", "dpm2", "dpmpp_3m_sde", "er_sde", "seeds_3", "heunpp2", "res_multistep"):
        rows = SAMPLERS[name]().rows(gaussian.SCHEDULE, Grid(timestep, sigma))
        starts = rows.starts_step
        np.testing.assert_allclose(rows.sigma[starts], sigma[:-1], rtol=1e-6)
        np.testing.assert_allclose(rows.timestep[starts], timestep[:-1], rtol=1e-6)
        assert rows.sigma_next[-1] == np.float32(0.2)
