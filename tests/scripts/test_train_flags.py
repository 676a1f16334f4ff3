"""The flags of `sdjax train` for the common case: what they set, what they contradict, where runs are kept."""

import argparse
import contextlib
import dataclasses
import os
import re
import sys
from typing import get_type_hints

import pytest

from sdjax.description import build
from sdjax.scripts.main import main
from sdjax.scripts.shared import training_flags
from sdjax.scripts.train import TRAININGS, make_parser, read_config
from sdjax.train.config import TrainConfig


def config(*argv):
    args = make_parser().parse_args(argv)
    return training_flags.apply(read_config(args.config, args.set), args)


def test_the_flags_are_values_of_the_configuration(tmp_path):
    argv = ["--data", str(tmp_path), "--default", "x", "--ckpt", "m.ckpt", "--steps", "9", "--lr", "2e-6"]
    flags = config(*argv, "--batch-size", "3")
    sets = [f"data.parts=[{{'source': {{'folder': '{tmp_path}', 'default': 'x'}}}}]", "model.path=m.ckpt"]
    sets += ["optim.steps=9", "optim.learning_rate=2e-6", "batch_size=3"]
    assert build(TrainConfig, flags) == build(TrainConfig, config(*(f"--set={text}" for text in sets)))


def lacking_names(kind, values, name):
    """Returns the names of a configuration's values that a dataclass has and `values` lacks."""
    lacking = []
    for field in dataclasses.fields(kind):
        if field.name not in values:
            lacking.append(f"{name}.{field.name}")
        elif isinstance(values[field.name], dict) and dataclasses.is_dataclass(
            hints := get_type_hints(kind)[field.name]
        ):
            lacking += lacking_names(hints, values[field.name], f"{name}.{field.name}")
    return lacking


@pytest.mark.parametrize("name", TRAININGS)
def test_every_setting_can_be_set(name):
    assert lacking_names(TrainConfig, read_config(name, []), name) == []


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("steps", [1, 9, 100, 5000])
def test_the_warm_up_fits_every_run(name, steps):
    optim = build(TrainConfig, config("--config", name, "--steps", str(steps))).optim
    assert 0 <= optim.warmup_steps <= steps // 10


@pytest.mark.parametrize(("name", "warmup"), [("finetune", 500), ("inpainting", 1000), ("pretrain", 10_000)])
def test_the_warm_up_of_a_whole_run_is_the_recipes(name, warmup):
    assert build(TrainConfig, config("--config", name)).optim.warmup_steps == warmup


def test_what_a_path_holds_says_what_it_is(tmp_path):
    for name in ("shards/0.tar", "records/0.array_record", "cache/manifest.json", "cache/latents-0.npz", "plain/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    kinds = {"shards": "tars", "shards/0.tar": "tars", "records": "records", "cache": "cached", "plain": "folder"}
    assert {name: next(iter(training_flags.source(str(tmp_path / name)))) for name in kinds} == kinds
    both = config("--data", str(tmp_path / "shards"), "--data", str(tmp_path / "plain"))["data"]["parts"]
    assert [next(iter(part["source"])) for part in both] == ["tars", "folder"]
    assert config("--data", str(tmp_path / "cache"))["data"]["cached"] == (str(tmp_path / "cache"),)
    subject, other = config("--config", "dreambooth", "--data", "rex", "--data", "dogs")["data"]["parts"]
    assert subject == {"source": {"default": "a photo of sks dog", "folder": "rex"}, "weight": 1.0, "loss_weight": 1.0}
    assert other["source"] == {"default": "a photo of a dog", "folder": "dogs"}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("--data a --set data.parts=[]", "--data and --set data.parts both set the same"),
        ("--data a --set data={}", "--data and --set data both"),
        ("--ckpt a --set model.path=b", "--ckpt and --set model.path both"),
        ("--ckpt a --set model.scratch=sd1", "--ckpt and --set model.scratch both"),
        ("--steps 3 --set optim.steps=4", "--steps and --set optim.steps both"),
        ("--lr 3 --set optim.learning_rate=4", "--lr and --set optim.learning_rate both"),
        ("--batch-size 3 --set batch_size=4", "--batch-size and --set batch_size both"),
        ("--default a", "--default has no effect without --data"),
        ("--config dreambooth --data a", "has 2 parts of data .subject, class.: give --data for each"),
        ("--data a --hosts auto", "on several hosts give --workdir"),
        ("--steps 3", "--data names the folder of pictures to train on; the configuration finetune says pictures"),
        ("--config dreambooth", "once for each part.; the configuration dreambooth says subject and class"),
    ],
)
def test_contradictions_are_refused_and_leave_nothing(argv, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sdjax.scripts.shared.hosts.join_hosts", lambda args: None)
    monkeypatch.setattr("jax.process_count", lambda: 2 if "hosts" in argv else 1)
    assert main(["train", *argv.split()]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_runs_are_numbered_and_none_is_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = argparse.Namespace(workdir=None, config="configs/mine.py")
    for number in ("001", "002"):
        with training_flags.workdir(args, False) as folder:
            assert str(folder) == f"runs/mine-{number}"
            (folder / "log.jsonl").write_text("")
    with contextlib.suppress(ValueError), training_flags.workdir(args, False) as folder:
        raise ValueError("failed before the first step")
    assert sorted(os.listdir("runs")) == ["mine-001", "mine-002"]


@pytest.mark.parametrize(("own", "then"), [(None, "3"), ("0", "0")])
def test_xlas_own_line_about_slow_compiles_is_silenced_unless_the_user_wants_it(monkeypatch, own, then):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    if own is None:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    monkeypatch.delitem(sys.modules, "jaxlib", raising=False)  # as at the start of a process
    with pytest.raises(SystemExit):
        main(["train", "--lr", "nan"])
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == then


def test_a_bad_folder_of_data_leaves_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", "nowhere", "--steps", "1", "--batch-size", "8"]) == 2
    assert "nowhere is no folder of pictures" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
