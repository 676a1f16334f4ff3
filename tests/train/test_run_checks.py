"""Checks before a run's start model is read, and a start model by reference instead of a copy."""

import collections
import dataclasses
import errno
import json
import os
import shutil

import jax
import numpy as np
import pytest
from checkpoint_checks import State
from models_to_train import TINY, write_model
from picture_sets import write_folder

import sdjax
from sdjax.config import ConfigError
from sdjax.configs import finetune
from sdjax.convert import load_model
from sdjax.description import build
from sdjax.evaluate.benchmark import random_model
from sdjax.loading import start_model
from sdjax.loading.run_folder import trained
from sdjax.loading.start_model import ModelSource
from sdjax.scripts import main as cli
from sdjax.train import run
from sdjax.train.builtin import vocabulary
from sdjax.train.checkpoints.checkpoint import Checkpoints
from sdjax.train.config import TrainConfig
from sdjax.train.run import Run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a training set and a model; it is copied where a test changes it."""
    folder = tmp_path_factory.mktemp("place")
    write_folder(folder / "pictures", 8, sizes=((64, 64),))
    (folder / "empty").mkdir()
    captions = ["a red square on a wall", "a green square on a wall", "a blue square"]
    tokenizer = vocabulary.learn(iter(captions * 20), TINY.text.vocab_size)
    write_model(TINY, random_model(TINY, "float32").params, tokenizer, folder / "model")
    (folder / "config.py").write_text("from sdjax.configs.finetune import get_config\n")
    return folder


def settings(place, **changes):
    config = finetune.get_config().to_dict()
    config["model"] |= {"path": str(place / "model")}
    config["data"] |= {"parts": [{"source": {"folder": str(place / "pictures")}}], "buckets": False, "side": 64}
    config["optim"] |= {"steps": 2, "warmup": 0}
    config |= {"batch_size": 8}
    config["log"] |= {"tensorboard": False}
    for name, value in changes.items():
        outer, _, last = name.rpartition("__")
        (config[outer] if outer else config)[last] = value
    return build(TrainConfig, config)


PART = {"source": {"folder": "pictures"}}
BAD = [
    ("data.parts=[{'source': {'folder': 'none'}}]", "none"),
    ("data.parts=[{'source': {'folder': 'empty'}}]", "empty"),
    ("data.parts=[{'source': {'folder': 'pictures'}, 'where': 'nothing > 1'}]", "nothing"),
    ("data.parts=[{'source': {'folder': 'pictures'}, 'wher': 'a'}]", "data.parts[0] has a source"),
    ("data.side=500", "multiple of 64"),
    ("data.flip=2.0", "data.flip"),
    ("data.resample=nearby", "data.resample"),
    ("data.crop=left", "data.crop"),
    ("data.captions={'keep': -1}", "data.captions: keep is a number of tags"),
    ("validation.data={'parts': [{'source': {'folder': 'none'}}]}", "none"),
    ("optim.name=adamm", "the optimiser is one of"),
    ("optim.beta1=2.0", "beta1 is from 0"),
    ("optim.rates=[['(', 1.0]]", "regular expression"),
    ("optim.rates=[['a', 1.0, 2.0]]", "2 entries"),
    ("batch_size=7", "got 7: use "),
    ("batch_size=16", "cannot be filled"),
    ("dtype=float17", "dtype is one of"),
    ("model.ema=perhaps", "model.ema"),
    ("model.prediction=w", "model.prediction"),
    ("model.path=none.ckpt", "none.ckpt"),
    ("model.fresh=['nothing']", "model.fresh"),
    ("samples.every=0", "samples.every"),
    ("samples={'prompts': ['a'], 'options': {'samplr': 'ddim'}}", "got 'samplr'"),
    ("samples={'prompts': ['a'], 'options': {'seed': 1}}", "besides those of samples; got 'seed'"),
    ("samples={'prompts': ['a'], 'options': {'negative_prompt': ['a', 'b']}}", "one for each prompt"),
    ("samples={'prompts': ['a'], 'options': {'guidance_rescale': 2.0}}", "guidance_rescale"),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_bad_settings_are_refused_before_the_start_model_is_read(
    place, tmp_path, monkeypatch, capsys, change, said, request
):
    def read(*_):
        raise AssertionError("the model was read")

    monkeypatch.chdir(place)
    monkeypatch.setattr(run, "open_start", read)
    if change == "batch_size=7":
        monkeypatch.setattr(run.parallel, "training_mesh", lambda *_: collections.namedtuple("M", "shape")(
            {"data": 2, "fsdp": 1, "tensor": 1}))  # fmt: skip
    usual = {"model.path": "model", "data.parts": [PART], "data.buckets": False, "log.tensorboard": False,
             "data.side": 64, "optim.steps": 5000, "batch_size": 8}  # fmt: skip
    name = change.partition("=")[0]
    sets = [part for key, value in usual.items() if key != name for part in ("--set", f"{key}={value}")]
    workdir = tmp_path / "run"
    assert cli.main(["train", "--config", "config.py", "--workdir", str(workdir), *sets, "--set", change]) in (2, 3)
    assert said in (err := capsys.readouterr().err)
    assert "the model was read" not in err
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__bucket_step": 12}, "a bucket.s step is a multiple of 8"),
        ({"data__bucket_sides": (100, 200)}, "data.bucket_sides: a bucket's step .* limits multiples of the step"),
    ],
)
def test_sizes_that_cannot_be_are_refused(place, tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        Run(settings(place, data__buckets=True, **changes), tmp_path / "run").check()


@pytest.mark.parametrize(("flags", "said"), [
    (["--workdir", "config.py/run"], "is a file, and not a folder"),
    (["--workdir", "run", "--profile", "config.py"], "is a file, and not a folder"),
])  # fmt: skip
def test_places_that_cannot_be_written_are_refused_first(place, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(place)
    assert cli.main(["train", "--config", "config.py", *flags, "--set", f"data.parts={[PART]}"]) == 1
    assert said in capsys.readouterr().err
    assert not (place / "run").exists()


def test_a_disk_without_room_for_the_copy_is_said_with_both_numbers(place, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")(10**9, 10**9 - 2048, 2048)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    said = r"copying the start model to .*base failed: the disk is full; .*(MiB|KiB) are needed, 2 KiB are free.*copy"
    with pytest.raises(OSError, match=said) as caught:
        Run(settings(place), tmp_path / "run").train()
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "run").exists()


def test_a_copy_that_fails_half_way_leaves_nothing(place, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: full(0) if "new" in str(a) else real(a, b))
    with pytest.raises(OSError, match=r"copying the start model to .*the disk is full.*model.copy = False"):
        Run(settings(place), tmp_path / "run").train()
    assert not (tmp_path / "run").exists()


@pytest.fixture
def referring(place, tmp_path):
    """A run that refers to its start model, with a checkpoint; and its folder."""
    shutil.copytree(place / "model", tmp_path / "model")
    config = settings(place, model__path=str(tmp_path / "model"), model__copy=False)
    made = Run(config, tmp_path / "run")
    made.check()
    unet = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, made.start.params["unet"])
    made.keep_settings()
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(State(np.int32(2), {"unet": unet}, {"unet": unet}, (), jax.random.key(0)), wait=True)
    return config, tmp_path / "run"


def test_a_run_refers_to_its_start_model(referring, tmp_path, monkeypatch, capsys):
    config, folder = referring
    assert not (folder / "base").exists()
    (entry,) = json.loads((folder / "base.json").read_text()).values()
    assert set(entry["files"]) >= {"model.safetensors", "config.json"}
    pipe = sdjax.load(folder, dtype="float32")
    start = load_model(tmp_path / "model")
    kernel = start.params["unet"]["conv_out"]["kernel"]
    np.testing.assert_array_equal(pipe.params["unet"]["conv_out"]["kernel"], kernel + 1)
    np.testing.assert_array_equal(pipe.params["vae"]["quant_conv"]["kernel"],
                                  start.params["vae"]["quant_conv"]["kernel"])  # fmt: skip
    assert cli.main(["convert", str(folder), str(tmp_path / "out.safetensors")]) == 0

    # both were moved together
    shutil.copytree(tmp_path, moved := tmp_path.with_name(tmp_path.name + "_moved"))
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    assert trained(moved / "run")[0] == 2

    with pytest.raises(ValueError, match=r"the start model of .* is gone: .*model is not there; .*base.json"):
        sdjax.load(folder)
    capsys.readouterr()
    assert cli.main(["convert", str(folder), str(tmp_path / "out2.safetensors")]) == 2
    assert "is gone" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is gone"):
        Run(config, folder).train()

    # a resumed run is told the new place, and keeps it
    new = build(TrainConfig, {**json.loads(json.dumps({"model": {"path": str(tmp_path / "elsewhere"), "copy": False}})),
        "data": {"parts": config.data.parts, "side": 64}, "optim": {"steps": 2}, "batch_size": 8})  # fmt: skip
    resumed = Run(new, folder)
    resumed.check_settings()
    assert resumed.start.config == start.config
    assert trained(folder)[0] == 2

    # one number is another one
    file = tmp_path / "elsewhere" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="is not the model that .* was started from"):
        trained(folder)


def test_random_weights_cannot_be_referred_to(place):
    with pytest.raises(ValueError, match="leave out model.fresh"):
        settings(place, model__copy=False, model__fresh=["unet"])


def test_a_model_is_widened_so_that_it_first_does_what_it_did(place):
    plain = ModelSource(path=str(place / "model"))
    source = dataclasses.replace(plain, changes={"unet": {"in_channels": 9}})
    start = start_model.open_start(plain, seed=0)
    wide = start_model.open_start(source, seed=0)
    assert wide.config.unet.in_channels == 9
    before, after = (model.params["unet"]["conv_in"]["kernel"] for model in (start, wide))
    np.testing.assert_array_equal(after[:, :, :4], before)
    assert not after[:, :, 4:].any()
    assert "widened by 5 channels" in wide.report.notices[-1]
    with pytest.raises(ConfigError, match="model.changes needs .* other parameters"):
        start_model.open_start(
            dataclasses.replace(source, changes={"unet": {"context_dim": 32}, "text": {"width": 32}}), 0
        )
    with pytest.raises(ConfigError, match="model.changes.unet has no chanels; it has"):
        start_model.describe(dataclasses.replace(source, changes={"unet": {"chanels": 9}}))
