"""The library's messages about arguments name the command line's flags."""

import pytest

from sdjax.scripts.main import main
from sdjax.scripts.shared.wording import in_flags


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("name one by variant=", "name one by --variant"),
        ("say prediction=v to skip the question", "say --prediction v to skip the question"),
        ("as variant='non_ema'", "as --variant non_ema"),
        ("give one by vae= (--vae on the command line)", "give one by --vae"),
        ("config=sd1 says that it predicts v", "--config sd1 says that it predicts v"),
        ("its depth network by depth=", "its depth network by --depth-model"),
        ("ema='yes' was asked for", "--ema yes was asked for"),
        ("/data/config=3/x.ckpt: no such file", "/data/config=3/x.ckpt: no such file"),
        ("/data/a config.ckpt: eta=1", "/data/a config.ckpt: eta=1"),
        ("(by vae=): it is", "(by --vae): it is"),
    ],
)
def test_arguments_become_flags(said, wanted):
    assert in_flags(said) == wanted


def test_training_says_its_settings():
    assert in_flags("give one by vae= (--vae on the command line)", "model.{}") == "give one by model.vae"
    assert in_flags("say prediction=v to skip", "model.{}") == "say model.prediction=v to skip"


@pytest.mark.parametrize("command", ["inspect {}", "convert {} {}.out", "txt2img --ckpt {} --prompt a"])
def test_a_commands_error_names_flags(command, tmp_path, capsys):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    words = [word.format(tmp_path) for word in command.split()] + ["--variant", "fp16"]
    assert main(words) == 3
    said = capsys.readouterr().err
    assert "it has no variants, only plain weights: leave --variant out" in said
    assert "variant=" not in said
