"""`sdjax evaluate`: what it refuses, results that are compared, and whole evaluations that are killed and shared."""

import argparse
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from sdjax.evaluate import bootstrap
from sdjax.evaluate.extractors import EXTRACTORS
from sdjax.evaluate.figure import axes_of, draw, has_matplotlib
from sdjax.evaluate.result import Evaluation, Judged, Measured, read
from sdjax.pictures import open_picture
from sdjax.pictures.image import save_png
from sdjax.scripts import evaluate
from sdjax.scripts.main import main
from sdjax.scripts.shared import judged
from sdjax.train import judges


def test_numbers_and_names_of_the_help_are_those_of_the_library():
    assert evaluate.RESAMPLES == bootstrap.RESAMPLES
    assert (judged.COUNT, judged.BUILTIN) == (judges.COUNT, judges.BUILTIN)
    assert list(judged.NETWORKS) == list(dict.fromkeys(file for kind in EXTRACTORS.values() for file in kind.files))


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("model.safetensors", "--captions names the file of captions"),
        ("--captions none.txt", "the file of captions none.txt cannot be read"),
        ("--captions a.txt --column c", "has no columns"),
        ("--captions a.txt --count 5", "--count: the number of captions is from 1 to 1, as many as there are; got 5"),
        ("--captions a.txt", "there is nothing to measure: name reference pictures"),
        ("--column c", "--column has no effect without --captions"),
        ("--measures fid", "fid needs the file of FID's Inception v3"),
        ("--measures none", "there is no measure 'none'"),
        ("--captions a.txt --reference b.npz --measures reader-accuracy", "captions of the built-in model"),
        ("--reference none", "--reference none: there is no such file or folder"),
        ("--reference a.txt", "a.txt is neither a folder of pictures nor an .npz file"),
        ("--reference c.npz", "c.npz is no npz file"),
        ("--inception none", "--inception none: there is no such file"),
        ("--set scale=1,2", "--set: scale has one value, given once"),
        ("--set steps=1 --set steps=2", "--set: steps has one value, given once"),
        ("--set steps=0", "num_steps"),
        ("--sweep scale", "--sweep: a sweep is NAME=VALUE"),
        ("--sweep prompt=a,b", "--sweep: prompt cannot be set here"),
        ("--sweep sampler_options={}", "sampler_options cannot be set here"),
        ("--figure fid", "--figure is two measures"),
        ("r.json --steps 3", "unrecognized arguments"),
        ("r.json --against s.json --count 3", "--count has no effect where results are only read"),
        ("a.json", "a.json cannot be read"),
        ("bad.json", "bad.json is no result of an evaluation"),
        ("r.json --figure fid,kid", "--figure: there is no measure 'fid' here; what was measured is score, distance"),
        ("r.json --figure score,distanse", "no measure 'distanse' here (did you mean distance?)"),
        ("--figure fidd,reader-accuracy", "--figure: there is no measure 'fidd' here"),
        ("--measures reader-acuracy", "there is no measure 'reader-acuracy' (did you mean reader-accuracy?)"),
    ],
)
def test_bad_usage_is_one_sentence_and_leaves_nothing(argv, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sdjax.evaluate.figure.has_matplotlib", lambda: True)
    monkeypatch.setattr("sdjax.scripts.shared.runtime.set_up_jax", lambda device: None)
    (tmp_path / "a.txt").write_text("a cat\n")
    np.savez(tmp_path / "b.npz", mu=np.zeros(2), sigma=np.eye(2))
    (tmp_path / "c.npz").write_bytes(b"PK")
    (tmp_path / "bad.json").write_text("{}")
    for name in "r.json", "s.json":
        (tmp_path / name).write_text(evaluation("A", [0.0, 1.0]).to_json())
    before = sorted(tmp_path.iterdir())
    try:
        status = main(["evaluate", *argv.split()])
    except SystemExit as end:
        status = end.code
    err = capsys.readouterr().err
    assert status == 2
    assert sentence in err
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [("--set sampler=plm", "unknown sampler 'plm'; the nearest known ones are plms"),
     ("--set height=33", "height is a multiple of 8"),
     ("--sweep steps=5 --sweep sampler=ddim,eulr", "unknown sampler 'eulr'"),
     ("--set prompt_syntax=weight", "--set: the setting of prompt_syntax: prompt_syntax is one of"),
     ("--set steps", "--set: a setting is NAME=VALUE, such as scale=3")],
)  # fmt: skip
def test_a_setting_that_the_model_cannot_use_is_refused_before_anything_is_written(argv, sentence, inputs, capsys):
    given = ["--captions", inputs / "captions.txt", "--reference", inputs / "real", "--out", inputs / "out"]
    assert main(["evaluate", "builtin", *map(str, given), *argv.split()]) == 2
    assert sentence in capsys.readouterr().err
    assert not (inputs / "out").exists()


def test_a_sweep_without_a_score_says_why_it_has_no_figure(inputs, capsys):
    one = evaluation("A", [0.0, 1.0])
    args = argparse.Namespace(model="a.safetensors", against=None, out=str(inputs))
    alone = [dataclasses.replace(each, measures={"distance": each.measures["distance"]}) for each in one.settings]
    judged.written(args, [dataclasses.replace(one, settings=tuple(alone))], None)
    assert "no figure is drawn, because it needs a score and a distance" in capsys.readouterr().err


def evaluation(name, scores):
    """Returns a result of two settings."""
    settings = []
    for scale, more in (2, 0.0), (5, 1.0):
        samples = tuple(np.array(scores) + more)
        score, distance = Measured(more, samples, "Score", False, "n"), Measured(more, samples, "D", True, "n")
        settings.append(Judged(f"scale {scale}", {"scale": scale}, {}, {"score": score, "distance": distance}))
    return Evaluation({"name": name}, "c", 7, tuple(settings))


def test_two_results_are_compared_in_a_sentence_for_each_measure(tmp_path, capsys):
    (tmp_path / "a.json").write_text(evaluation("A", [-0.1, 0.1]).to_json())
    (tmp_path / "b.json").write_text(evaluation("B", [0.9, 1.1]).to_json().replace('"value": 0.0', '"value": 1.0'))
    assert main(["evaluate", str(tmp_path / "a.json"), "--against", str(tmp_path / "b.json")]) == 0
    out = capsys.readouterr().out
    assert "A, 7 captions\n\n| setting | Score | D |" in out
    first = "Score at scale 2: 0 and 1, a difference of +1 (95% +1 to +1, paired by caption), is more than noise: B is"
    assert f"{first} better.\n" in out
    assert "D at scale 2: 0 and 1" in out
    assert "is more than noise: A is better." in out
    assert len([line for line in out.splitlines() if "paired by caption" in line]) == 4


def test_the_figure_is_a_score_across_and_a_distance_up():
    assert axes_of(evaluation("A", [0.0, 1.0])) == ("score", "distance")


@pytest.mark.slow
@pytest.mark.skipif(not has_matplotlib(), reason="pip install '.[figures]'")
def test_the_figure_is_drawn_alike_each_time(tmp_path, capsys):
    (tmp_path / "a.json").write_text(evaluation("A", [0.0, 0.1]).to_json())
    drawn = []
    for _ in range(2):
        assert main(["evaluate", str(tmp_path / "a.json"), "--figure", "score,distance"]) == 0
        drawn.append([(tmp_path / f"figure{ending}").read_bytes() for ending in (".png", ".svg")])
    assert drawn[0] == drawn[1]
    assert open_picture(drawn[0][0]).pixels.shape == (720, 960, 3)
    assert str(tmp_path / "figure.svg") in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not has_matplotlib(), reason="pip install '.[figures]'")
def test_labels_of_two_lines_that_meet_stand_apart(tmp_path):
    settings = [
        dataclasses.replace(one, swept={"steps": 20, "sampler": sampler})
        for sampler in ("plms", "ddim")
        for one in evaluation("A", [0.0, 0.1]).settings[:1]
    ]
    draw(Evaluation({"name": "A"}, "c", 7, tuple(settings)), "score", "distance", tmp_path / "figure.png")
    text = (tmp_path / "figure.svg").read_text()
    drawn = re.findall(r'<!-- 20 -->\s*<g [^>]*transform="translate\(([\d.]+) ([\d.]+)', text)
    (x, y), (other_x, other_y) = (map(float, place) for place in drawn)
    assert x == other_x
    assert other_y - y > 8  # below, by more than the letters' height in points


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Captions and reference pictures."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "captions.txt").write_text("".join(f"a cat on a {c} background\n" for c in ("red", "green", "blue") * 4))
    (folder / "real").mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        save_png(folder / "real" / f"{i}.png", pixels)
    return folder


def start(inputs, out, *flags, devices=1):
    """Starts an evaluation of the built-in model."""
    env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=f"--xla_force_host_platform_device_count={devices} "
               "--xla_backend_optimization_level=0")  # fmt: skip
    given = ["--captions", str(inputs / "captions.txt"), "--reference", str(inputs / "real"), "--bootstrap", "5",
             "--batch", "2", "--set", "steps=2", "--sweep", "scale=2,5", "--sweep", "sampler=ddim,plms",
             "--out", str(out)]  # fmt: skip
    command = [sys.executable, "-m", "sdjax.scripts.main", "evaluate", *given, *flags]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process):
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    """The folder of an evaluation by one process."""
    folder = tmp_path_factory.mktemp("alone")
    finished(start(inputs, folder))
    return folder


def pictures(folder):
    return {path.relative_to(folder).as_posix(): path for path in (folder / "pictures").rglob("*.png")}


@pytest.mark.slow
def test_a_sweep_gives_table_and_figure(alone):
    made = read(alone / "result.json")
    assert [one.name for one in made.settings] == [
        "scale 2, sampler ddim", "scale 5, sampler ddim", "scale 2, sampler plms", "scale 5, sampler plms",
    ]  # fmt: skip
    assert len(pictures(alone)) == 4 * 12
    assert len((alone / "result.csv").read_text().splitlines()) == 5
    assert len({one.measures["fd-autoencoder"].value for one in made.settings}) == 4


@pytest.mark.slow
def test_an_evaluation_killed_at_any_moment_goes_on_and_makes_each_picture_once(inputs, alone, tmp_path):
    times = {}
    for number in range(1, 5):
        process = start(inputs, tmp_path)
        deadline = time.monotonic() + 600
        while len(pictures(tmp_path)) < 10 * number and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.communicate()
        for name, path in pictures(tmp_path).items():
            assert times.setdefault(name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    assert 40 <= len(times) < 48
    finished(start(inputs, tmp_path))
    assert all(pictures(tmp_path)[name].stat().st_mtime_ns == when for name, when in times.items())
    same(tmp_path, alone)


def same(folder, other):
    """Checks that two evaluations have the same pictures, to a level of 255, and nothing is left over."""
    mine, theirs = pictures(folder), pictures(other)
    assert sorted(mine) == sorted(theirs)
    for name, path in mine.items():
        a, b = (open_picture(one).pixels.astype(int) for one in (path, theirs[name]))
        assert np.abs(a - b).max() <= 1
    assert not list(folder.rglob("*.partial"))
    values = [[one.measures["fd-autoencoder"].value for one in read(at / "result.json").settings]
              for at in (folder, other)]  # fmt: skip
    np.testing.assert_allclose(*values, rtol=1e-2)


@pytest.mark.slow
def test_two_hosts_share_an_evaluation_and_the_last_one_joins(inputs, alone, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        start(inputs, tmp_path, "--coordinator", address, "--num-hosts", "2", "--host", str(i), devices=2)
        for i in range(2)
    ]
    out = [finished(process) for process in processes]
    assert sum("Fréchet distance of latents" in text for text in out) == 1
    same(tmp_path, alone)
    assert not list((tmp_path / "features").rglob("*.part-*"))


@pytest.mark.slow
def test_a_model_against_itself_is_no_more_than_noise(inputs, tmp_path, capsys):
    given = ["evaluate", "--captions", str(inputs / "captions.txt"), "--reference", str(inputs / "real"), "--bootstrap",
             "4", "--set", "steps=1", "--count", "3", "--out", str(tmp_path), "--batch", "3"]  # fmt: skip
    assert main([*given, "--against", "builtin"]) == 0
    out = capsys.readouterr().out
    assert "a difference of +0 (95% +0 to +0, paired by caption), is no more than noise." in out
    assert json.loads((tmp_path / "against" / "result.json").read_bytes())["count"] == 3
    # More captions; the first model's result is read
    assert main([*given[:-4], "--out", str(tmp_path / "b"), str(tmp_path / "result.json"), "--against", "builtin"]) == 0
