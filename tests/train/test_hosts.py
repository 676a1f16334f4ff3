"""Training by several processes that talk over localhost, as hosts of a cluster do."""

import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import bucket
import numpy as np
import pytest
from models_to_train import TINY, write_model
from PIL import Image

from sdjax.evaluate.benchmark import random_model
from sdjax.train.builtin import vocabulary

STEPS = 30
STARTED: list[subprocess.Popen] = []

CONFIG = """
from sdjax.configs import finetune

def get_config():
    config = finetune.get_config()
    config.model.path = {model!r}
    config.data.parts = ({{"source": {{"folder": {pictures!r}}}}},)
    config.data.buckets = False
    config.batch_size = 8
    config.optim.update(steps={steps}, learning_rate=1e-3, warmup=0)
    config.log.update(every=1, tensorboard=False)
    config.checkpoint.update(steps=3, keep=10)
    config.patience = 60.0
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A configuration file for the small model and sixteen pictures."""
    folder = tmp_path_factory.mktemp("hosts")
    pictures = folder / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(np.full((64, 64, 3), rng.integers(0, 256, 3), np.uint8)).save(pictures / f"{i:02d}.png")
        (pictures / f"{i:02d}.txt").write_text(f"picture {i}")
    tokenizer = vocabulary.learn((f"picture {i % 16}" for i in range(200)), TINY.text.vocab_size)
    write_model(TINY, random_model(TINY, "float32").params, tokenizer, folder / "model")
    path = folder / "config.py"
    path.write_text(CONFIG.format(model=str(folder / "model"), pictures=str(pictures), steps=STEPS))
    return path


def start(config, workdir, *flags, devices=2):
    """Starts a process with so many devices."""
    env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=f"--xla_force_host_platform_device_count={devices} "
               "--xla_backend_optimization_level=0")  # fmt: skip
    command = [sys.executable, "-m", "sdjax.scripts.main", "train", "--config", str(config), "--workdir", str(workdir)]
    process = subprocess.Popen([*command, *flags], env=env, stderr=subprocess.PIPE, text=True)
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_left():
    """Ends what a test that failed left running."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()
        process.stderr.close()


def start_two(config, workdir, *flags):
    """Starts two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        start(config, workdir, "--coordinator", address, "--num-hosts", "2", "--host", str(i), *flags) for i in range(2)
    ]  # fmt: skip


def losses(workdir):
    path = pathlib.Path(workdir) / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The losses of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    process = start(config, workdir, devices=1)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return losses(workdir)


def checkpoints(workdir):
    return sorted(int(path.stem) for path in (workdir / "checkpoints").glob("*.json") if path.stem.isdigit())


def wait(condition, processes):
    """Waits until something is so while processes run."""
    deadline = time.monotonic() + 900
    while not condition():
        assert all(process.poll() is None for process in processes), [p.communicate()[1] for p in processes]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_training_killed_at_any_moment_goes_on_to_the_same_losses(config, alone, tmp_path):
    """Before its settings are written, while its model is kept, in a step, in a save: wherever it happens to be."""
    rng, ends = random.Random(0), []
    for _ in range(8):
        process = start(config, tmp_path, devices=1)
        before = len(losses(tmp_path))
        # From the start on, or from where it has made a step more: a start takes as long as all of its steps
        if rng.random() < 0.6:
            wait(lambda: len(losses(tmp_path)) > before or process.poll() is not None, [process])  # noqa: B023
            time.sleep(rng.uniform(0, 0.5))
        else:
            time.sleep(rng.uniform(0, 12))
        process.kill()
        process.communicate()
        ends.append(checkpoints(tmp_path)[-1:])
    assert len({tuple(end) for end in ends}) >= 3, ends  # it went on in between
    last = start(config, tmp_path, devices=1)
    _, said = last.communicate(timeout=900)
    assert last.returncode == 0, said
    assert losses(tmp_path) == alone


@pytest.mark.slow
def test_two_processes_train_one_is_killed_and_one_alone_goes_on(config, alone, tmp_path):
    processes = start_two(config, tmp_path)
    wait(lambda: checkpoints(tmp_path), processes)
    processes[1].kill()
    _, said = processes[0].communicate(timeout=300)
    assert processes[0].returncode == 6, said
    assert "the same command goes on from the newest checkpoint" in said
    assert 3 <= checkpoints(tmp_path)[-1] < STEPS
    last = start(config, tmp_path, devices=4)
    _, said = last.communicate(timeout=900)
    assert last.returncode == 0, said
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_two_processes_measure_pictures_as_one_does(config, tmp_path):
    captions, real = tmp_path / "captions.txt", config.parent / "pictures"
    captions.write_text("".join(f"picture {i}\n" for i in range(5)))  # one more than two processes share evenly
    metrics = {
        "measures": ("fd-autoencoder",), "captions": str(captions), "reference": str(real), "every": 2, "batch": 2,
        "settings": {"num_steps": 2, "guidance_scale": 1.0, "height": 64, "width": 64}, "best": "fd-autoencoder",
    }  # fmt: skip
    changes = [f"--set=validation.metrics.{name}={value!r}" for name, value in metrics.items()]
    for folder, starting in ("one", start), ("two", start_two):
        begun = starting(config, tmp_path / folder, "--steps", "4", *changes)
        processes = [begun] if folder == "one" else begun
        said = [process.communicate(timeout=900)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), said
    one, two = (measured(tmp_path / folder) for folder in ("one", "two"))
    assert list(one) == list(two) == [2, 4]
    assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-3)  # losses agree to 1e-5
    best = min(two, key=two.get)
    assert json.loads((tmp_path / "two" / "checkpoints" / "best.json").read_bytes())["step"] == best


def measured(workdir):
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics/fd-autoencoder"] for line in lines if "metrics/fd-autoencoder" in line}


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_with_a_checkpoint(config, tmp_path):
    processes = start_two(config, tmp_path)
    wait(lambda: losses(tmp_path), processes)
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    step = int(re.search(r"stopped at step (\d+) of 30", said[0])[1])
    assert checkpoints(tmp_path)[-1] == step < 30


@pytest.mark.slow
def test_two_hosts_killed_in_a_bucket_go_on_from_there(config, tmp_path, monkeypatch):
    pytest.importorskip("gcsfs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with bucket.serving() as store:
        processes = start_two(config, "gs://store/run")
        wait(lambda: "store/run/checkpoints/6.json" in store.names(), processes)
        for process in processes:
            process.kill()
            process.communicate()
        left = max(int(re.search(r"(\d+)\.json", name)[1]) for name in store.names("store/run/checkpoints/")
                   if re.fullmatch(r".*/checkpoints/\d+\.json", name))  # fmt: skip
        assert left < STEPS
        said = [process.communicate(timeout=900)[1] for process in start_two(config, "gs://store/run")]
        assert f"store/run/checkpoints/{STEPS}.json" in store.names(), said
        lines = [json.loads(line) for line in store.objects["store/run/log.jsonl"][0].splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, STEPS + 1))  # none is missing, none is there twice
