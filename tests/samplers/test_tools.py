"""How other tools run their samplers: the timesteps told to the network, the start, the counting of strength."""

import json
import math

import numpy as np
import pytest
from parity_sched import begin

from sdjax.samplers import tools
from sdjax.samplers.tools import recipe
from sdjax.schedule import NoiseSchedule

from reference import golden

NOISE = NoiseSchedule()
GOLDEN = golden("tool_calls")
CASES = [json.loads(line) for line in str(GOLDEN["labels"]).split("\n")]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda i: "-".join(map(str, CASES[i][:4])))
def test_the_network_gets_the_tools_timesteps(number):
    """Recorded from AUTOMATIC1111 and ComfyUI, float32: a fraction is known to about 1e-3, a whole one exactly."""
    tool, sampler, schedule, num_steps, options = CASES[number]
    _, start = begin(tool, sampler, schedule, num_steps, options)
    want = GOLDEN["told"][number]
    want = want[~np.isnan(want)]
    np.testing.assert_allclose(start.rows.timestep, want, atol=0 if tool == "comfyui" else 5e-3)


def test_comfyuis_start_depends_on_the_first_sigma():
    highest = NOISE.sigmas[-1]
    for sampler, schedule, whole in (("euler", "normal", True), ("euler", "ddim_uniform", False)):
        start = recipe("comfyui", sampler, schedule).begin(NOISE, 10)
        sigma = float(start.rows.sigma[0])
        assert start.of_noise == pytest.approx(math.hypot(1, sigma) if whole else sigma, rel=1e-6)
        assert (sigma == pytest.approx(highest)) == whole
        assert start.of_x0 == 0


def test_a1111_counts_strength_in_its_three_ways():
    def steps(sampler, strength, **more):
        start = recipe("a1111", sampler).begin(NOISE, 20, strength=strength, **more)
        return len(start.rows.index)

    assert steps("Euler", 0.5) == 11  # t_enc + 1
    assert steps("DDIM", 0.5) == 9  # t_enc - 1
    assert steps("Euler", 0.5, exact_steps=True) == 20
    assert steps("Euler", 1.0) == 20  # min(strength, 0.999)


def test_comfyui_makes_the_steps_asked_for_at_any_denoise():
    for denoise in (0.1, 0.3, 0.5, 0.99):
        assert len(recipe("comfyui", "euler", "karras").begin(NOISE, 10, strength=denoise).rows.index) == 10
    assert recipe("comfyui", "euler", "karras").begin(NOISE, 10, strength=0.0).rows is None
    assert len(recipe("comfyui", "euler", "gits").begin(NOISE, 10, strength=0.5).rows.index) == 5  # its nodes
    assert len(recipe("diffusers", "EulerDiscreteScheduler").begin(NOISE, 10, strength=0.55).rows.index) == 5


def test_names_are_those_of_the_tool():
    assert recipe("comfyui", "ddim", "normal").sampler.eta == 0  # Euler's there
    assert recipe("a1111", "DPM++ 2M").schedule.name == "karras"  # its automatic schedule type
    assert recipe("a1111", "DPM2").schedule.discard_penultimate
    assert recipe("a1111", "Euler", "Beta").schedule.of == "sigma"
    assert recipe("comfyui", "euler", "beta").schedule.of == "timestep"
    assert recipe("a1111", "Euler", schedule_settings={"rho": 5}).schedule.name == "normal"  # ignores rho, as there
    assert recipe("a1111", "DDIM").on_timesteps


def test_a1111s_unguided_calls_follow_its_settings():
    how = recipe("a1111", "Euler", "Karras")
    start = how.begin(NOISE, 10)
    below = start.rows.sigma < 2
    every = how.guided_calls(start, num_steps=10, minimum_sigma=2.0, every_step=True)
    np.testing.assert_array_equal(every, ~below)
    second = how.guided_calls(start, num_steps=10, minimum_sigma=2.0)
    np.testing.assert_array_equal(second, ~(below & (np.arange(10) % 2 == 1)))
    np.testing.assert_array_equal(how.guided_calls(start, num_steps=10, skip_early=0.25), np.arange(10) > 2)


def test_a_share_of_the_schedule_is_a_sigma():
    assert tools.comfyui_percent_to_sigma(NOISE, 0.0) > 1e8
    assert tools.comfyui_percent_to_sigma(NOISE, 1.0) == 0
    assert tools.comfyui_percent_to_sigma(NOISE, 1 - 500 / 999) == pytest.approx(NOISE.sigmas[500])


@pytest.mark.parametrize(
    ("arguments", "more", "said"),
    [
        (("webui", "Euler"), {}, "unknown tool 'webui'; the known ones are a1111, comfyui, diffusers, k_diffusion"),
        (("a1111", "DDIM", "Karras"), {}, "A1111's DDIM has timesteps of its own and no schedule type"),
        (("a1111", "Eular"), {}, "unknown sampler 'Eular'; the nearest known ones are euler"),
        (("a1111", "Euler", "Karas"), {}, "unknown schedule 'Karas'; the nearest known ones are karras"),
        (("a1111", "Euler", "Karras"), {"schedule_settings": {"roh": 5}}, "A1111 has no setting roh of schedules"),
        (
            ("comfyui", "euler", "karras"),
            {"settings": {"etta": 1}},
            "the sampler euler has no etta; it has cfg_pp, end, eta",
        ),
        (("comfyui", "euler", "gits"), {"schedule_settings": {"coeff": 2}}, "coeff is 0.8"),
    ],
)
def test_what_a_tool_does_not_have_is_refused(arguments, more, said):
    with pytest.raises(ValueError, match=said):
        recipe(*arguments, **more)
