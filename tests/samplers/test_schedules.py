"""Schedules: other tools' numbers, formulas, ends, options, refusals."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from parity_sched import sigma_schedule

from sdjax import names
from sdjax.config import ScheduleConfig
from sdjax.samplers import SAMPLERS, SCHEDULES, SPACINGS, make_schedule
from sdjax.samplers.known_schedules import describe, from_description
from sdjax.samplers.optimised_schedules import gits_tables
from sdjax.samplers.schedules import Karras, Schedule
from sdjax.samplers.spacing import make_grid
from sdjax.schedule import LAST_ALPHAS, NoiseSchedule

from reference import golden

NOISE = NoiseSchedule()
PURE = NoiseSchedule(ScheduleConfig(prediction="v", zero_terminal_snr=True))
GOLDEN = golden("schedules")
CASES = [json.loads(line) for line in str(GOLDEN["labels"]).split("\n")]
NEW = [name for name in SCHEDULES if name not in SPACINGS]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda i: "-".join(map(str, CASES[i][:3])))
def test_schedules_are_those_of_the_tools(number):
    """The arrays were recorded from k-diffusion, AUTOMATIC1111 and ComfyUI, float32: 2e-5 of each sigma."""
    want = GOLDEN["sigmas"][number]
    want = want[~np.isnan(want)]
    np.testing.assert_allclose(sigma_schedule(*CASES[number]), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("noise", [NOISE, PURE], ids=["usual", "zero terminal SNR"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_sigmas_fall_to_the_end_in_the_models_timesteps(name, noise, end):
    for n in (1, 2, 3, 9, 10):
        if n < SCHEDULES[name]().fewest:
            continue
        t, sigma = SCHEDULES[name]().grid(noise, n, end=end)
        assert (np.diff(sigma) < 0).all(), n
        assert (np.diff(t[:-1]) <= 0).all(), n
        assert 0 <= t.min() <= t.max() <= 999, n
        assert sigma[-1] == (0 if end == "zero" or t[-2] == 0 else pytest.approx(noise.sigmas[0])), n
        assert len(sigma) == n + 1 or name in ("compvis", "ddim_uniform", "beta"), n
        if noise is PURE and name not in (
            "even",
            "leading",
            "compvis",
            "vp",
            "ddim_uniform",
            "align_your_steps_timesteps",
        ):
            assert sigma[0] == pytest.approx(noise.sigmas[-1], rel=1e-3), n
            assert n < 3 or sigma[1] < 200, n  # only the first step is on pure noise


@pytest.mark.parametrize("name", SPACINGS)
def test_a_schedule_without_options_is_the_spacing_of_its_name(name):
    for noise in NOISE, PURE:
        for end in "zero", "sigma_min":
            for got, want in zip(SCHEDULES[name]().grid(noise, 10, end=end), make_grid(name, noise, 10, end=end)):
                np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "lms"])
def test_samplers_take_every_schedule_by_its_name(sampler, name):
    rows = dataclasses.replace(SAMPLERS[sampler](), spacing=name).steps(NOISE, 8)
    assert np.isfinite(rows.coef.calls).all()
    assert rows.starts_step.sum() == len(SCHEDULES[name]().grid(NOISE, 8, end=SAMPLERS[sampler]().end).sigma) - 1


ONLY_RANGES = ("dpm_solver_singlestep", "dpm_solver_adaptive")  # they place calls between the ends of a range


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_takes_every_schedule_or_refuses_it(sampler):
    for name in SCHEDULES:
        if sampler in ONLY_RANGES and name not in ("time_uniform", "logSNR", "time_quadratic"):
            with pytest.raises(ValueError, match="takes spacing time_uniform, logSNR, time_quadratic"):
                dataclasses.replace(SAMPLERS[sampler](), spacing=name).steps(NOISE, 8)
            continue
        for noise in NOISE, PURE:
            rows = dataclasses.replace(SAMPLERS[sampler](), spacing=name).steps(noise, 8)
            assert all(np.isfinite(np.asarray(leaf, float)).all() for leaf in jax.tree.leaves(rows)), name


def test_the_penultimate_sigma_is_discarded():
    plain = Karras().grid(NOISE, 11, end="zero").sigma
    np.testing.assert_array_equal(
        Karras(discard_penultimate=True).grid(NOISE, 10, end="zero").sigma, np.delete(plain, -2)
    )
    assert len(make_schedule("simple", {"discard_penultimate": "true"}).grid(NOISE, 999, end="zero").sigma) == 1000
    with pytest.raises(ValueError, match="from 1 to 999"):
        make_schedule("simple", {"discard_penultimate": True}).grid(NOISE, 1000, end="zero")


def test_both_interpolations_of_sigma_are_chosen_by_name():
    t = np.linspace(999, 0, 8)  # diffusers: interpolation_type "linear" and "log_linear", between whole timesteps
    low, share = np.floor(t).astype(int), t % 1
    ends = NOISE.sigmas[low], NOISE.sigmas[np.minimum(low + 1, 999)]
    linear = make_schedule("normal", {"interpolation": "sigma"}).grid(NOISE, 8, end="zero").sigma[:-1]
    np.testing.assert_allclose(linear, (1 - share) * ends[0] + share * ends[1], rtol=1e-9)
    log_linear = make_schedule("normal", {"interpolation": "log_sigma"}).grid(NOISE, 8, end="zero").sigma[:-1]
    np.testing.assert_allclose(log_linear, ends[0] ** (1 - share) * ends[1] ** share, rtol=1e-9)
    assert np.abs(linear - log_linear).max() > 1e-7


def test_lists_of_sigmas_and_timesteps_are_taken_as_they_are():
    for written in ([14.0, 7.5, 2.0, 0.0], "sigmas=14,7.5,2,0"):
        t, sigma = make_schedule(written).grid(NOISE, 50, end="sigma_min")
        np.testing.assert_array_equal(sigma, [14, 7.5, 2, 0])
        np.testing.assert_allclose(NOISE.sigma(t[:-1], "log_sigma"), sigma[:-1], rtol=1e-9)
    for written in ([999, 500, 20], "timesteps=999,500,20"):
        t, sigma = make_schedule(written).grid(NOISE, 50, end="zero")
        np.testing.assert_array_equal(t, [999, 500, 20, 0])
        np.testing.assert_allclose(sigma, [*NOISE.sigmas[[999, 500, 20]], 0], rtol=1e-9)
    assert make_schedule("timesteps=999,500,20").grid(NOISE, 50, end="sigma_min").sigma[-1] == NOISE.sigmas[0]


def test_gits_has_a_whole_table_for_every_coefficient():
    tables = gits_tables()
    assert [float(key) for key in tables] == pytest.approx(np.arange(0.8, 1.51, 0.05))
    for rows in tables.values():
        assert [len(row) for row in rows] == list(range(3, 22))
        assert all((np.diff(row) > 0).all() for row in rows)


@pytest.mark.parametrize("tool", LAST_ALPHAS)
def test_rescaling_any_schedule_ends_at_the_tools_sigma(tool):
    rescaled = NoiseSchedule(ScheduleConfig(), LAST_ALPHAS[tool])
    assert rescaled.sigmas[-1] == pytest.approx({"diffusers": 4096, "a1111": 4518, "comfyui": 4518}[tool], rel=1e-3)
    assert rescaled.sigmas[0] == pytest.approx(NOISE.sigmas[0])
    assert not np.allclose(rescaled.sigmas[500], NOISE.sigmas[500], rtol=1e-3)
    assert set(names.ZERO_SNR) == set(LAST_ALPHAS)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_survives_its_written_description(name):
    made = make_schedule(name, {"discard_penultimate": True})
    assert isinstance(made, Schedule)
    assert from_description(json.loads(json.dumps(describe(made)))) == made
    assert from_description(name) == make_schedule(name)


@pytest.mark.parametrize("made", ["sigmas=3,1,0", "timesteps=900,3"])
def test_a_list_survives_its_written_description(made):
    assert from_description(json.loads(json.dumps(describe(make_schedule(made))))) == make_schedule(made)


@pytest.mark.parametrize(
    ("schedule", "options", "said"),
    [
        ("karas", {}, "unknown schedule 'karas'; the nearest known ones are karras"),
        ("karras", {"rh": 5}, "the schedule karras has no rh; it has discard_penultimate, sigma_min, sigma_max"),
        ("karras", {"rho": "five"}, "rho of the schedule karras is a number; got 'five'"),
        ("karras", {"rho": 0}, "rho is a number from 0.01 to 1000; got 0"),
        ("karras", {"rho": float("nan")}, "rho is a number from 0.01 to 1000; got nan"),
        ("karras", {"sigma_min": -1}, "sigma_min is a number from 1e-05 to 1e[+]06; got -1"),
        ("karras", {"sigma_min": 20}, "sigma_min must be below sigma_max; got 20 and 14.6146"),
        ("karras", {"discard_penultimate": "yes"}, "discard_penultimate of the schedule karras is true or false"),
        ("normal", {"interpolation": "cubic"}, "interpolation is one of log_alpha, log_sigma, sigma; got 'cubic'"),
        ("beta", {"alpha": 0}, "alpha is a number above 0; got 0"),
        ("gits", {"coeff": 1.23}, "coeff is 0.8, 0.85, 0.9, ... or 1.5; got 1.23"),
        ("align_your_steps", {"table": 12}, "table is one of 10, 11, 32; got 12"),
        ("sd_turbo", {"denoise": 0.05}, "denoise leaves none of 10 timesteps below 0.1; got 0.05"),
        ("sigmas=1,2", {}, "sigmas are 2 to 10001 falling numbers"), ("sigmas=1", {}, "sigmas are 2 to 10001"),
        ("sigmas=a", {}, "sigmas are numbers, separated by commas"), ([3, "a"], {}, "a sigma is a number"),
        ("timesteps=1000,5", {}, "timesteps are at most 999 for this model; got 1000"),
        ("timesteps=5,5", {}, "timesteps are 1 to 10000 falling numbers"), (7, {}, "schedule is a name, a list of"),
        ([], {}, "timesteps are 1 to 10000 falling numbers"),
        ("linear_quadratic", {"linear_steps": 9}, "linear_steps must be below the number of steps, 8; got 9"),
        ("simple", {"rho": 7}, "the schedule simple has no rho; it has discard_penultimate"),
        ("vp", {"eps_s": 1}, "eps_s is between 0 and 1"), ("vp", {"beta_d": 900}, "eps_s is between 0 and 1, and"),
        ("linear_quadratic", {"threshold_noise": 1.0}, "threshold_noise is too large for 4 linear of 8 steps; got 1"),
        ("sigmas=1,1e-9", {}, "a sigma is a number from 1e-05 to"),
    ],
)  # fmt: skip
def test_wrong_schedules_are_refused_by_a_sentence(schedule, options, said):
    with pytest.raises(ValueError, match="^" + said.replace("(", r"\(").replace(".", r"\.")):
        make_schedule(schedule, options).grid(NOISE, 8, end="zero")


def test_numbers_of_steps_that_a_schedule_cannot_have_are_refused():
    for name, n, said in (("gits", 1, "from 2 to"), ("sd_turbo", 11, "from 1 to 10"), ("simple", 1001, "to 1000 ")):
        with pytest.raises(ValueError, match=said):
            SCHEDULES[name]().grid(NOISE, n, end="zero")
    with pytest.raises(ValueError, match="cannot leave out the first 8 of 8 steps"):
        SCHEDULES["simple"]().grid(NOISE, 8, end="zero", skip=8)
