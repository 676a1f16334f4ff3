"""Spacing of steps: published timesteps, counts, ends, refusals."""

import dataclasses

import jax
import numpy as np
import pytest

from sdjax import names
from sdjax.config import ScheduleConfig
from sdjax.samplers import (
    SAMPLERS,
    SPACINGS,
    DPMSolverMultistep,
    DPMSolverSinglestep,
    DPMSolverSinglestepFixed,
    make_schedule,
)
from sdjax.samplers.spacing import TIMESTEPS, make_grid
from sdjax.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule()
COUNTS = (1, 2, 3, 4, 5, 7, 10, 15, 27, 30, 36, 50, 77, 111, 250, 333, 600, 999, 1000)


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("name", SPACINGS)
def test_as_many_steps_as_asked_for_from_noise_to_image(name, end):
    for n in COUNTS:
        if name == "compvis" or (name == "lcm" and n > 50):
            continue
        t, sigma = make_grid(name, SCHEDULE, n, end=end)
        assert len(t) == len(sigma) == n + 1
        assert (np.diff(sigma) < 0).all()
        assert (np.diff(t[:-1]) < 0).all()
        assert t[0] <= 999 + 1e-9
        assert t[-2] >= -1e-9
        moves = end == "sigma_min" and t[-2] > 0  # from the first timestep on, only the way to no noise is left
        assert sigma[-1] == (SCHEDULE.sigmas[0] if moves else 0)
        if name in ("trailing", "lcm", "linspace", "time_uniform", "time_quadratic", "logSNR", "exponential", "karras"):
            assert t[0] == pytest.approx(999)
        np.testing.assert_allclose(SCHEDULE.timestep(sigma[:-1], "log_sigma"), t[:-1], atol=0.2)


@pytest.mark.parametrize("name", [name for name in SPACINGS if name not in ("compvis", "leading")])
def test_the_first_step_starts_in_the_last_part_of_the_schedule(name):
    """Pure noise that is taken for a half-finished picture would come out as one."""
    for n in COUNTS:
        if name != "lcm" or n <= 50:
            assert make_grid(name, SCHEDULE, n, end="zero").timestep[0] >= 999 - 1000 / n


def test_fifty_even_steps_are_the_references():
    want = np.arange(981, 0, -20)  # 981, 961, ..., 1
    for name in ("even", "leading", "compvis"):
        np.testing.assert_array_equal(make_grid(name, SCHEDULE, 50, end="sigma_min").timestep[:-1], want)


@pytest.mark.parametrize(("asked", "made"), [(30, 31), (15, 16), (45, 46), (60, 63), (75, 77), (150, 167), (50, 50)])
def test_the_references_counting(asked, made):
    t = make_grid("compvis", SCHEDULE, asked, end="sigma_min").timestep[:-1]
    assert len(t) == made
    np.testing.assert_array_equal(np.diff(t), -(1000 // asked))
    assert t[-1] == 1


@pytest.mark.parametrize("asked", [1, 3, 9, 27, 36, 37, 101, 111, 251, 333, 501, 1000])
def test_where_the_references_counting_leaves_the_table_it_ends_at_the_last_timestep(asked):
    t = make_grid("compvis", SCHEDULE, asked, end="sigma_min").timestep[:-1]
    assert t[0] == 999 or asked == 1
    assert (np.diff(t) < 0).all()


def test_published_timesteps_of_other_libraries():
    def first(name, n):
        return make_grid(name, SCHEDULE, n, end="zero").timestep

    np.testing.assert_array_equal(first("trailing", 10)[:-1], np.arange(999, 0, -100))  # Lin et al., table 2
    np.testing.assert_array_equal(first("lcm", 4)[:-1], [999, 759, 499, 259])  # diffusers' LCMScheduler
    assert first("leading", 30)[0] == 958  # diffusers
    np.testing.assert_allclose(first("linspace", 4)[:-1], [999, 666, 333, 0])


def test_karras_sigmas_are_his_formula():
    n, rho = 10, 7
    low, high = SCHEDULE.sigmas[[0, -1]]
    want = (high ** (1 / rho) + np.arange(n) / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    np.testing.assert_allclose(make_grid("karras", SCHEDULE, n, end="zero").sigma[:-1], want, rtol=1e-12)


def test_skipping_steps_leaves_the_rest_as_it_is():
    whole, part = (make_grid("even", SCHEDULE, 20, end="sigma_min", skip=skip) for skip in (0, 5))
    for a, b in zip(whole, part):
        np.testing.assert_array_equal(a[5:], b)


def test_zero_terminal_snr_starts_at_its_last_timestep():
    schedule = NoiseSchedule(ScheduleConfig(prediction="v", zero_terminal_snr=True))
    assert make_grid("trailing", schedule, 5, end="zero").sigma[0] == pytest.approx(4096, rel=1e-3)


@pytest.mark.parametrize("name", SPACINGS)
def test_numbers_of_steps_out_of_range_are_refused(name):
    for n in (0, -3, 1001 if name in TIMESTEPS else 10_001, 2.5):
        with pytest.raises(ValueError, match=f"num_steps is a whole number from 1 to .* got {n}"):
            make_grid(name, SCHEDULE, n, end="zero")
    with pytest.raises(ValueError, match="cannot leave out .*: at least one must remain"):
        make_grid(name, SCHEDULE, 4, end="zero", skip=400)


def test_more_steps_than_were_distilled_are_refused():
    with pytest.raises(ValueError, match="at most 50 steps; got 51"):
        make_grid("lcm", SCHEDULE, 51, end="zero")


def steps_made(name, **fields):
    def count(n):
        rows = dataclasses.replace(SAMPLERS[name](), **fields).steps(SCHEDULE, n)
        return int(rows.starts_step.sum()), len(rows.timestep)

    return count


@pytest.mark.few(18)
@pytest.mark.parametrize("name", [name for name in SAMPLERS if "N" in names.SAMPLERS[name].calls])
def test_samplers_make_exactly_the_steps_they_are_asked_for(name):
    spacings = SPACINGS if "singlestep" not in name else ("time_uniform", "logSNR", "time_quadratic")
    for spacing in spacings:
        if spacing == "compvis":
            made, calls = steps_made(name, spacing=spacing)(30)
            assert calls == 31 if name == "dpm_fast" else made == 31
            continue
        for n in (1, 2, 3, 7, 30, 50):
            made, calls = steps_made(name, spacing=spacing)(n)
            told = names.SAMPLERS[name].calls  # in the table of `sdjax samplers`
            if "singlestep" in name or name == "dpm_fast":
                assert calls == n
                continue
            assert made == n
            if told == "2N - 1":
                assert calls == 2 * n - 1 + (SAMPLERS[name]().end == "sigma_min")
            elif told == "N":
                assert calls == n
            elif name in ("plms", "pndm"):
                assert calls == n + 1 or (n == 1 and spacing in ("linspace", "karras"))
            else:
                assert n <= calls <= 3 * n


@pytest.mark.parametrize("sampler", [DPMSolverSinglestep, DPMSolverSinglestepFixed])
@pytest.mark.parametrize("values", [(14.0, 5.0, 0.0), (14.0, 9.0, 5.0, 2.0, 1.0, 0.0)])
def test_singlestep_solvers_may_end_without_noise(sampler, values):
    schedule = make_schedule(list(values))
    rows = sampler(order=2, spacing=schedule).steps(SCHEDULE, len(values) - 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows))
    np.testing.assert_allclose(rows.sigma, values[:-1], rtol=1e-6)


def test_fixed_singlestep_steps_have_all_the_same_order():
    for order in (1, 2, 3):
        rows = DPMSolverSinglestepFixed(order=order).steps(SCHEDULE, 20)
        assert rows.starts_step.sum() == 20 // order
        np.testing.assert_array_equal(np.flatnonzero(rows.starts_step), np.arange(0, 20 // order * order, order))


def test_fewer_steps_than_the_order_lower_the_order():
    for solver in (DPMSolverMultistep, DPMSolverSinglestep, DPMSolverSinglestepFixed):
        for n in (1, 2):
            rows = solver(order=3).steps(SCHEDULE, n)
            assert len(rows.timestep) == n
            assert rows.sigma_next[-1] == pytest.approx(SCHEDULE.sigmas[0], rel=1e-6)
