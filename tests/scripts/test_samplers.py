"""`sdjax samplers`, and the flags that take names of other tools."""

import pytest

from sdjax import names
from sdjax.samplers import SAMPLERS, make_schedule
from sdjax.scripts.main import main


def test_the_list_has_every_name(capsys) -> None:
    assert main(["samplers"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for own, method in names.SAMPLERS.items():
        assert own in out
        assert all(" ".join(name.split()) in out for tool in names.TOOLS for name in method.names.of(tool))
    assert all(own in out for own in names.SCHEDULES)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("DPM++ 2M Karras", ["sampler dpmpp_2m with the schedule karras", "end = 'zero'"]),
        ("gits", ["schedule gits", "coeff = 1.2"]),
        ("exponential", ["schedule exponential", "sigma_min = None"]),
        ("DDIM", ["sampler ddim", "eta = 0.0", "schedule ddim_uniform"]),
    ],
)
def test_one_name_shows_options(name, said, capsys) -> None:
    assert main(["samplers", name]) == 0
    out = capsys.readouterr().out
    assert [text for text in said if text not in out] == []


def test_an_unknown_name_is_refused(capsys) -> None:
    assert main(["samplers", "karas"]) == 2
    assert "the nearest known ones are karras" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "spacing", "sampler"),
    [
        (
            ["--sampler", "DPM++ 2M Karras", "--schedule-option", "rho=5"],
            make_schedule("karras", {"rho": 5}),
            "dpmpp_2m",
        ),
        (["--sampler", "dpmpp_2m", "--schedule", "karras"], "karras", "dpmpp_2m"),
        (["--sampler", "Euler a", "--schedule", "SGM Uniform"], make_schedule("sgm_uniform"), "euler_ancestral"),
        (["--sampler", "dpm++2m", "--schedule", "discrete"], make_schedule("normal"), "dpmpp_2m"),
        (["--schedule", "timesteps=900,300"], make_schedule([900, 300]), "ddim"),
    ],
)
def test_flags_take_names_of_other_tools(fake, flags, spacing, sampler) -> None:
    assert main(["txt2img", "--ckpt", "model.ckpt", "--n_iter", "1", *flags]) == 0
    made = fake.made[0]["sampler"]
    assert made.spacing == spacing
    assert type(made) is type(SAMPLERS[sampler]())
    assert fake.made[0]["num_steps"] == (2 if "timesteps=900,300" in flags else 50)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--schedule karas", "unknown schedule 'karas'; the nearest known ones are karras"),
        ("--schedule-option rho=5", "--schedule-option has no effect without --schedule"),
        ("--schedule karras --schedule-option rho", "--schedule-option is NAME=VALUE"),
        ("--schedule karras --schedule-option =5", "--schedule-option is NAME=VALUE; got '=5'"),
        ("--schedule karras --schedule-option rho=5 --schedule-option rho=6", "rho is given twice"),
        ("--schedule karras --sampler-option spacing=even", "say the same thing"),
        ("--schedule sigmas=14,1,0 --steps 3", "--steps has no effect with --schedule sigmas=...: the list decides"),
        ("--schedule timesteps=a,b", "as timesteps=999,700,300; got 'a,b'"),
        ("--schedule sigmas=3,1,0 --sampler-option end=sigma_min", "the last sigma is the end"),
        ("--compat diffusers --schedule sigmas=3,1,0", "one of karras, exponential, beta, logSNR, leading"),
        ("--schedule sigmas=1,2", "sigmas are 2 to 10001 falling numbers"),
        ("--sampler dpm_solver_singlestep --schedule karras", "takes spacing time_uniform"),
        ("--zero-terminal-snr webui", "--zero-terminal-snr"),
    ],
)
def test_wrong_schedules_are_refused(fake, flags, said, capsys) -> None:
    try:
        status = main(["txt2img", "--ckpt", "model.ckpt", *flags.split()])
    except SystemExit as end:
        status = end.code
    assert status == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) <= 2
