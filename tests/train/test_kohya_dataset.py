"""Dataset configurations of kohya's scripts, and the options that they come with."""

import re
from pathlib import Path

import pytest

from sdjax.description import build
from sdjax.scripts.main import main
from sdjax.scripts.shared import training_flags
from sdjax.scripts.shared.kohya_flags import KOHYA
from sdjax.scripts.train import check_effects, make_parser, read_config
from sdjax.train.config import TrainConfig
from sdjax.train.data.kohya_dataset import read_dataset_config
from sdjax.train.data.records import SourceError
from sdjax.train.data.tags import CaptionConfig

PAGE = Path(__file__).parents[2] / "docs" / "coming-from" / "kohya.md"
DATASET = """
[general]
shuffle_caption = true
caption_extension = ".caption"
keep_tokens = 1

[[datasets]]
resolution = [512, 512]
batch_size = 2
enable_bucket = true
min_bucket_reso = 320
bucket_reso_steps = 32
caption_dropout_rate = 0.05

  [[datasets.subsets]]
  image_dir = "dog"
  num_repeats = 10
  class_tokens = "sks dog"
  flip_aug = true

  [[datasets.subsets]]
  image_dir = "cat"
  keep_tokens = 2
  caption_prefix = "photo,"
  flip_aug = true
"""


def written(tmp_path, text):
    path = tmp_path / "set.toml"
    path.write_text(text)
    return path


def described(*argv):
    args = make_parser().parse_args(argv)
    made = build(TrainConfig, training_flags.apply(read_config(args.config, args.set), args))
    check_effects(made, args.set)
    return made


def test_options_hold_for_what_is_below_them(tmp_path):
    made = described("--dataset-config", str(written(tmp_path, DATASET)))
    assert made.batch_size == 2
    assert made.objective.dropout == 0.05
    data = made.data
    assert (data.side, data.buckets, data.enlarge) == (512, True, True)
    assert (data.bucket_step, data.bucket_sides) == (32, (320, 1024))
    assert (data.flip, data.crop, data.masks) == (0.5, "centre", False)
    assert [part["source"] for part in data.parts] == [{"folder": "dog", "default": "sks dog"}, {"folder": "cat"}]
    assert [part["repeats"] for part in data.parts] == [10.0, 1.0]
    assert [data.captions_of(part) for part in data.parts] == [
        CaptionConfig(shuffle=True, keep=1), CaptionConfig(shuffle=True, keep=2, prefix="photo,")
    ]  # fmt: skip


def test_regularisation_pictures_are_half_of_an_epoch(tmp_path):
    text = "[[datasets]]\nbatch_size = 1\nalpha_mask = true\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeats = 9\n"
    text += "[[datasets.subsets]]\nimage_dir = 'b'\nis_reg = true\n"
    made = described("--dataset-config", str(written(tmp_path, text)))
    assert [part["weight"] for part in made.data.parts] == [1.0, 1.0]
    assert not any("repeats" in part for part in made.data.parts)
    assert made.data.masks == "alpha"
    assert made.objective.masked
    assert not made.data.buckets


SUBSET = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a = ", "is no TOML"),
        ("[general]\n", "has no .*subsets"),
        ("[other]\n", "has .general. and .*got other"),
        ("datasets = 3", "has .general. and"),
        ("[[datasets]]\nsubsets = [1]\n", "subsets of a dataset are tables"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2\n", "names its folder of pictures by image_dir"),
        (SUBSET + "color_aug = true\n", "sdjax has no color_aug"),
        (SUBSET + "colour = 1\n", "colour is not read; the options are image_dir"),
        (SUBSET + "num_repeats = 1.5\n", "num_repeats is a whole number from 1 on; got 1.5"),
        (SUBSET + "num_repeats = true\n", "num_repeats is a whole number"),
        (SUBSET + "class_tokens = 3\n", "class_tokens is the caption of pictures without one; got 3"),
        (SUBSET + "resolution = true\n", "twice the same in a list; got True"),
        (SUBSET + "resolution = [512, 768]\n", r"twice the same in a list; got \[512, 768\]"),
        (SUBSET + "enable_bucket = 'yes'\n", "enable_bucket is a bool; got 'yes'"),
        (SUBSET + "caption_extension = '.doc'\n", "end with .txt.*got '.doc'"),
        (
            SUBSET + "flip_aug = true\n[[datasets.subsets]]\nimage_dir = 'b'\n",
            r"flip_aug is the same .*\[True, False\]",
        ),
        (SUBSET + "is_reg = true\n", "is_reg is read of one subset beside one other"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path, text, sentence):
    with pytest.raises(SourceError, match=sentence):
        read_dataset_config(written(tmp_path, text))


def test_the_command_refuses_contradictions_and_bad_files(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(written(tmp_path, DATASET))
    for more, said in (
        (["--data", "x"], "--dataset-config has no effect with --data"),
        (["--set", "data.flip=0.1"], "--dataset-config and --set data.flip both set the same value"),
        (["--set", "batch_size=3"], "both set the same value"),
        (["--default", "x"], "--default"),
    ):
        assert main(["train", "--workdir", "run", "--dataset-config", path, *more]) == 2
        assert said in capsys.readouterr().err
    assert main(["train", "--workdir", "run", "--dataset-config", "none.toml"]) in (2, 3)
    assert "none.toml cannot be read (No such file or directory)" in (err := capsys.readouterr().err)
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_flag_of_kohya_is_answered_by_ours(capsys):
    for flag, ours in (
        ("--network_dim", "here this is --set trainable.rank=N"), ("--max_train_steps", "here this is --steps"),
        ("--xformers", "sdjax does not have this option, or does not need it"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match="2"):
            make_parser().parse_args([flag, "3"])
        assert f"unrecognized arguments: {flag}; {ours}\n" in capsys.readouterr().err


def test_every_flag_of_the_page_is_answered():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = [line.split(" | ")[0] for line in lines if line.startswith("| `")]
    assert {flag for cell in first for flag in re.findall(r"--[a-z_0-9]{2,}", cell)} == set(KOHYA)


def test_every_answer_names_settings_that_there_are():
    config = read_config("lora", [])
    for answer in KOHYA.values():
        for path in re.findall(r"--set ([a-z_.]+)=", answer):
            place = config
            for name in path.split(".") if path != "trainable.initial" else ():
                place = place[name]


def settings_in_tables():
    """The settings, such as "optim.decay='cosine'", in the second column of the page's tables."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.replace("\\|", "|") for cell in line.split(" | ")]
        if line.startswith("| `") and len(cells) >= 2:
            changes = [text for text in re.findall(r"`([^`]+)`", cells[1]) if re.match(r"[a-z_.]+=", text)]
            if changes:
                yield pytest.param(changes, id=cells[0].strip("| "))


@pytest.mark.parametrize("changes", [*settings_in_tables()])
def test_every_setting_of_the_page_is_one(changes):
    described(*(part for change in changes for part in ("--set", change)))


def test_the_page_has_the_settings():
    assert len(list(settings_in_tables())) > 40
