"""Settings for each picture: JSON lines in --from-file, and --sweep with its labelled grid and table."""

import csv
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from command_checks import read

import sdjax
from sdjax.samplers import SAMPLERS
from sdjax.scripts.main import main

OUT = Path("outputs/txt2img-samples")


def txt2img(*flags: str) -> int:
    return main(["txt2img", "--ckpt", "model.ckpt", *flags])


def write_lines(*lines: object, name: str = "a.jsonl") -> None:
    Path(name).write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines))


def test_each_line_has_its_own_settings_and_flags_fill_in_the_rest(fake) -> None:
    write_lines(
        {"prompt": "a cat", "steps": 7, "cfg_scale": 3, "sampler": "heun", "seed": 5},
        {"prompt": "a dog", "negative_prompt": "blurry", "sampler": "dpm_solver", "sampler_options": {"order": 3}},
        {"prompt": "an owl", "height": 64},
    )
    assert txt2img("--from-file", "a.jsonl", "--n_iter", "1", "--steps", "9") == 0
    (call,) = fake.made
    assert call["prompts"] == ["a cat", "a dog", "an owl"]
    assert call["seed"] == [5, 43, 44]
    assert call["num_steps"] == [7, 9, 9]
    assert call["guidance_scale"] == [3, None, None]
    assert call["negative_prompt"] == ["", "blurry", ""]
    assert call["sampler"] == [
        SAMPLERS["heun"](),
        dataclasses.replace(SAMPLERS["dpm_solver"](), order=3),
        SAMPLERS["ddim"](),
    ]
    assert call["height"] == [None, None, 64]
    assert call["guidance_rescale"] == 0.0  # no line sets it
    found = [read(OUT / f"samples/0000{i}.png")[1] for i in range(3)]
    assert [(one["sampler"], one["steps"], one["guidance_scale"]) for one in found] == [
        ("heun", 7, 3), ("dpm_solver", 9, 9.0), ("ddim", 9, 9.0)
    ]  # fmt: skip
    assert found[1]["sampler_options"]["order"] == 3
    assert found[1]["negative_prompt"] == "blurry"


def test_json_lines_are_known_by_their_content_too(fake) -> None:
    write_lines({"prompt": "a"}, {"prompt": "b"}, name="prompts.txt")
    assert txt2img("--from-file", "prompts.txt", "--n_iter", "1") == 0
    assert fake.made[0]["prompts"] == ["a", "b"]
    write_lines("{a|b} cat", name="prompts.txt")  # another tool's syntax, not JSON
    assert txt2img("--from-file", "prompts.txt", "--n_iter", "1") == 0
    assert fake.made[1]["prompts"] == ["{a|b} cat"]


def test_lines_without_a_prompt_take_the_flags(fake) -> None:
    write_lines({"seed": 1}, {"seed": 2})
    assert txt2img("--from-file", "a.jsonl", "--prompt", "x", "--n_iter", "1", "--scale", "2") == 0
    assert (fake.made[0]["prompts"], fake.made[0]["seed"]) == (["x", "x"], [1, 2])


WRONG = [
    ("not json", "line 2: not JSON"),
    ({"stepz": 1}, "line 2: unknown setting 'stepz' (did you mean steps?)"),
    ({"prompt": 1}, "line 2: prompt is a text; got 1"),
    ({"sampler": "odd"}, "line 2: unknown sampler 'odd'"),
    ({"pad_contexts": [1]}, "line 2: pad_contexts is one of"),
    ({"styles": 0.5}, "line 2: styles are names"),
    ({"seamless": "(" * 5000}, "(((... (str)"),
    ('{"seed": ' + "9" * 5000 + "}", "line 2: a whole number in it has thousands of digits"),
    ({"sampler": "ddim", "sampler_options": {"order": 2}}, "line 2: the sampler ddim has no order"),
    ({"height": 100}, "line 2: --H: height is a multiple of 8"),
    ({"strength": 0.5}, "line 2: unknown setting 'strength'"),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_wrong_line_is_refused_by_file_and_line_before_loading(fake, capsys, line, said) -> None:
    write_lines({"prompt": "a"}, line)
    assert txt2img("--from-file", "a.jsonl") == 2
    err = capsys.readouterr().err
    assert "a.jsonl" in err
    assert said.replace("--H: ", "") in err.replace("--H: ", "")
    assert len(err.splitlines()) == 1
    assert not fake.loaded


def test_img2img_lines_may_have_a_strength_but_no_size(fake, capsys) -> None:
    from command_checks import write

    write("a.png")
    write_lines({"prompt": "a", "strength": 0.3}, {"prompt": "b"})
    flags = ["img2img", "--ckpt", "model.ckpt", "--init-img", "a.png", "--from-file", "a.jsonl"]
    assert main([*flags, "--strength", "0.5"]) == 0
    assert fake.made[0]["strength"] == [0.3, 0.5]
    found = [read(Path(f"outputs/img2img-samples/samples/0000{i}.png"))[1]["strength"] for i in range(2)]
    assert found == [0.3, 0.5]
    write_lines({"height": 64})
    assert main(flags) == 2
    assert "unknown setting 'height'" in capsys.readouterr().err


def test_a_sweep_makes_all_combinations_with_one_seed(fake, capsys) -> None:
    flags = ["--sweep", "scale=1.5,3", "--sweep", "sampler=ddim,dpmpp_2m,heun", "--n_samples", "4", "--prompt", "x"]
    assert txt2img(*flags) == 0
    (call,) = fake.made  # once: --n_iter is 1 unless it is given
    assert call["seed"] == [42] * 6
    assert call["guidance_scale"] == [1.5, 3] * 3
    assert call["sampler"] == [SAMPLERS[name]() for name in ("ddim", "dpmpp_2m", "heun") for _ in range(2)]
    assert call["at_once"] == 4
    assert capsys.readouterr().out.split()[-2:] == [str(OUT / "grid-0000.png"), str(OUT / "grid-0000.csv")]
    lines = list(csv.reader((OUT / "grid-0000.csv").read_text().splitlines()))
    assert lines[0] == ["file", "scale", "sampler", "seed"]
    assert lines[4] == ["samples/00003.png", "3", "dpmpp_2m", "42"]
    pixels, found = read(OUT / "grid-0000.png")
    assert min(pixels.shape[0] - 3 * 96, pixels.shape[1] - 2 * 96) > 0
    assert found["grid"]["axes"] == ["scale", "sampler"]
    assert read(OUT / "samples/00003.png")[1]["guidance_scale"] == 3


def test_a_sweep_of_several_prompts_and_iterations_has_a_grid_for_each(fake) -> None:
    Path("prompts.txt").write_text("a cat\na dog\n")
    assert txt2img("--from-file", "prompts.txt", "--sweep", "steps=1-3", "--n_iter", "2", "--skip_save") == 0
    assert [call["prompts"] for call in fake.made] == [["a cat"] * 3, ["a dog"] * 3] * 2
    assert [call["seed"] for call in fake.made] == [[seed] * 3 for seed in (42, 43, 44, 45)]
    assert sorted(os.listdir(OUT)) == [f"grid-000{i}.{kind}" for i in range(4) for kind in ("csv", "png")]


def test_sizes_may_be_swept(fake) -> None:
    assert txt2img("--sweep", "H=64,128", "--skip_save") == 0
    assert fake.made[0]["height"] == [64, 128]


SWEEPS = [
    (["--sweep", "stepz=1"], "--sweep: unknown setting 'stepz'"),
    (["--sweep", "steps=1", "--sweep", "num_steps=2"], "one axis for each setting"),
    (["--sweep", "sampler=ddim,odd"], "unknown sampler 'odd'"),
    (["--sweep", "H=100"], "height is a multiple of 8"),
    (["--sweep", "steps=1", "--n_rows", "2"], "--n_rows has no effect with --skip_grid or --sweep"),
    (["--sweep", "prompt_replace=cat,dog", "--prompt", "an owl"], "does not contain 'cat'"),
    (["--sweep", "strength=0.5"], "unknown setting 'strength'"),
]


@pytest.mark.parametrize(("flags", "said"), SWEEPS, ids=[said for _, said in SWEEPS])
def test_a_wrong_sweep_is_refused_before_loading(fake, capsys, flags, said) -> None:
    assert txt2img(*flags) == 2
    assert said in capsys.readouterr().err
    assert not fake.loaded


def test_finished_pictures_of_a_sweep_are_written_when_it_is_interrupted(fake, monkeypatch) -> None:
    def press(pipe: object, prompts: list[str], **options) -> np.ndarray:
        made = fake.text_to_image(pipe, prompts, **options)
        raise sdjax.Interrupted([made[0], None, made[2]])

    monkeypatch.setattr(sdjax, "text_to_image", press, raising=False)
    assert txt2img("--sweep", "scale=2,3,4") == 130
    assert [read(OUT / f"samples/0000{i}.png")[1]["guidance_scale"] for i in range(2)] == [2, 4]


def test_autoguidance_in_a_line_needs_its_weaker_model(fake, capsys) -> None:
    write_lines({"prompt": "a", "guidance": "autoguidance"})
    assert txt2img("--from-file", "a.jsonl") == 2
    assert "name it with --weak-ckpt" in capsys.readouterr().err
    assert fake.made == []
    write_lines({"prompt": "a", "guidance": "apg"})
    Path("weak.ckpt").touch()
    assert txt2img("--from-file", "a.jsonl", "--weak-ckpt", "weak.ckpt") == 2
    assert "--weak-ckpt has no effect without autoguidance" in capsys.readouterr().err


def test_a_schedule_beside_a_samplers_name_that_says_another_gives_a_note(fake, capsys) -> None:
    for schedule, noted in ("beta", True), ("Karras", False):
        assert txt2img("--prompt", "a", "--sampler", "DPM++ 2M Karras", "--schedule", schedule, "--n_iter", "1") == 0
        assert ("says the schedule karras, but beta is used" in capsys.readouterr().err) == noted


def test_exporting_to_a_folder_that_exists_is_refused_before_the_model_is_read(capsys) -> None:
    assert main(["export", "none.ckpt", "."]) == 1
    assert capsys.readouterr().err.count("exists") == 1
