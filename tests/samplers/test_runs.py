"""Properties of every sampler: prediction types, chunks, keys, one program, refused options."""

import dataclasses

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import ScheduleConfig
from sdjax.samplers import (
    LMS,
    PLMS,
    PNDM,
    SAMPLERS,
    DPMSolverAdaptive,
    DPMSolverMultistep,
    DPMSolverSinglestep,
    DPMSolverSinglestepFixed,
    Euler,
    Linear,
    Stateless,
    UniPC,
    chunks,
    draw_noise,
    repeat,
    sample,
    scan_rows,
)
from sdjax.samplers.noise import POSTERIOR, SAMPLER, START
from sdjax.samplers.thresholding import dynamic_threshold
from sdjax.schedule import PREDICTIONS, NoiseSchedule

MODEL = gaussian.Gaussian()
KEYS = jax.random.split(jax.random.key(1), 4)
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def rows_and_start(sampler, num_steps=8):
    rows = sampler.steps(gaussian.SCHEDULE, num_steps)
    return rows, jnp.asarray(MODEL.start(rows.sigma[0]), jnp.float32)


@pytest.mark.few(18)
@every_sampler
def test_epsilon_v_and_x0_prediction_make_the_same_picture(name):
    """The same knowledge, put in three ways; PNDM mixes raw outputs and is the documented exception."""
    if name == "pndm":
        pytest.skip("see test_pndm_is_plms_for_epsilon_only")
    sampler = SAMPLERS[name]()
    rows, x = rows_and_start(sampler, 1000 if "adaptive" in name else 8)
    ends = [gaussian.run_network(sampler, rows, x, KEYS, prediction) for prediction in PREDICTIONS]
    for other in ends[1:]:
        # x - x0 loses digits where sigma is small, and adaptive steps follow the rounding
        np.testing.assert_allclose(other, ends[0], atol=1e-3 if "adaptive" in name else 1e-4)


def test_pndm_is_plms_for_epsilon_only():
    for prediction, same in (("epsilon", True), ("v", False)):
        schedule = NoiseSchedule(ScheduleConfig(prediction=prediction))
        a, b = (kind().steps(schedule, 10) for kind in (PLMS, PNDM))
        assert np.allclose(a.coef.calls, b.coef.calls) == same


@every_sampler
def test_a_run_in_chunks_is_the_run_in_one_go(name):
    sampler = SAMPLERS[name]()
    rows, x = rows_and_start(sampler, 7)
    whole = gaussian.run(sampler, rows, x, KEYS)
    parts = list(chunks(rows, 3))
    assert [int(part.active.sum()) for part in parts] == [3] * (len(rows.timestep) // 3) + [len(rows.timestep) % 3] * (
        len(rows.timestep) % 3 > 0
    )
    # Another program may round otherwise
    np.testing.assert_allclose(gaussian.run(sampler, rows, x, KEYS, size=3), whole, rtol=2e-6, atol=2e-6)


def test_rows_that_are_not_active_do_not_call_the_network():
    sampler = SAMPLERS["ddim"]()
    rows, x = rows_and_start(sampler, 4)
    seen = []

    def denoise(x, row):
        jax.debug.callback(lambda i: seen.append(int(i[0])), row.index)
        return MODEL.denoise(x, row)

    for part in chunks(repeat(rows, 4), 3):
        jax.block_until_ready(scan_rows(sampler.rule, Stateless(denoise), sampler.rule.init(x), part, KEYS))
    jax.effects_barrier()
    assert sorted(seen) == [0, 1, 2, 3]


def test_all_samplers_but_the_adaptive_ones_share_one_program():
    rules = {name: sampler().rule for name, sampler in SAMPLERS.items()}
    assert {rule for name, rule in rules.items() if "adaptive" not in name} == {Linear()}
    shapes = [jax.tree.map(lambda a: (a.shape[1:], a.dtype), SAMPLERS[name]().steps(gaussian.SCHEDULE, 6))
              for name in rules if "adaptive" not in name]  # fmt: skip
    assert all(shape == shapes[0] for shape in shapes)


def test_noise_depends_on_the_pictures_key_the_stream_and_the_row_alone():
    shape = (3, 5, 2)
    batch = draw_noise(KEYS, SAMPLER, 2, shape)
    assert batch.dtype == jnp.float32
    for i in range(4):
        np.testing.assert_array_equal(batch[i], draw_noise(KEYS[i : i + 1], SAMPLER, 2, shape)[0])
    np.testing.assert_array_equal(batch[::-1], draw_noise(KEYS[::-1], SAMPLER, 2, shape))
    for other in (
        draw_noise(KEYS, START, 2, shape),
        draw_noise(KEYS, POSTERIOR, 2, shape),
        draw_noise(KEYS, SAMPLER, 3, shape),
    ):
        assert np.abs(np.corrcoef(np.ravel(batch), np.ravel(other))[0, 1]) < 0.4  # 120 numbers: 4 deviations


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde", "ddpm", "lcm", "dpmpp_sde", "er_sde"])
def test_a_noisy_run_of_one_picture_is_the_same_in_a_batch(name):
    sampler = SAMPLERS[name]()
    rows, x = rows_and_start(sampler)
    batch, alone = (gaussian.run(sampler, rows, x[part], KEYS[part]) for part in (slice(0, 4), slice(2, 3)))
    np.testing.assert_allclose(batch[2:3], alone, rtol=1e-6)


def test_given_noise_is_used_row_by_row():
    sampler = Euler(eta=1.0)
    rows, x = rows_and_start(sampler, 5)
    noise = jnp.stack([draw_noise(KEYS, SAMPLER, i, x.shape[1:]) for i in range(5)])
    a, b = (sample(sampler, Stateless(MODEL.denoise), x, rows, n) for n in (noise, KEYS))
    np.testing.assert_array_equal(a, b)


def test_constrain_acts_where_steps_start():
    sampler = SAMPLERS["heun"]()
    rows, x = rows_and_start(sampler, 3)
    seen = []

    def constrain(x, row):
        jax.debug.callback(lambda i: seen.append(int(i[0])), row.index)
        return x

    jax.block_until_ready(sample(sampler, Stateless(MODEL.denoise), x, rows, KEYS, constrain))
    jax.effects_barrier()
    assert sorted(seen) == [0, 2, 4]


@every_sampler
def test_pure_noise_enters_with_the_variance_the_first_row_expects(name):
    sampler = SAMPLERS[name]()
    rows = sampler.steps(gaussian.SCHEDULE, 10)
    sigma = float(rows.sigma[0])
    got = float(np.asarray(sampler.initial(jnp.ones((1, 1, 1, 1)), rows)).item())
    assert got == pytest.approx((1 + sigma**2) ** 0.5 if sampler.variance_preserving else sigma, rel=1e-6)


def test_thresholding_clips_each_picture_at_its_own_quantile():
    x0 = np.linspace(-3, 3, 200, dtype=np.float32).reshape(2, 10, 10, 1)
    x0[1] *= 0.1
    got = dynamic_threshold(jnp.asarray(x0), 0.9, 1.0)
    bound = np.quantile(np.abs(x0[0]), 0.9)
    np.testing.assert_allclose(got[0], np.clip(x0[0], -bound, bound) / bound, rtol=1e-5)
    np.testing.assert_allclose(got[1], x0[1], rtol=1e-6)  # within max_value: as it was


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "solver", [DPMSolverMultistep, DPMSolverSinglestep, DPMSolverSinglestepFixed, DPMSolverAdaptive]
)
def test_a_thresholding_solver_ends_within_bounds(solver):
    options = {"algorithm": "dpmsolver++", "order": 2, "denoise_to_zero": True}
    plain, bounded = solver(**options), solver(thresholding=True, **options)
    rows, _ = rows_and_start(plain, 12)
    x = jnp.full((1, 4, 4, 1), 60.0)
    ends = [np.abs(sample(s, Stateless(MODEL.denoise), x, rows, KEYS[:1])).max() for s in (plain, bounded)]
    assert ends[0] > 1.5
    assert ends[1] <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPMSolverSinglestep(spacing="even"), "takes spacing time_uniform, logSNR, time_quadratic"),
        (
            lambda: DPMSolverMultistep(algorithm="dpm"),
            "unknown algorithm 'dpm'; the known ones are dpmsolver, dpmsolver",
        ),
        (lambda: DPMSolverMultistep(solver_type="midpoint"), "unknown solver_type 'midpoint'"),
        (
            lambda: DPMSolverMultistep(spacing="uniform"),
            "unknown spacing 'uniform'.*; the known ones are even, leading",
        ),
        (lambda: DPMSolverMultistep(end="one"), "unknown end 'one'; the known ones are zero, sigma_min"),
        (lambda: DPMSolverMultistep(order=4), "order of DPMSolverMultistep is 1, 2 or 3; got 4"),
        (lambda: DPMSolverMultistep(order=0), "order of DPMSolverMultistep is 1, 2 or 3; got 0"),
        (lambda: DPMSolverMultistep(lower_order_below=-1), "lower_order_below is a number of steps from 0 up; got -1"),
        (
            lambda: DPMSolverMultistep(thresholding=True, algorithm="dpmsolver"),
            "thresholding needs an algorithm that remembers x0",
        ),
        (lambda: DPMSolverMultistep(quantile=1.5), "quantile is a number from 0 to 1; got 1.5"),
        (lambda: DPMSolverMultistep(max_value=0.0), "max_value is a positive number; got 0.0"),
        (lambda: LMS(order=5), "order is 1, 2, 3 or 4; got 5"),
        (lambda: UniPC(order=4), "order is 1, 2 or 3; got 4"),
    ],
)
def test_options_out_of_range_are_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@every_sampler
def test_every_sampler_can_start_later(name):
    """Image to image leaves out the first steps: warm-ups and differences begin anew at the first one that is left."""
    sampler = SAMPLERS[name]()
    if name.startswith("dpm_solver_"):
        sampler = dataclasses.replace(sampler, spacing="logSNR")
    whole, part = (sampler.steps(gaussian.SCHEDULE, 10, skip=skip) for skip in (0, 4))
    assert part.sigma[0] == pytest.approx(sampler.grid(gaussian.SCHEDULE, 10).sigma[4], rel=1e-6)
    assert part.sigma_next[-1] == whole.sigma_next[-1]
    if "adaptive" not in name:
        assert np.count_nonzero(part.coef.calls[0]) == 1  # no earlier call is there yet
