"""The manual's notebook runs from top to bottom."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[1] / "docs/tutorial.md"


def code_cells(text: str) -> list[str]:
    """Returns the source of a text notebook's code cells."""
    return re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_tutorial_runs_from_top_to_bottom(tmp_path: Path) -> None:
    cells = code_cells(TUTORIAL.read_text(encoding="utf-8"))
    assert len(cells) > 10
    script = tmp_path / "tutorial.py"
    script.write_text("\n".join(cells), encoding="utf-8")
    environment = {
        name: value for name, value in os.environ.items() if name != "XLA_FLAGS"
    }  # one device, as users have
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "largest difference: " in done.stdout
