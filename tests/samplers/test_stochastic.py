"""Samplers that draw noise: the distribution of what they make, against the closed form."""

import dataclasses

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.samplers import (
    DDIM,
    DDPM,
    DPM2,
    LCM,
    DPMSolver2S,
    DPMSolverSDE,
    Euler,
    Linear,
    Stateless,
    draw_noise,
    repeat,
    scan_rows,
)
from sdjax.samplers.ancestral import split_noise
from sdjax.samplers.noise import START

SIDE = 128  # 16,384 pixels: a variance is known to sqrt(2 / 16384) = 1.1 %
KEYS = jax.random.split(jax.random.key(0), 1)
LOG = {"spacing": "exponential", "end": "sigma_min"}
NOISY = [DDIM(eta=0.4, **LOG), DDIM(eta=1.0, **LOG), DDPM(**LOG), Euler(eta=1.0, **LOG),
         Euler(eta=0.5, **LOG), DPM2(eta=1.0, **LOG), DPMSolver2S(eta=1.0, **LOG), DPMSolverSDE(eta=1.0, **LOG),
         DPMSolverSDE(eta=0.5, **LOG)]  # fmt: skip
named = pytest.mark.parametrize("sampler", NOISY, ids=lambda s: f"{type(s).__name__}-{s.eta}")


@jax.jit
def run(rows, x, deviation, mean):
    """Returns the sampler's x after the rows, in the space x0 + sigma noise, for a Gaussian of that deviation."""

    def denoise(x, row):
        return (deviation**2 * x + row.sigma**2 * mean) / (deviation**2 + row.sigma**2)

    rule = Linear()
    return scan_rows(rule, Stateless(denoise), rule.init(x), repeat(rows, 1), KEYS).x


def start(rows, deviation, mean):
    noise = draw_noise(KEYS, START, 0, (SIDE, SIDE, 1))
    return mean + jnp.sqrt(deviation**2 + rows.sigma[0] ** 2) * noise


@named
def test_of_a_known_image_exactly_the_right_noise_is_left_after_every_number_of_steps(sampler):
    """With x0 known no method errs: after each step x - x0 is noise of deviation sigma, down to the last."""
    for n in (3, 20):
        rows = sampler.steps(gaussian.SCHEDULE, n)
        x = np.asarray(run(rows, start(rows, 0.0, 0.7), 0.0, 0.7))
        want = float(rows.sigma_next[-1])
        assert x.std() == pytest.approx(want, rel=0.03)  # three deviations of a deviation's estimate
        assert x.mean() == pytest.approx(0.7, abs=4 * want / SIDE)


@named
def test_many_steps_reach_the_datas_mean_and_variance(sampler):
    mean, deviation = -0.4, 0.6
    rows = sampler.steps(gaussian.SCHEDULE, 400)
    x = np.asarray(run(rows, start(rows, deviation, mean), deviation, mean))
    want = np.sqrt(deviation**2 + rows.sigma_next[-1] ** 2)
    # 0.8 % is a deviation of the estimate; first-order samplers of 400 steps are off by 1 to 2 % themselves
    assert x.std() == pytest.approx(want, rel=0.045)
    assert x.mean() == pytest.approx(mean, abs=0.03)


def test_the_sde_solver_of_second_order_beats_the_first_order_one():
    errors = {}
    for name, sampler in {"first": DDIM(eta=1.0, **LOG), "second": DPMSolverSDE(eta=1.0, **LOG)}.items():
        rows = sampler.steps(gaussian.SCHEDULE, 40)
        x = np.asarray(run(rows, start(rows, 0.6, 0.0), 0.6, 0.0))
        errors[name] = abs(x.std() / np.sqrt(0.6**2 + rows.sigma_next[-1] ** 2) - 1)
    assert errors["first"] > 0.05
    assert errors["second"] < 0.4 * errors["first"]


@named
def test_without_eta_nothing_is_drawn(sampler):
    rows = dataclasses.replace(sampler, eta=0.0).steps(gaussian.SCHEDULE, 5)
    assert (rows.coef.noise == 0).all()
    assert (sampler.steps(gaussian.SCHEDULE, 5).coef.noise != 0).sum() == 5


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 1.7, 50.0])
def test_kept_and_fresh_noise_add_up_whatever_eta(eta):
    for sigma, sigma_next in ((14.6, 9.0), (1.0, 0.999), (0.5, 0.03), (0.03, 0.0)):
        down, up = split_noise(sigma, sigma_next, eta)
        assert down**2 + up**2 == pytest.approx(sigma_next**2, rel=1e-12)
        assert 0 <= up <= sigma_next


def test_ddim_with_eta_one_has_the_variance_of_ddpms_posterior():
    """beta~ = (1 - a_prev) / (1 - a_t) beta_t (Ho et al. 2020, eq. 7), divided by a_prev in our space."""
    t = np.array([999, 500, 20])
    a, previous = gaussian.SCHEDULE.alphas_cumprod[t], gaussian.SCHEDULE.alphas_cumprod[t - 1]
    want = (1 - previous) / (1 - a) * (1 - a / previous) / previous
    got = [split_noise(gaussian.SCHEDULE.sigmas[i], gaussian.SCHEDULE.sigmas[i - 1], 1.0)[1] ** 2 for i in t]
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_euler_without_noise_is_ddim_on_the_same_steps():
    for n in (1, 9):
        a, b = (kind(**LOG).steps(gaussian.SCHEDULE, n) for kind in (Euler, DDIM))
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_latent_consistency_step_lands_on_the_image_and_noises_it_again():
    rows = LCM().steps(gaussian.SCHEDULE, 4)
    x = np.asarray(run(rows, start(rows, 0.0, 0.7), 0.0, 0.7))
    np.testing.assert_allclose(x, 0.7, rtol=1e-4)  # the boundary condition's share of x: 0.25 / (10 t)^2
    np.testing.assert_allclose(rows.coef.noise, [*rows.sigma[1:], 0.0])


@pytest.mark.parametrize("kind", [DDIM, Euler, DPM2, DPMSolver2S, DPMSolverSDE])
@pytest.mark.parametrize("eta", [-0.1, float("nan"), float("inf")])
def test_impossible_eta_is_refused(kind, eta):
    with pytest.raises(ValueError, match="eta is a finite number from 0 up; got"):
        kind(eta=eta)
