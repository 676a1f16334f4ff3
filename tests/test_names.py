"""The names of samplers and schedules in every tool, and how they are looked up."""

import pathlib
import runpy

import numpy as np
import pytest

from sdjax import names
from sdjax.samplers import SAMPLERS, SCHEDULES, Coef
from sdjax.samplers.sampler import Sampler
from sdjax.schedule import NoiseSchedule
from sdjax.tasks.resolve import make_sampler

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def test_the_table_has_every_sampler_and_schedule() -> None:
    assert set(names.SAMPLERS) == set(SAMPLERS)
    assert set(names.SCHEDULES) == set(SCHEDULES)


@pytest.mark.parametrize(
    ("spelled", "sampler", "schedule"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"), ("dpmpp_2m", "dpmpp_2m", None), ("dpm++2m", "dpmpp_2m", None),
        ("DPMSolverMultistepScheduler", "dpm_solver", None), ("sample_dpmpp_2m", "dpmpp_2m", None),
        ("DPMSolverMultistepScheduler(use_karras_sigmas=True)", "dpmpp_2m", "karras"),
        ("DPMSolverMultistepScheduler, use_karras_sigmas, algorithm_type='sde-dpmsolver++'", "dpmpp_2m_sde", "karras"),
        ("EulerDiscreteScheduler(timestep_spacing=trailing)", "euler", "trailing"),
        ("k_euler_a", "euler_ancestral", None), ("Euler a", "euler_ancestral", None),
        ("euler a", "euler_ancestral", None), ("dpmpp_2m_k", "dpmpp_2m", "karras"),
        ("k_dpmpp_2m_ka", "dpmpp_2m", "karras"), ("ddim_trailing", "ddim", "trailing"),
        ("DPM2 a", "dpm2_ancestral", None),
        ("LMS Karras", "lms", "karras"), ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("dpm_2_ancestral", "dpm2_ancestral", None), ("KDPM2DiscreteScheduler", "dpm2", None), ("ddim", "ddim", None),
    ],
)  # fmt: skip
def test_names_of_other_tools_mean_ours(spelled, sampler, schedule) -> None:
    assert names.find_sampler(spelled) == (sampler, schedule)


def test_a_tool_may_mean_something_else_by_our_name() -> None:
    assert names.find_schedule("DDIM") == "ddim_uniform"
    assert names.find_schedule("Align Your Steps", "a1111") == "align_your_steps_11"
    assert names.find_schedule("ays", "sd_cpp") == "align_your_steps"
    for spelled, ours in ("SGM Uniform", "sgm_uniform"), ("discrete", "normal"), ("get_sigmas_karras", "karras"):
        assert names.find_schedule(spelled) == ours


def test_every_name_in_the_table_is_found_again() -> None:
    for own, method in names.SAMPLERS.items():
        for tool in names.TOOLS:
            for spelled in method.names.of(tool):
                assert names.find_sampler(spelled, tool).sampler == own, (spelled, tool)
    for own, known in names.SCHEDULES.items():
        for tool in names.TOOLS:
            for spelled in known.of(tool):
                assert names.find_schedule(spelled, tool) == own, (spelled, tool)


def test_no_two_samplers_of_a_tool_have_one_name() -> None:
    for table in ({own: one.names for own, one in names.SAMPLERS.items()}, names.SCHEDULES):
        for tool in names.TOOLS:
            spelled = [names.plain(name) for known in table.values() for name in known.of(tool)]
            assert len(spelled) == len(set(spelled)), tool


@pytest.mark.parametrize(
    ("spelled", "near"),
    [("dpmpp_2n", "dpmpp_2m"), ("Eular", "euler"), ("DPM++ 2N Karas", "dpmpp_2m"), ("hoin", "heun")],
)
def test_an_unknown_name_lists_the_nearest_known_ones(spelled, near) -> None:
    with pytest.raises(ValueError, match=rf"unknown sampler .*; the nearest known ones are .*{near}\b") as caught:
        names.find_sampler(spelled)
    assert str(caught.value).count(",") <= 6


@pytest.mark.parametrize("spelled", ["", "xyzzy", "((((", "\x00", "x" * 5000, "Scheduler(", "_karras", " karras"])
def test_a_name_like_nothing_lists_all(spelled) -> None:
    with pytest.raises(ValueError, match="unknown sampler .*; the (nearest )?known ones are"):
        names.find_sampler(spelled)


def test_options_that_a_name_cannot_say_are_refused() -> None:
    with pytest.raises(ValueError, match="has options that its name cannot say: solver_order=3; write dpm_solver, and"):
        names.find_sampler("DPMSolverMultistepScheduler(solver_order=3)")


def test_names_make_samplers_in_python() -> None:
    noise = NoiseSchedule()
    assert make_sampler("DPM++ 2M Karras", noise) == make_sampler("dpmpp_2m", noise, spacing="karras")
    assert make_sampler("dpm++2m") == SAMPLERS["dpmpp_2m"]()
    assert make_sampler("Euler Karras", noise, spacing="simple").spacing == "simple"  # what is said twice: the argument
    made = make_sampler("EulerDiscreteScheduler")
    assert isinstance(made, Sampler)
    assert made == SAMPLERS["euler"]()


CALLS = {"N": 20, "N + 1": 21, "2N - 1": 39, "3N - 2": 58, "3N - 3": 57}


@pytest.mark.parametrize("name", names.SAMPLERS)
def test_the_network_is_called_as_often_as_the_table_says(name: str) -> None:
    method = names.SAMPLERS[name]
    rows = SAMPLERS[name]().steps(NoiseSchedule(), 20)
    assert len(rows.index) == CALLS.get(method.calls, len(rows.index))
    draws = isinstance(rows.coef, Coef) and bool(np.any(rows.coef.noise))
    assert (method.order == "noise") == draws
    assert method.calls in CALLS or name in ("restart", "dpm_adaptive", "dpm_solver_adaptive")


def test_the_docs_have_the_table() -> None:
    made = runpy.run_path(str(DOCS / "make_sampler_table.py"))["replaced"]
    text = (DOCS / "samplers.md").read_text(encoding="utf-8")
    assert made(text) == text  # `python docs/make_sampler_table.py` writes it
