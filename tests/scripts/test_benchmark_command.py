"""`sdjax benchmark`: a table to paste, its numbers as JSON, and what is refused."""

import json
import types

import jax
import pytest

from sdjax.evaluate import benchmark
from sdjax.scripts.main import main


@pytest.mark.slow
def test_the_table_and_the_file_agree_and_name_no_folder(tmp_path, capsys):
    out = tmp_path / "numbers.json"
    assert main(["benchmark", "--size", "64", "--batch", "2", "--repeats", "1", "--json", str(out)]) == 0
    title, *table = [line for line in capsys.readouterr().out.splitlines() if line]
    found = json.loads(out.read_text())
    assert [(row["size"], row["batch"]) for row in found["results"]] == [(64, 2)]
    assert title.endswith(", float32, builtin")
    assert benchmark.device_name(jax.local_devices()[0]) in title
    for row, line in zip(found["results"], table[2:], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == ["64 x 64", str(row["batch"])]
        assert float(cells[2]) == pytest.approx(row["steps_per_second"], rel=0.01)
        # 50 steps, the text and decoding are a picture's time, or a batch's
        seconds = 50 / row["steps_per_second"] + row["text"] + row["decode"]
        assert float(cells[3]) == pytest.approx(60 * row["batch"] / seconds, rel=0.01)


@pytest.mark.parametrize(
    ("source", "name"),
    [("owner/name", "owner/name"), ("private/model.safetensors", "model.safetensors"), (".", "here")],
)
def test_a_model_is_named_without_its_place(source, name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert benchmark.model_name(types.SimpleNamespace(source=source)) == name


def test_steps_a_second_are_of_steps_alone(monkeypatch):
    """A clock that only pictures move: 0.2 s for every step, and 3 s for what is around them."""
    now, made = [0.0], []

    def picture(pipe, prompts, *, num_steps, **options):
        made.append((len(prompts), num_steps))
        now[0] += 3 + 0.2 * num_steps

    monkeypatch.setattr(benchmark, "text_to_image", picture)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
    nothing = lambda *args, **options: None  # noqa: E731
    pipe = types.SimpleNamespace(noise=nothing, encode_prompt=nothing, decode=nothing)
    result = benchmark.measure(pipe, 64, 3, repeats=2)
    assert result.steps_per_second == pytest.approx(5.0)
    assert {batch for batch, _ in made} == {3}
    assert (result.compile, result.text, result.decode) == (0, 0, 0)


@pytest.mark.parametrize(
    ("flags", "status", "sentence"),
    [
        (["--size", "60"], 2, "height is a multiple of 8 from 64 to 2048; got 60"),
        (["--ckpt", "nowhere.safetensors"], 3, "nowhere.safetensors"),
        (["--random", "sd9"], 2, "sd9"),
    ],
)
def test_bad_input_is_one_sentence(flags, status, sentence, capsys):
    assert main(["benchmark", "--repeats", "1", *flags]) == status
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("sdjax benchmark: ")
    assert sentence in said
