"""`sdjax tokens`: what it prints, and that it needs no JAX."""

import json
import subprocess
import sys
import typing

import pytest

from sdjax.convert.adapters.kinds import Dora
from sdjax.convert.adapters.load import Alpha0
from sdjax.prompts.emphasis import RULES
from sdjax.prompts.language import SYNTAXES
from sdjax.prompts.padding import PADDINGS
from sdjax.scripts.main import main
from sdjax.scripts.shared import prompt_flags


def test_chunks_weights_and_calls_are_shown(capsys) -> None:
    assert main(["tokens", "a (red:1.3) apple AND [cat:dog:0.5] :0.6", "--steps", "10"]) == 0
    out = capsys.readouterr().out
    assert "prompt 2 of 2, weight 0.6" in out
    assert "    1.3      red\n" in out
    assert "network calls 1 to 6:  cat" in out
    assert "network calls 7 to 10:  dog" in out
    assert out.endswith("cut off: nothing\n")


def test_what_is_cut_is_shown(capsys) -> None:
    assert main(["tokens", "word " * 76 + "end", "--prompt-syntax", "plain"]) == 0
    assert capsys.readouterr().out.endswith("cut off: word end\n")
    assert main(["tokens", "word " * 76 + "end"]) == 0
    assert "chunk 2 of 2: 2 of 75 tokens" in capsys.readouterr().out


def test_json_has_token_ids(capsys) -> None:
    assert main(["tokens", "(a:2)", "--json", "--emphasis", "no_norm"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["prompts"][0]["texts"][0]["chunks"] == [{"tokens": [320], "weights": [2.0]}]
    assert read["emphasis"] == "no_norm"


def test_wrong_options_are_a_sentence(capsys, tmp_path) -> None:
    for flags, said in (
        (["--wildcards", str(tmp_path / "none")], "does not exist"),
        (["--style", "x", "--styles-file", str(tmp_path / "none.csv")], "cannot be read"),
        (["--prompt-syntax", "plain", "--emphasis", "original"], "has no effect"),
    ):
        assert main(["tokens", "a", *flags]) == 2
        assert said in capsys.readouterr().err


def test_the_flags_offer_what_the_library_has() -> None:
    assert set(SYNTAXES) == set(prompt_flags.SYNTAXES)
    assert tuple(RULES) == prompt_flags.EMPHASES
    assert tuple(PADDINGS) == prompt_flags.PADDINGS
    assert typing.get_args(Alpha0) == prompt_flags.ALPHAS_0
    assert typing.get_args(Dora) == prompt_flags.DORAS


@pytest.mark.slow
def test_it_imports_no_jax() -> None:
    code = (
        "import sys; from sdjax.scripts.main import main; main(['tokens', 'a {b|c}']); sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
