"""The manual's notebook runs from top to bottom."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sdjax import builtin, convert
from sdjax.config import ModelConfig, TextConfig

import models

TUTORIAL = Path(__file__).parents[1] / "docs/tutorial.md"


def code_cells(text: str) -> list[str]:
    """Returns the source of a text notebook's code cells."""
    return re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The built-in model's folder; where this copy has none, one of random weights and its size."""
    if (builtin.FOLDER / "config.json").is_file():
        return builtin.FOLDER
    from sdjax.configs.builtin import get_config

    config = ModelConfig.from_dict(get_config().model.to_dict())
    text = TextConfig()  # the tokenizer is CLIP's then
    small = dataclasses.replace(
        config.text, vocab_size=text.vocab_size, bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )  # fmt: skip
    config = dataclasses.replace(config, text=small)
    params = models.random_params(config)
    convert.save(config, params, tmp_path / "model", to="native", tokenizer=models.pipeline().tokenizer)
    return tmp_path / "model"


@pytest.mark.slow
def test_the_tutorial_runs_from_top_to_bottom(model: Path, tmp_path: Path) -> None:
    cells = code_cells(TUTORIAL.read_text(encoding="utf-8"))
    assert len(cells) > 10
    start = f"import pathlib\nfrom sdjax import builtin\nbuiltin.FOLDER = pathlib.Path({str(model)!r})\n"
    script = tmp_path / "tutorial.py"
    script.write_text(start + "\n".join(cells), encoding="utf-8")
    environment = {
        name: value for name, value in os.environ.items() if name != "XLA_FLAGS"
    }  # one device, as users have
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "largest difference: " in done.stdout
