"""Schedules of requests: by name, by options, as lists, one for each picture; rescaling to zero terminal SNR."""

import jax
import numpy as np
import pytest

import sdjax
from sdjax.samplers import make_schedule
from sdjax.schedule import LAST_ALPHAS, NoiseSchedule
from sdjax.tasks.computing import Computing
from sdjax.tasks.expand import expand
from sdjax.tasks.make_batch import batch_of
from sdjax.tasks.request import Request

import models
from checks import count_compilations, near

FEW = {"num_steps": 4, "devices": jax.devices()[:1], "guidance_scale": 3.0}
SCHEDULES = ["karras", "SGM Uniform", [14.0, 5.0, 1.0, 0.2, 0.0], make_schedule("beta", {"alpha": 0.5})]


def rows(**options):
    """Returns the rows of a picture with these options on the tiny model."""
    batch = batch_of(models.pipeline(), [Request(sampler="euler", **options)], Computing())
    return batch.starts[0].rows


def test_every_picture_may_have_its_own_schedule_in_one_program():
    pipe = models.pipeline()
    together = sdjax.text_to_image(pipe, "a cat", seed=[1] * 4, sampler="euler", schedule=SCHEDULES, **FEW)
    assert len({image.tobytes() for image in together}) == 4
    alone = sdjax.text_to_image(pipe, "a cat", seed=1, sampler="euler", schedule=SCHEDULES[2], **FEW)
    near(alone[0], together[2])
    other = {"schedule": ["simple", "kl_optimal", "normal", "gits"], "num_steps": [3, 4, 2, 4]}
    assert count_compilations(lambda: sdjax.text_to_image(pipe, "a", seed=[1] * 4, sampler="heun", **FEW | other)) == 0


def test_a_list_of_numbers_is_one_schedule_for_all_pictures():
    requests = expand(["a", "b"], schedule=[14.0, 5.0, 0.0])
    assert [one.schedule.values for one in requests] == [(14, 5, 0)] * 2
    both = expand(["a", "b"], schedule=[[14.0, 5.0, 0.0], [900, 300]])
    assert [one.schedule.name for one in both] == ["sigmas", "timesteps"]


def test_the_list_decides_the_number_of_steps():
    np.testing.assert_allclose(rows(schedule=[14.0, 5.0, 1.0, 0.0], num_steps=50).sigma, [14, 5, 1])
    np.testing.assert_allclose(rows(schedule=(900, 300)).timestep, [900, 300])
    request = batch_of(models.pipeline(), [Request(schedule=[900, 300])], Computing()).requests[0]
    assert request.num_steps == 2


def test_names_and_options_of_a_schedule_make_the_steps():
    noise = NoiseSchedule()
    got = rows(schedule="karras", schedule_options={"rho": 5, "sigma_min": 0.1}, num_steps=6).sigma
    want = make_schedule("karras", {"rho": 5, "sigma_min": 0.1}).grid(noise, 6, end="zero").sigma[:-1]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    named = batch_of(models.pipeline(), [Request(sampler="Euler Karras", num_steps=6)], Computing()).starts[0].rows
    np.testing.assert_allclose(named.sigma, rows(schedule="karras", num_steps=6).sigma, rtol=1e-6)


def test_rescaling_to_zero_terminal_snr_is_of_the_request():
    noise = NoiseSchedule(last_alpha=LAST_ALPHAS["a1111"])
    got = rows(schedule="leading", num_steps=10, zero_terminal_snr="a1111")
    np.testing.assert_allclose(got.sigma, noise.sigmas[got.timestep.astype(int)], rtol=1e-6)
    assert not np.allclose(got.sigma, rows(schedule="leading", num_steps=10).sigma, rtol=0.01)
    assert Request(zero_terminal_snr=True).zero_terminal_snr == "diffusers"
    assert Request(zero_terminal_snr=False).zero_terminal_snr is None


def test_a_network_that_predicts_epsilon_cannot_start_from_pure_noise():
    with pytest.raises(ValueError, match="start at pure noise, where a network that predicts epsilon says nothing"):
        rows(schedule="normal", zero_terminal_snr=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": "karras", "spacing": "even"}, "give either schedule or spacing, not both"),
        ({"schedule_options": {"rho": 5}}, "schedule_options has no effect without schedule"),
        ({"schedule": "karras", "schedule_options": 5}, "schedule_options is a dictionary"),
        ({"zero_terminal_snr": "webui"}, "zero_terminal_snr is True, False or one of diffusers, a1111, comfyui"),
        ({"zero_terminal_snr": 1.0}, "zero_terminal_snr is True, False or one of"),
        ({"schedule": "karas"}, "unknown schedule 'karas'; the nearest known ones are karras"),
    ],
)
def test_wrong_schedules_of_requests_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Request(**options)
