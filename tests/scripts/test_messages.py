"""Messages of the command line: help in every spelling, the nearest flag, names of flags, missing devices."""

import importlib
from pathlib import Path

import pytest
from test_main import run_python

from sdjax import names
from sdjax.scripts import main as cli
from sdjax.scripts.shared import failures, wording
from sdjax.scripts.shared.parser import nearest_flag
from sdjax.spelling import nearest
from sdjax.storage.files import taken

POSITIONAL = {"watermark": ["a.png"], "convert": ["a", "b"], "inspect": ["a"]}


def ended(argv: list[str], capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    """Returns the exit status of a command line that ends while it is read, and what it printed."""
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    return end.value.code, *capsys.readouterr()


@pytest.mark.parametrize("argv", [[], ["help"], ["--help"], ["-h"], ["help", "--help"]], ids=" ".join)
def test_help_of_the_whole_in_every_spelling(argv: list[str], capsys: pytest.CaptureFixture) -> None:
    status, out, err = ended(argv, capsys)
    assert (status, err) == (0, "")
    assert "COMMAND" in out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_in_every_spelling(name: str, capsys: pytest.CaptureFixture) -> None:
    said = [ended(argv, capsys) for argv in ([name, "--help"], ["help", name], [name, "help"], [name, "-h"])]
    assert said[0][0] == 0
    assert all(one == said[0] for one in said)


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["txt2im"], "did you mean txt2img?"), (["TXT2IMG"], "did you mean txt2img?"),
        (["help", "convrt"], "did you mean convert?"), (["evaluate_builtin"], "did you mean evaluate-builtin?"),
        (["--versoin"], "did you mean --version?"), (["--steps", "5"], "a command comes first"),
        (["nonsense"], "no command 'nonsense'"),
    ],
)  # fmt: skip
def test_what_is_no_command_gets_the_nearest(argv: list[str], hint: str, capsys: pytest.CaptureFixture) -> None:
    status, out, err = ended(argv, capsys)
    assert (status, out) == (2, "")
    assert hint in err
    assert len(err.splitlines()) <= 2


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_errors_of_usage_are_two_lines_with_the_nearest_flag(name: str, capsys: pytest.CaptureFixture) -> None:
    status, out, err = ended([name, *POSITIONAL.get(name, []), "--debgu"], capsys)
    assert (status, out) == (2, "")
    assert "--debug" in err
    assert len(err.splitlines()) <= 2
    assert "usage:" not in err


FLAGS = [
    ("--stpes 5", "unrecognized arguments: --stpes; did you mean --steps?"),
    ("--num_inference_steps 5", "--steps"),
    ("--guidance_scale 5", "--scale"),
    ("--height 64", "--H"),
    ("--width=64", "--W"),
    ("--negative_prompt a", "negative-p"),
    ("--sampler eulr", "unknown sampler 'eulr'; the nearest known ones are euler"),
    ("--dtype floa32", "did you mean float32?"),
    ("--steps 7,5", "expected a whole number from 1 up; got '7,5'"),
    ("--scale 7,5", "expected a number; got '7,5' (with a"),
    ("--guidance-rescale 0,7", "expected a number from 0 to 1; got '0,7' (with a"),
    ("--steps many", "argument --steps"),
    ("--seed 1.5", "expected a whole number; got '1.5'"),
    ("--H big", "whole number"),
    ("--prompt --steps 5", "--prompt=VALUE"),
    ("--seed", "expected one argument"),
    ("a cat", "quotation marks"),
    ("--hires-strength nan", "--hires-strength"),
    ("--background 1,2", "--background"),
]


@pytest.mark.parametrize(("flags", "said"), FLAGS, ids=[flags for flags, _ in FLAGS])
def test_wrong_flags_and_values_are_explained(flags: str, said: str, capsys: pytest.CaptureFixture) -> None:
    command = "img2img --init-img a.png" if "background" in flags else "txt2img"
    status, out, err = ended([*command.split(), *flags.split()], capsys)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) <= 2


@pytest.mark.parametrize("value", ["-blurry", "-blurry, ugly", "-1", "- a", "-b=c", "(-)"])
@pytest.mark.parametrize("flag", ["--prompt", "--negative-prompt", "--outdir", "--watermark"])
def test_a_value_may_begin_with_a_dash(flag: str, value: str) -> None:
    parser = importlib.import_module("sdjax.scripts.txt2img").make_parser()
    name = flag.strip("-").replace("-", "_")
    assert getattr(parser.parse_args([f"{flag}={value}"]), name) == value
    args = parser.parse_args([flag, value, "--steps", "3"])
    assert (getattr(args, name), args.steps) == (value, 3)


def test_python_m_sdjax_is_the_command() -> None:
    result = run_python("-m", "sdjax", "--version")
    assert (result.returncode, result.stdout[:6]) == (0, "sdjax ")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["version"], "did you mean --version?"),
        (["convert", "-x", "y"], "unrecognized arguments: -x"),
        (["inpaint", "-prompt", "x"], "did you mean --prompt?"),
    ],
)
def test_what_is_no_flag_is_said_before_what_lacks(argv: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    status, _, err = ended(argv, capsys)
    assert status == 2
    assert said in err


def test_two_dashes_are_a_value_behind_an_equals_sign() -> None:
    parser = importlib.import_module("sdjax.scripts.txt2img").make_parser()
    assert parser.parse_args(["--prompt=--", "--sampler=ddim"]).prompt == "--"


def test_the_model_inside_is_converted_and_inspected_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["inspect", "builtin"]) == 0
    assert "builtin (by config.json)" in capsys.readouterr().out
    assert cli.main(["convert", "builtin", "out.safetensors"]) == 0
    assert Path("out.safetensors").is_file()
    assert cli.main(["convert", "builtin-inpainting", "out"]) == 3
    assert "sdjax.load" in capsys.readouterr().err
    Path("builtin").mkdir()  # what is here goes first
    assert cli.main(["inspect", "builtin"]) == 3


def flags_of(name: str) -> list[str]:
    """Returns a command's flags."""
    parser = importlib.import_module(f"sdjax.scripts.{cli.COMMANDS[name][0]}").make_parser()
    return [flag for action in parser._actions for flag in action.option_strings]


TRANSLATED = [
    ("txt2img", "num_steps is a whole number from 1 to 1000; got 0", "--steps is a whole"),
    ("txt2img", "guidance_scale is a finite number; got nan", "--scale is a finite"),
    ("txt2img", "height is a multiple of 8 from 64 to 2048; got 100", "--H: height is a multiple"),
    ("txt2img", "the variants are fp16: pass variant=", "pass --variant"),
    ("txt2img", "give one by vae= (--vae on the command line)", "give one by --vae"),
    ("txt2img", "a lower guidance_scale burns out less", "a lower --scale burns"),
    ("txt2img", "eta is a finite number from 0 up; got -1.0", "--ddim_eta: eta is"),
    ("img2img", "strength is a number from 0 to 1; got 2", "--strength is"),
    ("inpaint", "padding is a whole number of pixels from 0 up; got -1", "--padding is"),
    ("animate", "frames is at least the number of keyframes, 3; got 2", "--frames is"),
    ("upscale", "noise_level is a whole number from 0 to 350; got 400", "noise"),
    *(
        (command, str(taken("a.png")), f"a.png exists; choose another name{end}")
        for command, end in (("convert", ", or overwrite it with --overwrite"), ("hint", ""))
    ),
    # What is no argument stays
    ("txt2img", "order of the sampler dpm_solver is odd", "order of the sampler dpm_solver is odd"),
    ("txt2img", "picture 0 is one flat colour", "picture 0 is one flat colour"),
    ("txt2img", "my_height=x/num_steps.png is no picture", "my_height=x/num_steps.png is no picture"),
    ("train", "the configuration has no num_steps", "the configuration has no "),
]


@pytest.mark.parametrize(("command", "text", "said"), TRANSLATED, ids=[text for _, text, _ in TRANSLATED])
def test_pythons_names_are_said_as_flags(command: str, text: str, said: str) -> None:
    shown = wording.translate(text, flags_of(command))
    assert said in shown
    assert "overwrite=" not in shown


def test_the_tables_name_flags_that_some_command_has() -> None:
    known = {flag for name in cli.COMMANDS for flag in flags_of(name)}
    for name, ours in wording.FLAGS_OF_TASKS.items():
        assert {flag.partition(" ")[0] for flag in ours} & known, name


def test_the_nearest_is_a_close_one() -> None:
    assert nearest("eulr", names.SAMPLERS) == "euler"
    assert nearest("zzz", names.SAMPLERS) is None
    assert nearest_flag("--cfg", ["--scale", "--steps"]) == "--scale"


JAX = [
    (
        "cuda",
        RuntimeError("Unable to initialize backend 'cuda': no plugin\nmore"),
        "JAX_PLATFORMS=cuda asks for 'cuda'",
    ),
    ("cdua", RuntimeError("Unable to initialize backend 'cdua': not in the list"), "did you mean cuda?"),
    ("", RuntimeError("Unknown backend: 'gpu' requested"), "JAX was asked for 'gpu'"),
]


@pytest.mark.parametrize(("asked", "error", "said"), JAX, ids=[said for _, _, said in JAX])
def test_a_device_that_is_not_there_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, asked: str, error: Exception, said: str
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    monkeypatch.delenv("JAX_PLATFORM_NAME", raising=False)
    status, sentence = failures.describe(error)
    assert status == 2
    assert said in sentence
    assert "report" not in sentence
    assert "\n" not in sentence


def test_hidden_gpus_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hides all GPUs" in failures.describe(RuntimeError("Unable to initialize backend 'cuda': x"))[1]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'optax'", name="optax"), "pip install '.[train]'"),
        (ModuleNotFoundError("No module named 'orbax.checkpoint'", name="orbax.checkpoint"), "pip install '.[train]'"),
        (ModuleNotFoundError("No module named 'flax'", name="flax"), "pip install ."),
        (ImportError("cannot import name 'x' from 'jax.core'"), "do not fit together"),
        (RuntimeError("jaxlib version 0.4 is newer than and incompatible with jax 0.3"), "do not fit together"),
    ],
)
def test_packages_that_are_missing_or_do_not_fit_are_said(error: Exception, said: str) -> None:
    status, sentence = failures.describe(error)
    assert (status, said in sentence) == (1, True)
    assert "report" not in sentence


def test_a_flag_that_xla_does_not_know_is_said(tmp_path: Path) -> None:
    # XLA itself would end the process by a signal
    result = run_python("-m", "sdjax", "inspect", str(tmp_path / "none"), XLA_FLAGS="--xla_no_such_flag=1")
    assert result.returncode == 2
    assert "XLA_FLAGS holds --xla_no_such_flag=1" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "cdua", "tpu,cpu"])
def test_jax_platforms_that_are_not_there(platform: str) -> None:
    result = run_python("-m", "sdjax", "txt2img", "--ckpt", "builtin", "--skip_save", JAX_PLATFORMS=platform)
    assert result.returncode == 2
    assert f"JAX_PLATFORMS={platform} asks for" in result.stderr
