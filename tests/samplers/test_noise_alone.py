"""Schedules that end in noise alone (zero terminal SNR), where sigma is infinite and a number stands for it."""

import gaussian
import jax
import numpy as np
import pytest

from sdjax.config import ScheduleConfig
from sdjax.samplers import SAMPLERS, make_start
from sdjax.samplers.spacing import OF_SIGMA, make_grid
from sdjax.schedule import NoiseSchedule
from sdjax.tasks.resolve import make_sampler

SCHEDULE = NoiseSchedule(ScheduleConfig(prediction="v", zero_terminal_snr=True))
NARROW = gaussian.Gaussian(mean=0.3, deviation=0.05)  # what a prompt leaves of a latent: near one mean
KEYS = jax.random.split(jax.random.key(1), 4)
STEPS = (10, 20, 50)


def ends(name, num_steps, **fields):
    """Returns what a sampler makes of noise alone, for the narrow Gaussian."""
    sampler = make_sampler(name, SCHEDULE, **fields)
    rows = sampler.steps(SCHEDULE, num_steps)
    return gaussian.run(sampler, rows, NARROW.start(rows.sigma[0]), KEYS, NARROW)


@pytest.mark.few(18)
@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - {"lcm", "lcm_x0"}))  # which need a network distilled for it
def test_every_sampler_ends_at_the_data_in_ten_steps(name):
    for num_steps in STEPS:
        # The data lies within 1.5 deviations here; few steps make of it what a first-order method would
        assert np.abs(ends(name, num_steps) - NARROW.mean).max() < 0.15, num_steps


@pytest.mark.parametrize("spacing", OF_SIGMA)
@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "euler"])
def test_a_spacing_even_in_sigma_works_too_where_it_is_chosen(name, spacing):
    for num_steps in STEPS:
        assert np.abs(ends(name, num_steps, spacing=spacing) - NARROW.mean).max() < 0.15, num_steps


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_step_from_noise_alone_is_of_first_order(name):
    if "adaptive" in name or name in (
        "lcm",
        "lcm_x0",
        "dpm_solver_singlestep",
    ):  # whose steps are no first steps of a grid
        pytest.skip("it has another form")
    rows = make_sampler(name, SCHEDULE).steps(SCHEDULE, 10)
    assert rows.timestep[0] == 999
    assert rows.starts_step[1]
    # x' = keep x + (1 - keep) x0 + noise: x0 counts in full, whatever number stands for infinity
    coef = rows.coef
    of_x0 = coef.calls[0, 0] * coef.remember[0, 1:].sum() + coef.own[0, 1:].sum()
    np.testing.assert_allclose(of_x0, 1, atol=0.01)
    assert not coef.calls[0, 1:].any()


@pytest.mark.parametrize("spacing", OF_SIGMA)
def test_a_range_even_in_sigma_begins_behind_the_first_step(spacing):
    for num_steps in (1, 2, 10, 50):
        for end in ("zero", "sigma_min"):
            grid = make_grid(spacing, SCHEDULE, num_steps, end=end)
            assert len(grid.sigma) == num_steps + 1
            assert (grid.timestep[0], grid.sigma[0]) == pytest.approx((999, 4096))
            assert (np.diff(grid.sigma) < 0).all()
            if num_steps > 1:
                assert grid.timestep[1] == pytest.approx(999 - 1000 / num_steps)
    # 1 / sigma of the step's end is that share of the schedule, to first order: 1.8 for a tenth of it
    assert make_grid(spacing, SCHEDULE, 10, end="zero").sigma[1] < 20


def test_other_schedules_and_later_starts_keep_their_rows():
    """Heun's second calls and PLMS's extra one are there: the references' rows, which the golden arrays hold."""
    for schedule in (NoiseSchedule(), NoiseSchedule(ScheduleConfig(prediction="v"))):
        for name, count in {"heun": 19, "dpm2": 19, "dpm2_ancestral": 19, "plms": 11, "pndm": 11}.items():
            assert len(make_sampler(name, schedule).steps(schedule, 10).timestep) == count
    start = make_start(make_sampler("heun", SCHEDULE), SCHEDULE, 10, 0.5)
    assert len(start.rows.timestep) == 9  # two calls a step, one for the last
