"""Checkpoints on disks that are full, of runs that are killed, and of several processes."""

import errno
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
from checkpoint_checks import State, assert_same, fill, state_at
from jax.sharding import NamedSharding, PartitionSpec

from sdjax.storage import files, manifest
from sdjax.train.checkpoints.checkpoint import Checkpoints

# Orbax gives up waiting for the other arrays when the writing of one fails; their ends find nobody then
abandoned = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def small_files():
    """Lets no file grow past 100 kB: the writing of a larger one fails, as it does on a full disk."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@abandoned
def test_a_write_that_fails_is_raised_later_and_leaves_the_step_before(tmp_path, small_files, caplog):
    checkpoints, lines = fill(tmp_path, 1)
    large = state_at(2).replace(ema_params={"w": jax.random.normal(jax.random.key(0), (500, 500))})
    checkpoints.save(large)  # the error comes when it is written
    with pytest.raises(OSError, match=r"checkpoint 2 was not written to .* \(the newest there is 1\): ") as caught:
        checkpoints.save(large)
    assert caught.value.errno == errno.EFBIG
    assert caplog.text == ""
    assert not (tmp_path / "00000002").exists()
    assert_same(checkpoints.restore(state_at(0)), state_at(1))
    checkpoints.save(large)
    with pytest.raises(OSError, match="checkpoint 2"):
        checkpoints.close()
    small_files()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(large)
    assert checkpoints.steps() == [1, 2]
    assert_same(checkpoints.restore(large), large)
    assert lines == []


def test_a_disk_that_is_full_at_the_manifest_keeps_the_step_before(tmp_path, monkeypatch):
    checkpoints, _ = fill(tmp_path, 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        checkpoints.save(state_at(2))
        with pytest.raises(
            OSError, match="checkpoint 2 was not written .* the disk is full; free some space"
        ) as caught:
            checkpoints.wait()
        assert caught.value.errno == errno.ENOSPC
        lines = []
        others = Checkpoints(tmp_path, say=lines.append)
        with pytest.raises(KeyError), others:  # which no error of the saving may hide
            raise KeyError(others.save(state_at(2)))
        assert "the disk is full" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "1.json"]
    checkpoints.save(state_at(2), wait=True)
    assert checkpoints.steps() == [1, 2]


def test_what_fails_after_a_step_is_whole_leaves_it(tmp_path, monkeypatch):
    checkpoints, _ = fill(tmp_path, 1, keep=1)
    write_json = manifest.write_json

    def full(file, content):
        if file.name == "best.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_json(file, content)

    monkeypatch.setattr(manifest, "write_json", full)
    checkpoints.save(state_at(2), metric=1.0)
    with pytest.raises(OSError, match="checkpoint 2 was written to .*, but then: the disk is full"):
        checkpoints.wait()
    assert_same(checkpoints.restore(state_at(0)), state_at(2))


@pytest.mark.slow
@abandoned
@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="mounts a disk of 4 MB")
def test_a_full_disk_keeps_the_step_before(monkeypatch, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", tmp_path]).returncode:
        pytest.skip("cannot mount a disk here")
    try:
        checkpoints, _ = fill(tmp_path, 1)
        large = state_at(2).replace(ema_params={"w": jax.random.normal(jax.random.key(0), (2000, 2000))})
        for looked in True, False:  # seen before anything is written, and while it is written
            if not looked:
                monkeypatch.setattr(files, "has_room", lambda *_: True)
            with pytest.raises(OSError, match="checkpoint 2 was not written .* the disk is full; free") as caught:
                checkpoints.save(large, wait=True)
            assert caught.value.errno == errno.ENOSPC
        assert_same(checkpoints.restore(state_at(0)), state_at(1))
        checkpoints.save(state_at(2), wait=True)
        assert checkpoints.steps() == [1, 2]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


KILLED = """
import sys
import jax, jax.numpy as jnp
from sdjax.train.checkpoint import Checkpoints
from train.test_checkpoint_failures import large_at

with Checkpoints(sys.argv[1], say=lambda line: None) as checkpoints:
    state = checkpoints.restore(large_at(0))
    step = 0 if state is None else int(state.step)
    while True:
        step += 1
        checkpoints.save(large_at(step))
        if checkpoints.steps():
            print(checkpoints.steps()[-1], flush=True)
"""


def large_at(step):
    """Returns a state of 12 MB in 12 arrays that differs in every step."""
    params = {f"w{n}": jnp.arange(250_000) * step + n for n in range(12)}
    return State(jnp.int32(step), params, {}, (), jax.random.key(step))


def start(script, *args, **environment):
    own = os.path.dirname(os.path.abspath(__file__))
    paths = os.pathsep.join([own, os.path.dirname(own)])
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **environment}
    return subprocess.Popen([sys.executable, "-c", script, *map(str, args)], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


@pytest.mark.slow
def test_a_run_killed_at_any_moment_loses_no_finished_step(tmp_path):
    rng, unfinished = random.Random(0), 0
    for _ in range(8):
        with start(KILLED, tmp_path) as process:
            said = [process.stdout.readline()]
            time.sleep(rng.uniform(0, 1.5))
            process.kill()
            said += process.stdout.readlines()
        acknowledged = int(said[-1])
        lines = []
        restored = Checkpoints(tmp_path, say=lines.append).restore(large_at(0))
        assert int(restored.step) >= acknowledged
        assert_same(restored, large_at(int(restored.step)))
        unfinished += len(lines)
    assert unfinished >= 3  # or it was never killed while writing
    assert len(list(tmp_path.iterdir())) <= 8  # of steps cut short nothing piles up


TWO = """
import os, signal, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
(rank, victim), (folder, port) = map(int, sys.argv[1:3]), sys.argv[3:]
jax.distributed.initialize(f"localhost:{port}", 2, rank, heartbeat_timeout_seconds=10)
from train.test_checkpoint_failures import Checkpoints, assert_same, sharded

assert jax.device_count() == 4
lines = []
checkpoints = Checkpoints(folder, keep=2, say=lines.append, timeout=20)
assert checkpoints.restore(sharded(0)) is None
for step in (1, 2, 3):
    checkpoints.save(sharded(step), metric=1 / step)
restored = checkpoints.restore(sharded(0))
assert_same(jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, (restored.params, restored.step)),
            jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, (sharded(3).params, sharded(3).step)))
assert restored.params["rows"].sharding == sharded(0).params["rows"].sharding
assert checkpoints.steps() == [2, 3] and checkpoints.best() == (3, 1 / 3)
if rank == 0:
    with open(f"{folder}/3.json") as file:
        whole = file.read()
    with open(f"{folder}/3.json", "w") as file:
        file.write("{")
assert int(checkpoints.restore(sharded(0)).step) == 2
assert len(lines) == (1 if rank == 0 else 0), lines
if rank == 0:
    with open(f"{folder}/3.json", "w") as file:
        file.write(whole)
assert int(checkpoints.restore(sharded(0)).step) == 3
print("ready", flush=True)
checkpoints.save(sharded(4))
if rank == victim:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    checkpoints.wait()
except OSError as error:
    print("told:", error, flush=True)
os._exit(3)
"""


def wide_at(step):
    """Returns a state of 48 MB."""
    params = {"rows": jnp.arange(12_000_000).reshape(4, -1) * step, "all": jnp.arange(9.0) + step}
    return State(jnp.int32(step), params, {}, (), jax.random.key(step))


def sharded(step):
    """Returns that state spread over all devices of all processes."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    specs = jax.tree.map(lambda leaf: PartitionSpec(), jax.eval_shape(lambda: wide_at(0)))
    specs.params["rows"] = PartitionSpec("data")
    return jax.jit(lambda: wide_at(step), out_shardings=jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_two_processes_save_and_one_restores_when_one_of_them_was_killed(tmp_path, victim):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=2"
    processes = [start(TWO, rank, victim, tmp_path, port, XLA_FLAGS=flags) for rank in range(2)]
    try:
        outputs = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all("ready" in output for output in outputs), outputs
    assert processes[victim].returncode == -signal.SIGKILL
    assert processes[1 - victim].returncode != 0
    lines = []
    assert_same(Checkpoints(tmp_path, say=lines.append).restore(wide_at(0)), wide_at(3))
    assert victim or "checkpoint 4 in" in lines[0]  # the first process cannot tidy up any more
