"""The adaptive DPM-Solver: error against its tolerance, calls of the network, independence of the batch."""

import functools

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.samplers import DPMSolverAdaptive, Stateless, sample

MODEL = gaussian.Gaussian()
VARIANTS = [
    (algorithm, order, solver_type)
    for algorithm in ("dpmsolver", "dpmsolver++")
    for order in (2, 3)
    for solver_type in ("dpm_solver", "taylor")
]


def adaptive(tolerance=1e-3, num_steps=1000, model=MODEL, start=None, **options):
    """Returns the latent that comes out, and the one that should."""
    sampler = DPMSolverAdaptive(atol=tolerance, rtol=tolerance, **options)
    rows = sampler.steps(gaussian.SCHEDULE, num_steps)
    x = model.start(rows.sigma[0]).astype(np.float32) if start is None else start

    end = float(rows.sigma_next[-1])
    want = model.flow(x, rows.sigma[0], end) / np.sqrt(1 + end**2)
    keys = jax.random.split(jax.random.key(0), len(x))  # no noise is drawn
    return gaussian.run(sampler, rows, x, keys, model), want


def calls(tolerance, **options):
    """Returns how often the network is called, counted one by one."""
    seen = []
    sampler = DPMSolverAdaptive(atol=tolerance, rtol=tolerance, **options)
    rows = sampler.steps(gaussian.SCHEDULE, 1000)

    def denoise(x, row):
        jax.debug.callback(lambda t: seen.append(float(t[0])), row.timestep)
        return MODEL.denoise(x, row)

    x = jnp.asarray(MODEL.start(rows.sigma[0]), jnp.float32)
    jax.block_until_ready(
        jax.jit(functools.partial(sample, sampler, Stateless(denoise)))(x, rows, jnp.zeros((1, *x.shape)))
    )
    jax.effects_barrier()
    return seen


@pytest.mark.few(4)
@pytest.mark.parametrize(("algorithm", "order", "solver_type"), VARIANTS)
def test_the_error_follows_the_tolerance(algorithm, order, solver_type):
    """The tolerance bounds each step's difference of two orders; over some tens of steps errors add up."""
    errors = []
    for tolerance in (1e-2, 1e-4):
        got, want = adaptive(tolerance, algorithm=algorithm, order=order, solver_type=solver_type)
        errors.append(np.abs(got - want).max())
    assert errors[0] < 10 * 1e-2
    assert errors[1] < 10 * 1e-4
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize("order", [2, 3])
def test_a_smaller_tolerance_takes_more_calls_and_each_step_its_orders(order):
    few, many = (calls(tolerance, algorithm="dpmsolver", order=order) for tolerance in (5e-2, 1e-3))
    assert len(few) % order == 0
    assert len(many) % order == 0
    assert order * 3 < len(few) < len(many) < 2000
    assert few[0] == pytest.approx(999, abs=1e-3)
    # The error of a step of lower order p falls with h^p, so the number of steps grows with tolerance^(-1/p)
    growth = np.log(len(many) / len(few)) / np.log(50)
    assert growth < 1 / (order - 1)


def test_a_picture_takes_its_own_steps_unless_joint():
    start = MODEL.start(14.6146)[:3].astype(np.float32) * np.float32([0.05, 1, 1]).reshape(3, 1, 1, 1)
    batch, want = adaptive(start=start)
    alone, _ = adaptive(start=start[[0, 0, 0]])  # with its like, for the sake of one program
    np.testing.assert_allclose(batch[0], alone[0], rtol=1e-5)  # the steps' sizes carry on a last bit
    np.testing.assert_allclose(batch, want, atol=1e-2)
    joint, _ = adaptive(start=start, joint=True)
    assert np.abs(joint[0] - alone[0]).max() > 1e-6
    together, _ = adaptive(start=start[[0, 0, 0]], joint=True)
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_attempts_that_run_out_are_made_up_for_by_one_last_step():
    """The result is a whole sample, noise gone, though less exact."""
    got, want = adaptive(1e-5, num_steps=4, algorithm="dpmsolver++")
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() > 1e-2
    assert np.abs(got - MODEL.mean).max() < np.abs(want - MODEL.mean).max()  # one step goes to the denoiser's x0


def test_denoising_to_zero_ends_at_the_denoisers_answer():
    got, want = adaptive(1e-4, denoise_to_zero=True)
    end = float(gaussian.SCHEDULE.sigmas[0])
    x = want  # want was not scaled: rows.sigma_next is 0
    at_end = MODEL.mean + (x - MODEL.mean) * np.sqrt((0.8**2 + end**2) / 0.8**2)
    answer = (0.8**2 * at_end + end**2 * MODEL.mean) / (0.8**2 + end**2)
    np.testing.assert_allclose(got, answer, atol=2e-3)
    assert np.abs(got - answer).max() < np.abs(got - at_end).max()


def test_the_program_holds_the_network_once():
    sampler = DPMSolverAdaptive(order=3, denoise_to_zero=True)
    rows = sampler.steps(gaussian.SCHEDULE, 20)
    run = functools.partial(
        sample, sampler, Stateless(lambda x, row: jnp.arctan(x))
    )  # an operation that nothing else uses
    x = jnp.zeros((2, 1, 1, 1))
    assert str(jax.make_jaxpr(run)(x, rows, jnp.zeros((1, *x.shape)))).count("atan ") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 1}, "order of DPMSolverAdaptive is 2 or 3; got 1"),
        ({"spacing": "karras"}, "takes spacing time_uniform, logSNR, time_quadratic"),
        ({"end": "zero"}, "end sigma_min"),
        ({"atol": 0.0}, "atol is a positive number"),
        ({"rtol": -1.0}, "rtol is a positive number"),
        ({"theta": float("nan")}, "theta is a positive number"),
        ({"h_init": float("inf")}, "h_init is a positive number"),
        ({"t_err": 0.0}, "t_err is a positive number"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DPMSolverAdaptive(**options)
