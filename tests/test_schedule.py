"""The noise schedule: published values, conversions, and that targets and predictions belong together."""

import numpy as np
import pytest

from sdjax.config import ScheduleConfig
from sdjax.schedule import INTERPOLATIONS, PREDICTIONS, ZERO_SNR_ALPHA, NoiseSchedule, betas

STABLE = NoiseSchedule()
UPSCALER = NoiseSchedule(ScheduleConfig(beta_start=1e-4, beta_end=2e-2))
COSINE = NoiseSchedule(ScheduleConfig(kind="squaredcos"))
ZERO = NoiseSchedule(ScheduleConfig(prediction="v", zero_terminal_snr=True))


@pytest.mark.parametrize(
    ("schedule", "values"),
    [  # of the reference's tables in float64
        (STABLE, {0: 0.99915, 1: 0.998296028, 500: 0.276332684, 999: 0.0046600985}),
        (UPSCALER, {0: 0.9999, 500: 0.331274580, 999: 0.0007334125}),
        (COSINE, {0: 0.9999587158, 50: 0.9917246847, 500: 0.4922851725}),
    ],
)
def test_alphas_cumprod_are_the_releases(schedule, values):
    for timestep, value in values.items():
        assert schedule.alphas_cumprod[timestep] == pytest.approx(value, rel=1e-7)  # digits that were printed
    assert schedule.alphas_cumprod.dtype == np.float64
    assert (np.diff(schedule.alphas_cumprod) < 0).all()


def test_sigmas_are_the_releases():
    assert STABLE.sigmas[0] == pytest.approx(0.0291672, rel=1e-5)
    assert STABLE.sigmas[-1] == pytest.approx(14.6146412, rel=1e-7)
    assert UPSCALER.sigmas[-1] == pytest.approx(36.9119120, rel=1e-7)


def test_linear_betas_are_linear_and_scaled_ones_have_linear_roots():
    linear = betas(ScheduleConfig(kind="linear"))
    assert np.ptp(np.diff(linear)) < 1e-15
    assert np.ptp(np.diff(np.sqrt(betas(ScheduleConfig())))) < 1e-15
    np.testing.assert_allclose(linear[[0, -1]], [0.00085, 0.012])


def test_zero_terminal_snr_keeps_the_start_and_ends_in_noise():
    assert ZERO.alphas_cumprod[0] == pytest.approx(STABLE.alphas_cumprod[0], rel=1e-12)
    assert ZERO.alphas_cumprod[-1] == ZERO_SNR_ALPHA
    # In between sqrt(a) is the old one, shifted and stretched: differences keep their proportions
    new, old = np.diff(np.sqrt(ZERO.alphas_cumprod[:-1])), np.diff(np.sqrt(STABLE.alphas_cumprod[:-1]))
    np.testing.assert_allclose(new / old, new[0] / old[0], rtol=1e-9)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_timestep_inverts_sigma_between_and_beyond_the_timesteps(interpolation):
    timesteps = np.array([-0.2, 0.0, 0.3, 17.0, 500.5, 998.9, 999.0])
    sigma = STABLE.sigma(timesteps, interpolation)
    np.testing.assert_allclose(STABLE.timestep(sigma, interpolation), timesteps, atol=1e-8)
    whole = np.arange(1000)
    np.testing.assert_allclose(STABLE.sigma(whole, interpolation), STABLE.sigmas, rtol=1e-12)


def test_halfway_between_timesteps_each_interpolation_is_linear_in_its_own_measure():
    a = STABLE.alphas_cumprod
    low, high = STABLE.sigmas[[10, 11]]
    assert STABLE.sigma(10.5, "sigma") == pytest.approx((low + high) / 2, rel=1e-12)
    assert STABLE.sigma(10.5, "log_sigma") == pytest.approx(np.sqrt(low * high), rel=1e-12)
    middle = np.sqrt(a[10] * a[11])  # log alpha linear: alphas_cumprod's geometric mean
    assert STABLE.sigma(10.5) == pytest.approx(np.sqrt((1 - middle) / middle), rel=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_from_the_target_of_a_noisy_image_the_image_comes_back(prediction):
    schedule = NoiseSchedule(ScheduleConfig(prediction=prediction))
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal((2, 3, 4, 5, 2)).astype(np.float32)
    timestep = np.array([0, 400, 999])
    noisy, target = schedule.add_noise(x0, noise, timestep), schedule.target(x0, noise, timestep)
    sigma = schedule.sigmas[timestep].reshape(3, 1, 1, 1)
    of_x, of_out = PREDICTIONS[prediction].x0(sigma)
    got = of_x * np.asarray(noisy) * np.sqrt(1 + sigma**2) + of_out * np.asarray(target)
    # epsilon loses what sigma, 14.6 at the end, multiplies its rounding by
    np.testing.assert_allclose(got, x0, atol=2e-5)


def test_a_noisy_image_has_unit_variance_and_the_schedules_share_of_noise():
    x0, noise = np.ones((1, 2, 2, 1), np.float32), np.zeros((1, 2, 2, 1), np.float32)
    for timestep in (0, 999):
        share = np.asarray(STABLE.add_noise(x0, noise, np.array([timestep])))[0, 0, 0, 0]
        rest = np.asarray(STABLE.add_noise(noise, x0, np.array([timestep])))[0, 0, 0, 0]
        assert share == pytest.approx(np.sqrt(STABLE.alphas_cumprod[timestep]), rel=1e-6)
        assert share**2 + rest**2 == pytest.approx(1, rel=1e-6)


def test_v_is_its_papers():
    """v = sqrt(a) noise - sqrt(1 - a) x0 (Salimans and Ho 2022)."""
    schedule = NoiseSchedule(ScheduleConfig(prediction="v"))
    a = schedule.alphas_cumprod[300]
    got = schedule.target(np.float32([[[[2.0]]]]), np.float32([[[[3.0]]]]), np.array([300]))
    assert float(np.asarray(got).item()) == pytest.approx(np.sqrt(a) * 3 - np.sqrt(1 - a) * 2, rel=1e-6)
