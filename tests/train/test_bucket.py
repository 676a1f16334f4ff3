"""A whole training whose folder is in a bucket, against a store of this computer; needs gcsfs (sdjax[gcs])."""

import json

import bucket
import jax
import numpy as np
import pytest
from models_to_train import TINY, write_model
from PIL import Image

import sdjax
from sdjax.configs import finetune
from sdjax.description import build
from sdjax.evaluate.benchmark import random_model
from sdjax.scripts.main import main
from sdjax.storage import buckets
from sdjax.train.builtin import vocabulary
from sdjax.train.config import TrainConfig
from sdjax.train.run import Run

pytest.importorskip("gcsfs")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # gcsfs's own warnings


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of eight pictures with captions, and a model with random weights that knows them."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a square, number {i}")
    tokenizer = vocabulary.learn(iter(["a square, number"] * 20), TINY.text.vocab_size)
    write_model(TINY, random_model(TINY, "float32").params, tokenizer, folder / "model")
    return folder


@pytest.fixture
def store(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with bucket.serving() as served:
        yield served


def settings(pictures, steps=4, path=None):
    config = finetune.get_config().to_dict()
    config["model"]["path"] = path or str(pictures / "model")
    config["data"] |= {"parts": [{"source": {"folder": str(pictures)}}], "buckets": False}
    config["optim"] |= {"steps": steps, "learning_rate": 1e-3, "warmup": 0}
    config |= {"batch_size": 4}
    config["log"] |= {"every": 1, "tensorboard": True}
    config["checkpoint"] |= {"steps": 1}
    return build(TrainConfig, config)


def train(folder, config):
    return Run(config, folder, lambda text: None, devices=jax.devices()[:1]).train()


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_run_in_a_bucket_goes_on_as_one_in_a_folder(pictures, store, tmp_path, monkeypatch, capsys):
    whole = train(tmp_path / "here", settings(pictures))
    # The second step's checkpoint breaks off while it is written: it is none, and the first one is gone on from
    store.torn = "run/checkpoints/2.json"
    with pytest.raises(OSError, match="gs://store/run"):
        train("gs://store/run", settings(pictures))
    assert "store/run/checkpoints/1.json" in store.names()
    assert "store/run/checkpoints/2.json" not in store.names()
    store.torn = None
    resumed = train("gs://store/run", settings(pictures))
    assert same(whole.params, resumed.params)
    assert same(whole.ema_params, resumed.ema_params)
    lines = [json.loads(line) for line in buckets.get("gs://store/run/log.jsonl").splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert any("tfevents" in name for name in store.names("store/run/tensorboard/"))
    assert not (tmp_path / "gs:").exists()

    pipe = sdjax.load("gs://store/run", dtype="float32")
    assert same(pipe.params["unet"], sdjax.load(tmp_path / "here", dtype="float32").params["unet"])
    assert main(["convert", "gs://store/run", "gs://store/out.safetensors"]) == 0
    assert main(["convert", "gs://store/out.safetensors", "gs://store/folder"]) == 0
    assert main(["convert", "gs://store/out.safetensors", "gs://store/folder"]) != 0  # it is there
    assert main(["inspect", "gs://store/folder"]) == 0
    assert same(pipe.params, sdjax.load("gs://store/folder", dtype="float32").params)
    assert not (tmp_path / "gs:").exists()


def test_a_stopped_run_goes_on_from_a_model_and_pictures_in_a_bucket(pictures, store, monkeypatch):
    buckets.upload(pictures / "model", "gs://store/model")
    for path in pictures.glob("*.*"):
        buckets.upload(path, f"gs://store/set/{path.name}")
    config = settings("gs://store/set", steps=2, path="gs://store/model")
    state = train("gs://store/run2", config)
    assert int(state.step) == 2
    assert same(state.params, train("gs://store/run2", config).params)  # finished: nothing more is done


def test_a_changed_model_is_fetched_again(store, tmp_path):
    buckets.put("gs://store/m/config.json", b"1")
    first = buckets.fetch("gs://store/m")
    assert (first / "config.json").read_bytes() == b"1"
    asked = len(store.requests)
    assert buckets.fetch("gs://store/m") == first
    assert not any("alt=media" in request for request in store.requests[asked:])  # not fetched twice
    buckets.put("gs://store/m/config.json", b"2")
    assert (buckets.fetch("gs://store/m") / "config.json").read_bytes() == b"2"


def test_what_is_not_there_or_not_allowed_is_said(store):
    with pytest.raises(sdjax.convert.CheckpointError, match="gs://store/none.*no such file"):
        sdjax.load("gs://store/none")
    store.torn = "x"
    with pytest.raises(OSError, match="gs://store/x"):
        buckets.put("gs://store/x", b"1")
