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
    ERSDE,
    LCM,
    DPMFast,
    DPMSolver2S,
    DPMSolverMultistep,
    DPMSolverSDE,
    DPMSolverSDE2S,
    DPMSolverSDE3M,
    Euler,
    Heun,
    HeunPP2,
    Linear,
    ResMultistep,
    Restart,
    Seeds2,
    Seeds3,
    Stateless,
    chunks,
    draw_noise,
    repeat,
    scan_rows,
)
from sdjax.samplers.ancestral import split_noise
from sdjax.samplers.noise import START
from sdjax.samplers.rows import first_sigma

SIDE = 128  # 16,384 pixels: a variance is known to sqrt(2 / 16384) = 1.1 %
KEYS = jax.random.split(jax.random.key(0), 1)
LOG = {"spacing": "exponential", "end": "sigma_min"}
NOISY = [DDIM(eta=0.4, **LOG), DDIM(eta=1.0, **LOG), DDPM(**LOG), Euler(eta=1.0, **LOG),
         Euler(eta=0.5, **LOG), DPM2(eta=1.0, **LOG), DPMSolver2S(eta=1.0, **LOG), DPMSolverSDE(eta=1.0, **LOG),
         DPMSolverSDE(eta=0.5, **LOG)]  # fmt: skip
OTHERS = [Euler(s_churn=6.0, s_tmax=8.0, **LOG), Heun(s_churn=4.0, s_tmin=0.1, **LOG), DPM2(s_churn=4.0, **LOG),
          HeunPP2(s_churn=4.0, **LOG), Restart(**LOG), DPMFast(eta=1.0), DPMFast(eta=0.5), DPMSolverSDE2S(**LOG),
          DPMSolverSDE2S(eta=0.5, r=0.3, **LOG), DPMSolverSDE(solver_type="heun", brownian=True, **LOG),
          DPMSolverSDE3M(**LOG), ResMultistep(eta=1.0, **LOG), ERSDE(**LOG), Seeds2(**LOG),
          Seeds3(eta=0.4, **LOG)]  # fmt: skip
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
    return mean + jnp.sqrt(deviation**2 + first_sigma(rows)[0] ** 2) * noise


@pytest.mark.few(4)
@named
def test_of_a_known_image_exactly_the_right_noise_is_left_after_every_number_of_steps(sampler):
    """With x0 known no method errs: after each step x - x0 is noise of deviation sigma, down to the last."""
    for n in (3, 20):
        rows = sampler.steps(gaussian.SCHEDULE, n)
        x = np.asarray(run(rows, start(rows, 0.0, 0.7), 0.0, 0.7))
        want = float(rows.sigma_next[-1])
        assert x.std() == pytest.approx(want, rel=0.03)  # three deviations of a deviation's estimate
        assert x.mean() == pytest.approx(0.7, abs=4 * want / SIDE)


@pytest.mark.few(3)
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


@pytest.mark.few(6)
@pytest.mark.parametrize("sampler", OTHERS, ids=lambda s: type(s).__name__)
def test_of_a_known_image_the_right_noise_is_left_by_samplers_with_churn_or_several_calls(sampler):
    known = gaussian.Gaussian(mean=0.7, deviation=0.0)
    for n in (3, 9):
        rows = sampler.steps(gaussian.SCHEDULE, n)
        x = 0.7 + first_sigma(rows)[0] * draw_noise(KEYS, START, 0, (64, 64, 1))
        x = gaussian.run(sampler, rows, x, KEYS, known) * np.sqrt(1 + rows.sigma_next[-1] ** 2)
        want = float(rows.sigma_next[-1])
        assert x.std() == pytest.approx(want, rel=0.04)  # 4096 pixels: three deviations and a half of the estimate
        assert x.mean() == pytest.approx(0.7, abs=4 * want / 64)


# The denoiser of a Gaussian is linear, so what a run makes is linear in the start and in every draw. Image 0 of a batch
# starts at the data's deviation; each other one has one draw alone: the squares sum up to the variance, without chance
DRAWS = 128


@jax.jit
def respond(state, rows, noise):
    def denoise(x, row):
        return 0.36 * x / (0.36 + row.sigma[:, None] ** 2)

    return scan_rows(Linear(), Stateless(denoise), state, repeat(rows, DRAWS + 1), noise)


def variances(sampler, num_steps):
    """Returns the variance of a run's x, for a Gaussian of deviation 0.6 and independent draws, and the exact one."""
    rows = sampler.steps(gaussian.SCHEDULE, num_steps)
    x = np.zeros((DRAWS + 1, 1), np.float32)
    x[0] = np.sqrt(0.36 + first_sigma(rows)[0] ** 2)
    noise = jnp.eye(DRAWS, DRAWS + 1, 1)[..., None]
    state = Linear().init(jnp.asarray(x))
    for part in chunks(rows, 16):
        state = respond(state, part, noise)
    return float((np.asarray(state.x, np.float64) ** 2).sum()), 0.36 + float(rows.sigma_next[-1]) ** 2


@pytest.mark.parametrize(
    "sampler",
    [DPMSolverSDE(solver_type="heun", **LOG), DPMSolverSDE3M(**LOG), DPMSolverSDE3M(eta=0.5, **LOG), ERSDE(**LOG),
     Seeds2(**LOG), Seeds2(r=0.4, eta=0.5, **LOG), Seeds3(**LOG), ResMultistep(eta=1.0, **LOG),
     Heun(s_churn=10.0, **LOG), Restart(**LOG), DPMFast(eta=1.0)],
    ids=lambda s: type(s).__name__,
)  # fmt: skip
def test_the_variance_of_the_data_is_reached_by_more_steps(sampler):
    errors = []
    for n in (10, 40):
        got, want = variances(sampler, n)
        errors.append(abs(got / want - 1))
    assert errors[1] < max(0.03, errors[0] / 3)
    assert errors[1] < 0.1


def test_churn_follows_its_formula_and_its_limits():
    rows = Euler(s_churn=3.0, s_tmin=0.5, s_tmax=5.0, s_noise=1.01, **LOG).steps(gaussian.SCHEDULE, 10)
    _, sigma = Euler(**LOG).grid(gaussian.SCHEDULE, 10)
    gamma = np.where((sigma[:-1] >= 0.5) & (sigma[:-1] <= 5.0), 0.3, 0.0)
    raised = sigma[:-1] * (1 + gamma)
    np.testing.assert_allclose(rows.sigma, raised, rtol=1e-6)
    np.testing.assert_allclose(rows.coef.churn, 1.01 * np.sqrt(raised**2 - sigma[:-1] ** 2), rtol=1e-5)
    assert 0 < np.count_nonzero(gamma) < 10
    most = Euler(s_churn=1e9, **LOG).steps(gaussian.SCHEDULE, 10)
    np.testing.assert_allclose(most.sigma, sigma[:-1] * np.sqrt(2), rtol=1e-6)
    with pytest.raises(ValueError, match="at its start .s_churn 2. or at its end .eta.: set one to 0"):
        Euler(s_churn=2.0, eta=1.0)


def test_a_kept_part_has_the_churned_level_too():
    """`constrain` sets x before churn: then the known part has the noise that the network is called with."""
    sampler = Euler(s_churn=5.0, **LOG)
    rows = sampler.steps(gaussian.SCHEDULE, 8)
    seen = []

    def constrain(x, row):
        jax.debug.callback(lambda sigma: seen.append(float(sigma[0])), row.sigma)
        return x

    state = scan_rows(
        Linear(), Stateless(lambda x, row: x), Linear().init(jnp.ones((1, 1))), repeat(rows, 1), KEYS, constrain
    )
    jax.block_until_ready(state)
    jax.effects_barrier()
    _, sigma = sampler.grid(gaussian.SCHEDULE, 8)
    np.testing.assert_allclose(sorted(seen, reverse=True), sigma[:-1], rtol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "fields", "message"),
    [
        (DPMSolverMultistep, {"quantile": "a"}, "quantile is a finite number; got 'a'"),
        (DPMSolverMultistep, {"lower_order_below": None}, "lower_order_below is a finite number; got None"),
        (Restart, {"automatic": "no"}, "automatic is True or False; got 'no'"),
        (DPM2, {"eta": [1]}, "eta is a finite number; got"),
    ],
)
def test_fields_of_the_wrong_type_are_refused(sampler, fields, message):
    with pytest.raises(ValueError, match=message):
        sampler(**fields)


def test_restart_refuses_returns_without_end():
    with pytest.raises(ValueError, match="times 1000000 and points 3 add 2000000 steps; at most 1000 are possible"):
        Restart(times=1000000, points=3)


def test_an_empty_span_of_churn_is_refused():
    with pytest.raises(ValueError, match="s_tmin is at most s_tmax"):
        Euler(s_churn=3.0, s_tmin=5.0, s_tmax=2.0)
    assert Euler(s_churn=3.0, s_tmin=5.0).s_tmax == 0  # no upper limit
