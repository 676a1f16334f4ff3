"""Measures of pictures: which are chosen, what the reader says, and a training that keeps the best state by them."""

import json
import pathlib
import types

import numpy as np
import pytest
import whole_runs

from sdjax.config import ConfigError
from sdjax.evaluate.measuring import Reference
from sdjax.evaluate.result import read
from sdjax.train import judges, judging
from sdjax.train.builtin import emoji, evaluate, subjects
from sdjax.train.builtin import judging as builtin
from sdjax.train.checkpoints.checkpoint import Checkpoints
from sdjax.train.config import MetricsConfig
from sdjax.train.judges import choose


def names(*args, **given):
    return [one.name for one in choose(*args, **given)]


def test_everything_is_measured_whose_files_are_given():
    assert names(None, (), reference=True, builtin=True) == ["reader-accuracy", "fd-autoencoder"]
    assert names(None, ("clip",), reference=False, builtin=False) == ["clip-score", "clip-s"]
    found = names(None, ("inception", "clip", "aesthetic"), reference=True, builtin=False)
    assert {"fid", "fid-clean", "kid", "precision", "recall", "is", "clip-score", "aesthetic"} < set(found)
    assert names(["fd-autoencoder", "fd-autoencoder"], (), reference=True, builtin=False) == ["fd-autoencoder"]


@pytest.mark.parametrize(
    ("wanted", "files", "sentence"),
    [
        (["fidd"], (), "there is no measure 'fidd'.*; the known ones are reader-accuracy, fid"),
        (["fid"], (), r"fid needs the file of FID's Inception v3.*--inception FILE"),
        (["aesthetic"], ("aesthetic",), "aesthetic needs the file of .*--clip FILE"),
        (["fid"], ("inception",), "fid needs reference pictures"),
        (["reader-accuracy"], (), "reader-accuracy needs captions of the built-in model"),
        (None, (), "there is nothing to measure"),
    ],
)
def test_what_a_measure_lacks_is_said(wanted, files, sentence):
    with pytest.raises(ValueError, match=sentence):
        choose(wanted, files, reference=False, builtin=False)


def test_a_file_of_statistics_leaves_out_what_it_does_not_fit():
    grey = {"pool": np.ones((1, 3)), "logits": np.ones((1, 2))}
    networks = {"inception": lambda pictures, captions: grey}
    wanted = [judges.ALL[name] for name in ("fid", "kid", "is")]
    said = []
    three = {"inception": Reference(None, (np.zeros(3), np.eye(3)), "stats.npz")}
    assert [one.name for one in judges.fitting(wanted, networks, three, said.append)] == ["fid", "is"]
    assert said == [
        "kid needs the reference's pictures or their features; stats.npz has only mean and covariance: kid is left out"
    ]
    four = {"inception": Reference(None, (np.zeros(4), np.eye(4)), "stats.npz")}
    with pytest.raises(ValueError, match="fid has features of 3 numbers, and stats.npz has 4"):
        judges.fitting(wanted, networks, four)
    other = {"inception": Reference({"class": np.ones((2, 3))}, None, "features.npz")}
    with pytest.raises(ValueError, match="fid needs the features pool, which features.npz does not hold"):
        judges.fitting(wanted, networks, other)


def test_the_reader_understands_captions_of_the_built_in_model():
    for prompt in evaluate.draw_prompts(0, 40, held_out=True):
        assert builtin.prompt_of(prompt.text) == prompt
    noun, colour = subjects.names()[3], list(subjects.COLOURS)[2]
    assert builtin.prompt_of(f"a {noun} on a {colour} background").subjects == (3,)
    for text in ("a cat", "a cat on a green table", "a zebra crossing on a green background", ""):
        with pytest.raises(ValueError, match="the reader understands captions such as"):
            builtin.prompt_of(text)


def test_the_reader_is_right_about_real_pictures_and_wrong_about_others(sprites):
    known = [one for one in emoji.scenes(5, 0, 60) if _is_plain(one.caption)][:4]
    pictures, captions = [sprites.draw(one) for one in known], [one.caption for one in known]
    reader = builtin.ReaderFeatures(sprites)
    right = reader(pictures, captions)["right"]
    assert right.shape == (len(known), 1)
    assert right.mean() > 0.8
    assert reader(pictures[1:] + pictures[:1], captions)["right"].mean() < 0.4


def _is_plain(caption):
    try:
        return bool(builtin.prompt_of(caption))
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"measures": ["fid"]}, "metrics.captions names the file"),
        ({"measures": ["fid"], "captions": "c", "best": "kid"}, "best is one of the measures; got 'kid'"),
        ({"every": 0}, "every must be 1 or more"),
        ({"resamples": -1}, "0 or more"),
        ({"measure": ["fid"]}, "has no field measure"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, sentence, pictures):
    with pytest.raises(ConfigError, match=sentence):
        whole_runs.settings(pictures, **{f"validation__metrics__{name}": value for name, value in changes.items()})


def test_a_run_finds_what_is_wrong_with_its_measures_before_it_begins(pictures, tmp_path):
    changes = {"validation__metrics__measures": ("fid",), "validation__metrics__captions": "builtin"}
    with pytest.raises(ValueError, match="fid needs the file of"):
        whole_runs.run(tmp_path / "run", whole_runs.settings(pictures, **changes))
    assert not list((tmp_path / "run").glob("*")) or not (tmp_path / "run" / "base").exists()


def test_features_of_processes_come_back_in_the_order_of_captions(monkeypatch):
    rows = np.arange(7, dtype=np.float32)[:, None]
    shares = [rows[i::3] for i in range(3)]

    def gather(own):  # as process_allgather: each process's rows, padded to one length
        return np.stack([np.concatenate([share, share[-1:]])[: len(own)] for share in shares])

    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", gather)
    for share in shares:
        np.testing.assert_array_equal(judging._gathered(share, 3, 7), rows)


class Paints(judging.PictureJudge):
    """A judge whose pictures are grey, of the level that the state's step says."""

    def _features(self, pipe):
        levels = {2: 100.0, 4: 10.0, 6: 50.0}
        return {"autoencoder": {"latent": np.random.default_rng(0).normal(levels[pipe], 1, (4, 2))}}


def test_the_best_state_is_kept_and_every_result_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "averaged", lambda state: state.step)
    monkeypatch.setattr(judging, "pipeline_of", lambda params, *rest: params)
    config = MetricsConfig(
        ("fd-autoencoder",), captions="builtin", count=4, best="fd-autoencoder", resamples=3, reference="r"
    )  # fmt: skip
    judge = Paints(config, None, tmp_path, "float32", say=lambda text: None)
    reference = Reference({"latent": np.random.default_rng(0).normal(0, 1, (4, 2))}, None, "real")
    judge.__dict__ |= {
        "references": {"autoencoder": reference},
        "networks": {"autoencoder": types.SimpleNamespace(identity="a")},
    }
    values = [judge.run(types.SimpleNamespace(step=step)) for step in (2, 4, 6)]
    assert [round(one["best"]) for one in values] == [20_000, 200, 5_000]  # 2 level^2
    assert all(one["best"] == one["metrics/fd-autoencoder"] for one in values)
    assert len(read(tmp_path / "00000004.json").settings[0].measures["fd-autoencoder"].samples) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("programs")
def test_a_training_measures_its_pictures_and_goes_on_measuring(pictures, tmp_path):
    (tmp_path / "captions.txt").write_text("a red square\na blue square\na green square\n")
    metrics = {
        "measures": ("fd-autoencoder",), "captions": str(tmp_path / "captions.txt"), "reference": str(pictures),
        "every": 2, "settings": {"num_steps": 2, "guidance_scale": 1.0, "height": 64, "width": 64}, "batch": 2,
        "best": "fd-autoencoder", "resamples": 3,
    }  # fmt: skip
    changes = {f"validation__metrics__{name}": value for name, value in metrics.items()}
    config = lambda steps: whole_runs.settings(pictures, optim__steps=steps, **changes)  # noqa: E731
    whole_runs.run(tmp_path / "once", config(6))
    whole_runs.run(tmp_path / "run", config(4))
    whole_runs.run(tmp_path / "run", config(6))
    found = {folder: measured(tmp_path / folder) for folder in ("once", "run")}
    assert list(found["run"]) == [2, 4, 6]
    assert found["run"] == found["once"]
    assert len(set(found["run"].values())) == 3  # the parameters change
    best = min(found["run"], key=found["run"].get)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.best() == (best, found["run"][best])
    assert best in checkpoints.steps()
    assert [path.name for path in sorted((tmp_path / "run" / "metrics").glob("*.json"))] == [
        "00000002.json", "00000004.json", "00000006.json",
    ]  # fmt: skip


def measured(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics/fd-autoencoder"] for line in lines if "metrics/fd-autoencoder" in line}


def test_every_measure_and_file_is_described():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert [name for name in judges.ALL if f"`{name}`" not in text] == []
    assert [name for name in judges.FILES if f"`--{name}`" not in text] == []
