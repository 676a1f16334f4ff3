"""MLPerf's run: the rules in its configuration, its log, and a whole run of a small model on small tars."""

import json
import math
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from test_moment_tars import npy, write_tar
from whole_runs import run

from sdjax import configs
from sdjax.configs import mlperf_sd2
from sdjax.description import build
from sdjax.loading.start_model import change
from sdjax.scripts.train import read_config
from sdjax.train import mlperf
from sdjax.train.config import TrainConfig
from sdjax.train.loop import DONE, Event
from sdjax.train.mlperf import MLPerfLog


def described(*changes):
    return build(TrainConfig, read_config("mlperf_sd2", changes))


def test_the_configuration_is_the_benchmarks():
    config = described()
    model = change(configs.get("sd2_base"), config.model.changes)
    assert (model.unet.channels, model.unet.norm_groups, model.unet.context_dim) == ((320, 640, 1280, 1280), 16, 1024)
    assert model.unet.linear_projection
    assert [c // h for c, h in zip(model.unet.channels, model.unet.heads) if h] == [64, 64, 64]
    assert (model.schedule.prediction, model.schedule.beta_start, model.schedule.beta_end) == ("v", 0.00085, 0.012)
    assert (model.text.width, model.text.layers) == (1024, 23)  # all of OpenCLIP-H but its last layer
    assert config.model.fresh == ("unet",)
    assert config.ema.decay is None
    assert (config.optim.name, config.optim.beta1, config.optim.beta2, config.optim.weight_decay) == (
        "adamw",
        0.9,
        0.999,
        0.01,
    )
    assert config.optim.learning_rate == pytest.approx(1.25e-7 * config.batch_size)
    assert (config.optim.warmup_steps, config.optim.decay, config.optim.clip) == (1000, "constant", None)
    judged = config.validation.metrics
    assert (judged.count, judged.seed) == (30_000, 2023)
    assert judged.settings == {"sampler": "ddim", "num_steps": 50, "eta": 0.0, "guidance_scale": 8.0}
    assert config.mlperf.targets == {"fid": 90.0, "openclip-score": 0.15}


@pytest.mark.parametrize("batch", [256, 1000, 2048])
def test_pictures_are_judged_after_every_512000(batch, tmp_path):
    config = described(f"batch_size={batch}")
    assert MLPerfLog(config, config.mlperf, tmp_path).every == math.ceil(512_000 / batch)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["mlperf.targets={'fid': 'low'}"], "targets are numbers"),
        (["mlperf.targets={'kid': 1}"], "measures has; got adamw and kid"),
        (["optim.name='lion'", "optim.beta2=None"], "needs AdamW"),
        (["mlperf.every=0"], "every must be 1 or more"),
    ],
)
def test_rules_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        described(*changes)


class State:
    def __init__(self, step):
        self.step = jnp.int32(step)


@pytest.fixture
def log(tmp_path, monkeypatch):
    pytest.importorskip("mlperf_logging")
    config = described("batch_size=256", "optim.steps=8000", "optim.learning_rate=3.2e-5")
    monkeypatch.setattr(mlperf, "read", lambda metrics: range(metrics.count))
    return MLPerfLog(config, config.mlperf, tmp_path)


def lines_of(folder):
    lines = (folder / "mlperf.log").read_text().splitlines()
    assert all(line.startswith(":::MLLOG {") for line in lines)
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]


def train(log, values, seconds=0.0):
    """Goes through a run that is judged once for each of `values`, and returns what the events returned."""

    def judge(state):
        time.sleep(seconds)
        return dict(zip(("metrics/fid", "metrics/openclip-score"), values[int(state.step) // log.every - 1]))

    event = log.judged(Event(5000, judge))
    log.prepare()
    log.begin(0, 6_513_144)
    returned = [event.run(State((i + 1) * event.every)) for i in range(len(values))]
    log.end()
    return returned


def test_a_run_ends_when_both_targets_are_reached_at_once(log):
    returned = train(log, [(100.0, 0.16), (89.0, 0.14), (90.0, 0.15)])
    assert [DONE in one for one in returned] == [False, False, True]
    lines = lines_of(log.folder)
    assert lines[-1]["metadata"]["status"] == "success"
    judged = [
        (one["metadata"]["samples_count"], one["metadata"]["metric"]) for one in lines if one["key"] == "eval_accuracy"
    ]
    assert judged == [(n, name) for n in (512_000, 1_024_000, 1_536_000) for name in ("FID", "CLIP")]


def test_a_run_that_reaches_no_target_is_aborted(log):
    assert not any(DONE in one for one in train(log, [(91.0, 0.2), (math.nan, math.nan)]))
    assert lines_of(log.folder)[-1]["metadata"]["status"] == "aborted"


def test_the_clock_stands_still_while_pictures_are_judged(log):
    before = time.time()
    train(log, [(100.0, 0.1), (100.0, 0.1)], seconds=0.2)
    passed = time.time() - before
    times = {one["key"]: one["time_ms"] for one in lines_of(log.folder)}
    assert passed > 0.4
    assert times["run_stop"] - times["run_start"] < 1000 * (passed - 0.35)


@pytest.mark.slow
def test_mlperfs_own_checker_takes_the_log(log):
    train(log, [(100.0, 0.1), (89.0, 0.16)])
    command = [sys.executable, "-m", "mlperf_logging.compliance_checker", "--usage", "training", "--ruleset", "5.0.0"]
    done = subprocess.run([*command, "mlperf.log"], capture_output=True, text=True, check=False, cwd=log.folder)
    assert "SUCCESS" in done.stdout + done.stderr, done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.slow
def test_a_small_run_goes_from_tars_to_its_target(pictures, tmp_path, programs):
    pytest.importorskip("mlperf_logging")
    rng = np.random.default_rng(0)
    files = {}
    for i in range(16):
        files |= {f"{i:09d}.npy": npy(rng.normal(size=(8, 8, 8)).astype(np.float16)), f"{i:09d}.txt": b"a red square"}
    shard = write_tar(tmp_path / "00000.tar", files)
    (tmp_path / "captions.txt").write_text("a red square\na blue square\n" * 2)
    config = mlperf_sd2.get_config().to_dict()
    config["model"] |= {
        "path": str(pictures / "small"),
        "changes": {"unet": {"norm_groups": 2}, "schedule": {"prediction": "v"}},
    }
    config["data"]["cached"] = (shard,)
    config["optim"] |= {"steps": 6, "learning_rate": 1e-3}
    config["log"] |= {"every": 1, "tensorboard": False}
    config |= {"batch_size": 8, "mlperf": {"every": 12, "targets": {"fd-autoencoder": 1e9}, "stop": True}}
    config["validation"]["metrics"] |= {
        "measures": ("fd-autoencoder",), "captions": str(tmp_path / "captions.txt"), "count": 4, "files": {},
        "reference": str(pictures), "batch": 2, "settings": {"sampler": "ddim", "num_steps": 2, "guidance_scale": 8.0},
    }  # fmt: skip
    state, losses = run(tmp_path / "run", build(TrainConfig, config), devices=8)
    assert int(state.step) == 2  # ceil(12 / 8), and every target is reached at once
    assert sorted(losses) == [1, 2]
    keys = [one["key"] for one in lines_of(tmp_path / "run")]
    assert keys[-7:] == [
        "run_start", "block_start", "block_stop", "eval_start", "eval_accuracy", "eval_stop", "run_stop",
    ]  # fmt: skip
