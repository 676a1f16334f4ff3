"""The order of each deterministic sampler: how fast its error falls with more steps, against exact solutions.

Everything in float64: in float32 a third order would drown in rounding. Steps are at equal distances of log sigma, on
which the methods' theory is written, unless a test says otherwise.
"""

import dataclasses

import gaussian
import numpy as np
import pytest

from sdjax.samplers import (
    DDIM,
    DPM2,
    ERSDE,
    LMS,
    PLMS,
    PNDM,
    DPMFast,
    DPMSolver2MCFGPP,
    DPMSolver2S,
    DPMSolverMultistep,
    DPMSolverSDE,
    DPMSolverSDE2S,
    DPMSolverSDE3M,
    DPMSolverSinglestep,
    DPMSolverSinglestepFixed,
    Euler,
    GradientEstimation,
    Heun,
    HeunPP2,
    ResMultistep,
    Seeds2,
    Seeds3,
    UniPC,
)
from sdjax.samplers.dpm_solver import backward_differences
from sdjax.samplers.er_sde import noise_scale

LOG = {"spacing": "exponential", "end": "sigma_min"}
DPM = {"spacing": "logSNR", "lower_order_below": 0}


def measured_order(monkeypatch, sampler, num_steps, *, first=0, last=0):
    """Returns log2 of how much smaller the error gets with twice the steps, without `first` and `last` rows."""
    errors = []
    for n in (num_steps, 2 * num_steps):
        rows = gaussian.exact_rows(monkeypatch, sampler, gaussian.SCHEDULE, n)
        errors.append(gaussian.float64_end(gaussian.Gaussian(), rows[: len(rows) - last], first))
    assert errors[0] < 0.1
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (DDIM(**LOG), 1),
        (Euler(**LOG), 1),
        (LMS(order=1, **LOG), 1),
        (LMS(order=2, **LOG), 2),
        (Heun(**LOG), 2),
        (DPM2(**LOG), 2),
        (DPMSolver2S(**LOG), 2),
        (DPMSolverSDE(eta=0.0, **LOG), 2),
        (DPMSolverSDE(eta=0.0, solver_type="heun", **LOG), 2),
        (DPMSolverSDE2S(eta=0.0, **LOG), 2),
        (DPMSolverSDE2S(eta=0.0, r=0.3, **LOG), 2),
        (DPMSolverSDE3M(eta=0.0, **LOG), 2),  # it halves the second difference, as the reference does
        (DPMSolver2MCFGPP(**LOG), 2),  # without guidance it is DPM-Solver++(2M)
        (ResMultistep(**LOG), 2),
        (GradientEstimation(**LOG), 1),
        (GradientEstimation(gamma=1.5, **LOG), 2),  # Adams-Bashforth 2 where steps are equal, as many are nearly
        (HeunPP2(**LOG), 1),
        (Seeds2(eta=0.0, **LOG), 2),
        (Seeds2(eta=0.0, r=0.3, **LOG), 2),
        (Seeds3(eta=0.0, **LOG), 3),
        (PLMS(**LOG), 2),  # of fourth order where sigma's steps are equal, which they never are
        (PNDM(**LOG), 2),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_whole_runs_converge_with_the_methods_order(monkeypatch, sampler, order):
    assert measured_order(monkeypatch, sampler, 96) == pytest.approx(order, abs=0.1)


def test_dpm_fast_has_its_order_until_the_last_steps_drop_it(monkeypatch):
    assert measured_order(monkeypatch, DPMFast(), 96, last=3) == pytest.approx(3, abs=0.35)


@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize("solver_type", ["dpm_solver", "taylor"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_fixed_singlestep_dpm_solvers_have_their_order(monkeypatch, algorithm, solver_type, order):
    sampler = DPMSolverSinglestepFixed(order=order, algorithm=algorithm, solver_type=solver_type, spacing="logSNR")
    assert measured_order(monkeypatch, sampler, 192) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize("solver_type", ["dpm_solver", "taylor"])
@pytest.mark.parametrize(("order", "last"), [(1, 0), (2, 1), (3, 3)])
def test_singlestep_dpm_solvers_have_their_order_until_the_last_steps_drop_it(
    monkeypatch, algorithm, solver_type, order, last
):
    sampler = DPMSolverSinglestep(order=order, algorithm=algorithm, solver_type=solver_type, spacing="logSNR")
    # 97 and 194 calls leave a rest of 1 and 0 by 2: `last` drops it; by 3 rests of 1 and 2, both within three calls
    got = measured_order(monkeypatch, sampler, 96 if order == 3 else 97, last=last)
    assert got == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize(
    ("solver_type", "order", "measured"),
    [("dpm_solver", 1, 1), ("dpm_solver", 2, 2), ("taylor", 2, 2), ("dpm_solver", 3, 2), ("taylor", 3, 3)],
)
def test_multistep_dpm_solvers_have_their_order_after_the_warm_up(monkeypatch, algorithm, solver_type, order, measured):
    """The authors' order 3 halves the second difference: it is of second order, and kept for their outputs' sake."""
    settings = {"spacing": "karras", "end": "sigma_min", "lower_order_below": 0}  # steps of different lengths
    sampler = DPMSolverMultistep(order=order, algorithm=algorithm, solver_type=solver_type, **settings)
    assert measured_order(monkeypatch, sampler, 96, first=3) == pytest.approx(measured, abs=0.15)


@pytest.mark.parametrize("order", [3, 4])
def test_lms_has_its_order_after_the_warm_up(monkeypatch, order):
    assert measured_order(monkeypatch, LMS(order=order, **LOG), 192, first=4) == pytest.approx(order, abs=0.2)


@dataclasses.dataclass(frozen=True)
class ExtendedDrift(gaussian.Gaussian):
    """The Gaussian under ER-SDE without draws: dx = (phi' / phi) (x - x0) dsigma, a number to integrate."""

    def flow(self, x, sigma, sigma_next):
        if sigma == sigma_next:
            return x
        u = np.linspace(np.log(sigma_next), np.log(sigma), 100_001)
        s2 = np.exp(2 * u)
        slope = np.gradient(np.log(noise_scale(np.exp(u))), u) * s2 / (self.deviation**2 + s2)
        return self.mean + (x - self.mean) * np.exp(-np.trapezoid(slope, u))


@pytest.mark.parametrize(("max_stage", "order"), [(1, 1), (2, 2), (3, 2)])
def test_er_sde_has_its_order_in_the_mean_after_the_warm_up(monkeypatch, max_stage, order):
    """With three stages its D1 is the slope half a step back, as in the paper, which keeps the order at 2."""
    monkeypatch.setattr("sdjax.samplers.er_sde.POINTS", 20_000)  # the reference's 200 are of first order
    errors = []
    for n in (24, 48):
        rows = gaussian.exact_rows(monkeypatch, ERSDE(max_stage=max_stage, **LOG), gaussian.SCHEDULE, n)
        errors.append(gaussian.float64_end(ExtendedDrift(), rows, first=3))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_gains_an_order_by_correcting(monkeypatch, order):
    """Its predictor has the order's order, the corrector one more; the last steps are left out, for they drop it."""
    assert measured_order(monkeypatch, UniPC(order=order, **LOG), 96, first=4, last=4) == pytest.approx(
        order + 1, abs=0.2
    )


@pytest.mark.parametrize("spacing", ["time_uniform", "time_quadratic", "logSNR", "karras", "exponential", "linspace"])
def test_on_every_spacing_more_steps_come_closer(monkeypatch, spacing):
    sampler = DPMSolverMultistep(spacing=spacing, lower_order_below=0)
    errors = [
        gaussian.float64_end(gaussian.Gaussian(), gaussian.exact_rows(monkeypatch, sampler, gaussian.SCHEDULE, n))
        for n in (20, 80, 320)
    ]
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3
    assert errors[2] < 5e-3


def test_with_few_steps_and_no_others_the_last_ones_drop_to_lower_order():
    for n, same in ((14, False), (15, True), (30, True)):
        lowered = DPMSolverMultistep(order=3, lower_order_below=15).steps(gaussian.SCHEDULE, n)
        plain = DPMSolverMultistep(order=3, lower_order_below=0).steps(gaussian.SCHEDULE, n)
        assert np.array_equal(lowered.coef.calls, plain.coef.calls) == same
        np.testing.assert_array_equal(lowered.coef.calls[:-2], plain.coef.calls[:-2])
        used = np.count_nonzero(lowered.coef.calls, axis=1)
        np.testing.assert_array_equal(used[-2:], [3, 3] if same else [2, 1])


@pytest.mark.parametrize("order", [1, 2, 3])
def test_backward_differences_are_exact_for_polynomials_on_uneven_steps(order):
    """D1 = h m' and D2 = h^2 m'' of the polynomial in lambda through the last calls."""
    lam = np.array([-2.0, -1.1, -0.8, 0.3])
    h = lam[-1] - lam[-2]
    polynomial = np.polynomial.Polynomial([0.7, -1.3, 0.4][:order])
    calls = polynomial(lam[-2::-1])[:order]  # the newest first
    want = [polynomial.deriv(k)(lam[-2]) * h**k for k in range(order)]
    got = [weights @ calls for weights in backward_differences(np.exp(-lam), order)]
    np.testing.assert_allclose(got, want, rtol=1e-12)
