"""DEIS, iPNDM, UniPC's variants and SA-Solver: their orders, and what their weights must be."""

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_order import LOG, measured_order

from sdjax.samplers import (
    DDIM,
    DEIS,
    IPNDM,
    LMS,
    DDIMInversion,
    DPMSolverMultistep,
    DPMSolverSDE,
    SASolver,
    UniPC,
)
from sdjax.samplers.adams import time_weights, variable_weights
from sdjax.samplers.exponential import adams_weights
from sdjax.samplers.multistep import lms_weights

UNEVEN = {"spacing": "karras", "end": "sigma_min"}  # steps of different lengths: on even ones two errors cancel


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (DEIS(order=1, lower_order_below=0, **LOG), 1),
        (DEIS(order=2, lower_order_below=0, **LOG), 2),
        (DEIS(order=3, lower_order_below=0, **UNEVEN), 3),
        (DEIS(order=2, polynomial="time", lower_order_below=0, **LOG), 2),
        (IPNDM(**LOG), 2),  # its weights are for equal steps
        (IPNDM(order=2, variable_steps=True, **LOG), 2),
        (LMS(ends_in_x0=True, **LOG), 4),
        (UniPC(order=2, variant="bh1", **LOG), 3),
        (UniPC(order=2, variant="bh1", predict="epsilon", **LOG), 3),
        (UniPC(order=3, predict="epsilon", **LOG), 4),
        (UniPC(order=3, uncorrected=tuple(range(400)), **UNEVEN), 3),
        (SASolver(eta=0.0, predictor_order=1, corrector_order=0, **LOG), 1),
        (SASolver(eta=0.0, predictor_order=3, corrector_order=0, **UNEVEN), 3),
        (SASolver(eta=0.0, predictor_order=2, corrector_order=3, **LOG), 3),
        (SASolver(eta=0.0, predictor_order=2, corrector_order=2, simple=True, **LOG), 2),
        (SASolver(eta=0.0, predictor_order=2, corrector_order=0, predict="epsilon", **LOG), 2),
        (SASolver(eta=0.0, predictor_order=2, corrector_order=3, evaluates_twice=True, **LOG), 3),
    ],
    ids=lambda value: repr(value)[:60] if not isinstance(value, int) else str(value),
)
def test_multistep_samplers_have_their_order_after_the_warm_up(monkeypatch, sampler, order):
    first = 8 if getattr(sampler, "evaluates_twice", False) else 4
    assert measured_order(monkeypatch, sampler, 96, first=first, last=4) == pytest.approx(order, abs=0.35)


def marginal(sampler, steps):
    """Returns the error of the last deviation of Gaussian data under a one-step SDE sampler: an exact recursion."""
    rows = sampler.steps(gaussian.SCHEDULE, steps)
    s = gaussian.Gaussian().deviation
    variance = s**2 + float(rows.sigma[0]) ** 2
    for i in range(len(rows.index)):
        sigma, coef = float(rows.sigma[i]), rows.coef
        to_x0 = s**2 / (s**2 + sigma**2)  # of data with mean 0
        remembered = float(coef.remember[i][0]) + float(coef.remember[i][1]) * to_x0
        gain = float(coef.base[i]) + float(coef.calls[i][0]) * remembered
        variance = gain**2 * variance + float(coef.noise[i]) ** 2
    return abs(np.sqrt(variance) - np.sqrt(s**2 + float(rows.sigma_next[-1]) ** 2))


@pytest.mark.parametrize(
    "sampler",
    [
        DPMSolverMultistep(algorithm="sde-dpmsolver", order=1, **LOG),
        DPMSolverMultistep(algorithm="sde-dpmsolver++", order=1, **LOG),
        SASolver(predictor_order=1, corrector_order=0, noise_start=999.0, noise_end=0.0, **LOG),
        SASolver(predictor_order=1, corrector_order=0, predict="epsilon", **LOG),
    ],
    ids=lambda value: type(value).__name__,
)
def test_solvers_of_the_sde_keep_the_marginals(sampler):
    few, many = marginal(sampler, 50), marginal(sampler, 100)
    assert few < 0.05
    assert many < 0.6 * few


def test_sde_dpm_solver_multistep_is_dpmpp_2m_sde():
    solver = DPMSolverMultistep(algorithm="sde-dpmsolver++", spacing="karras", end="zero", lower_order_below=0)
    got, want = (one.steps(gaussian.SCHEDULE, 9).coef for one in (solver, DPMSolverSDE(brownian=False)))
    for name in ("base", "calls", "noise"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-5, atol=1e-7)


def test_adams_weights_integrate_polynomials_exactly():
    """Their sum with the values of a polynomial is the integral of the polynomial against the exponential."""
    lam, (lam_s, lam_t), k = np.array([0.4, 0.1, -0.5]), (0.4, 0.9), 1.7
    polynomial = np.polynomial.Polynomial([0.3, -1.2, 0.8])
    at = np.linspace(lam_s, lam_t, 20_001)
    exact = np.trapezoid(np.exp(-k * (lam_t - at)) * polynomial(at), at)
    assert adams_weights(lam, lam_s, lam_t, k) @ polynomial(lam) == pytest.approx(exact, rel=1e-8)
    assert not adams_weights(lam, lam_s, lam_s, k).any()


def test_time_weights_sum_to_the_step():
    sigma = np.array([14.0, 9.0, 5.0, 2.5, 1.0])
    for order in (1, 2, 3, 4):
        assert time_weights(sigma, order).sum() == pytest.approx(sigma[-1] - sigma[-2], rel=1e-3)


def test_variable_steps_of_order_two_are_adams_bashforths():
    sigma = np.array([14.0, 9.0, 5.0, 2.5])
    step = sigma[-1] - sigma[-2]
    np.testing.assert_allclose(step * variable_weights(sigma, 2), lms_weights(sigma, 2, 2), rtol=1e-12)


def test_a_corrector_needs_the_noise_of_its_step_only_once():
    """Rows of SA-Solver correct by differences of calls: a call that is the same everywhere corrects nothing."""
    rows = SASolver().steps(gaussian.SCHEDULE, 12)
    np.testing.assert_allclose(rows.coef.correct.sum(axis=1), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniPC(variant="bh3"), "unknown variant 'bh3'"),
        (lambda: UniPC(variant="bh1").steps(gaussian.SCHEDULE, 5), "UniPC ends without noise only with variant bh2"),
        (lambda: UniPC(last_sigma=5.0).steps(gaussian.SCHEDULE, 5), "last_sigma is below the last step's start"),
        (lambda: DEIS(order=4), "order of DEIS with polynomial log_sigma is 1 to 3; got 4"),
        (lambda: IPNDM(order=5), "order is 1, 2, 3 or 4; got 5"),
        (lambda: SASolver(predictor_order=0), "predictor_order is 1 to 4 and corrector_order 0 to 4"),
        (
            lambda: SASolver(predictor_order=4, evaluates_twice=True),
            "evaluates_twice needs a predictor_order of at most 3",
        ),
        (lambda: DDIMInversion(refinements=-1), "refinements is a whole number from 0 to 100; got -1"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_ddim_inversion_approaches_the_exact_inverse():
    """DDIM from the noise that inversion found comes back; the error falls with refinements."""
    x = jnp.linspace(-1, 1, 4).reshape(4, 1, 1, 1)
    keys = jax.random.split(jax.random.key(0), 4)
    errors = []
    forward = DDIM().steps(gaussian.SCHEDULE, 20)
    for refinements in (0, 1, 3):
        inverse = DDIMInversion(refinements=refinements)
        rows = inverse.steps(gaussian.SCHEDULE, 20)
        assert len(rows.index) == 20 * (1 + refinements)
        noise = gaussian.run(inverse, rows, inverse.initial(x, rows), keys)
        again = gaussian.run(DDIM(), forward, DDIM().initial(noise, forward), keys)
        errors.append(float(np.abs(again - x).max()))
    assert errors[0] < 0.3
    assert errors[1] < errors[0] / 2
    assert errors[2] < 5e-3
