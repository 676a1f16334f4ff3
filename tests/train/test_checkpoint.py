"""Checkpoints: what is stored comes back bit for bit or not at all, whatever happens to the disk or the program."""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sdjax.train import manifest
from sdjax.train.checkpoint import Checkpoints, read_parts


@flax.struct.dataclass
class State:
    """A small training state: two types of numbers, an optimiser with named tuples and empty parts, a typed key."""

    step: jax.Array
    params: dict
    ema_params: dict
    opt_state: object
    key: jax.Array


def state_at(step, size=64):
    rng = np.random.default_rng(step)
    params = {
        "in": {"kernel": jnp.asarray(rng.normal(size=(8, size)), jnp.float32), "bias": jnp.zeros(size)},
        "out": jnp.asarray(rng.normal(size=(size, 3)), jnp.bfloat16),
        "none": {},
    }
    average = jax.tree.map(lambda leaf: leaf / 2, params)
    opt_state = optax.chain(optax.clip(1.0), optax.adam(0.1)).init(params)
    return State(jnp.int32(step), params, average, opt_state, jax.random.key(step))


def data(leaf):
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(data(x), data(y))


def fill(folder, *steps, **options):
    """Saves some steps and returns the lines that will be said about them."""
    lines = []
    checkpoints = Checkpoints(folder, **{"keep": 9, "say": lines.append, **options})
    for step in steps:
        checkpoints.save(state_at(step))
    checkpoints.wait()
    return checkpoints, lines


def files_of(folder, step):
    return [path for path in sorted((folder / f"{step:08d}").rglob("*")) if path.is_file()] + [folder / f"{step}.json"]


def test_what_is_restored_is_what_was_saved(tmp_path):
    checkpoints, lines = fill(tmp_path, 1, 2)
    restored = checkpoints.restore(state_at(0))
    assert_same(restored, state_at(2))
    np.testing.assert_array_equal(jax.random.normal(restored.key, 3), jax.random.normal(jax.random.key(2), 3))
    assert_same(checkpoints.restore(state_at(0), step=1), state_at(1))
    assert lines == []
    assert Checkpoints(tmp_path / "none").restore(state_at(0)) is None
    with pytest.raises(ValueError, match="holds no checkpoint 7; it holds 1, 2"):
        checkpoints.restore(state_at(0), step=7)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_of_any_kind_come_back_anywhere_in_the_state(tmp_path, impl):
    keys = {"one": jax.random.key(3, impl=impl), "many": [jax.random.split(jax.random.key(4, impl=impl), (2, 3))]}
    state = State(jnp.int32(1), {}, {}, keys, jax.random.key(5))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        assert_same(checkpoints.restore(jax.eval_shape(lambda: state)), state)


def test_a_state_is_restored_onto_another_number_of_devices(tmp_path):
    def on(count, make):
        mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])

        def place(leaf):
            rows = leaf.shape[:1] if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else ()
            spec = PartitionSpec("data") if rows and rows[0] % count == 0 else PartitionSpec()
            return make(leaf, NamedSharding(mesh, spec))

        return place

    def abstract(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(jax.tree.map(on(8, jax.device_put), state_at(1)))
    for count, make in ((2, jax.device_put), (4, abstract), (1, abstract)):
        restored = checkpoints.restore(jax.tree.map(on(count, make), state_at(0)))
        assert_same(restored, state_at(1))
        assert len(restored.params["in"]["kernel"].sharding.device_set) == count
        assert restored.params["in"]["kernel"].addressable_shards[0].data.shape == (8 // count, 64)


def test_a_state_may_be_donated_and_overwritten_while_it_is_written(tmp_path):
    expected = np.arange(12_000_000)
    state = State(jnp.int32(1), {"w": jnp.array(expected)}, {"n": np.arange(9)}, (), jax.random.key(0))
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 + 7, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        assert checkpoints.steps() == []  # it is not on the disk yet
        state.ema_params["n"][:] = 7
        other = jax.block_until_ready(overwrite(state.params))
        for _ in range(3):
            other = jax.block_until_ready(overwrite(other))
        checkpoints.wait()
        assert checkpoints.steps() == [1]
        like = State(
            jnp.int32(0), {"w": jnp.zeros(expected.shape, int)}, {"n": np.zeros(9, int)}, (), jax.random.key(1)
        )
        restored = checkpoints.restore(like)
    np.testing.assert_array_equal(restored.params["w"], expected)
    np.testing.assert_array_equal(restored.ema_params["n"], np.arange(9))


def test_no_flipped_bit_loads(tmp_path):
    checkpoints, _ = fill(tmp_path, 1)
    rng = random.Random(0)
    *files, manifest_file = files_of(tmp_path, 1)
    places = [(file, rng.randrange(file.stat().st_size)) for file in [*files * 8, *[manifest_file] * 30]]
    assert len(places) >= 80
    for file, byte in places:
        whole = file.read_bytes()
        file.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1 << rng.randrange(8)]) + whole[byte + 1 :])
        with pytest.raises(ValueError, match="every checkpoint in .* is damaged"):
            checkpoints.restore(state_at(0))
        file.write_bytes(whole)
    assert_same(checkpoints.restore(state_at(0)), state_at(1))


def truncate(folder):
    file = max(files_of(folder, 3), key=lambda file: file.stat().st_size)
    os.truncate(file, file.stat().st_size - 1)


DAMAGES = {
    "truncated": (truncate, "its file .* is not what was written"),
    "emptied": (lambda folder: os.truncate(files_of(folder, 3)[0], 0), "its file .* is not what was written"),
    "deleted": (lambda folder: files_of(folder, 3)[1].unlink(), "its file .* is missing"),
    "added": (lambda folder: (folder / "00000003/more").write_text(""), "its file more is not in its manifest"),
    "no folder": (lambda folder: shutil.rmtree(folder / "00000003"), "its folder is missing"),
    "no manifest": (lambda folder: (folder / "3.json").unlink(), "it has no manifest: its writing was cut short"),
    "garbage": (lambda folder: (folder / "3.json").write_bytes(b"\xff\x00{"), "its manifest 3.json is garbled"),
    "a list": (lambda folder: (folder / "3.json").write_text("[]"), "its manifest 3.json is garbled"),
    "begun": (lambda folder: (folder / "00000004").mkdir(), "checkpoint 4 .* it has no manifest"),
    "named only": (lambda folder: (folder / "4.json").write_text("{}"), "checkpoint 4 .* its folder is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_passed_over_and_said(tmp_path, damage):
    checkpoints, lines = fill(tmp_path, 2, 3)
    act, said = DAMAGES[damage]
    act(tmp_path)
    intact = 3 if "checkpoint 4" in said else 2
    assert_same(checkpoints.restore(state_at(0)), state_at(intact))
    (line,) = lines
    assert re.search(f"is passed over: {said}|{said}", line)
    assert line.endswith(f"step {intact} is taken instead")
    with pytest.raises(ValueError, match=r"checkpoint . in .* is damaged: it"):
        checkpoints.restore(state_at(0), step=intact + 1)


def test_where_no_step_is_intact_nothing_is_restored(tmp_path):
    checkpoints, _ = fill(tmp_path, 1, 2)
    (tmp_path / "1.json").write_text("{}")
    (tmp_path / "2.json").write_text("{")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged \(1: its file .*; 2: its manifest"):
        checkpoints.restore(state_at(0))


def test_a_run_that_never_finished_a_step_starts_anew(tmp_path):
    lines = []
    (tmp_path / "00000005").mkdir()
    assert Checkpoints(tmp_path, say=lines.append).restore(state_at(0)) is None
    assert "it has no manifest" in lines[0]


def test_steps_passed_over_never_push_out_whole_ones_and_are_written_again(tmp_path):
    fill(tmp_path, 1, 4, 5, 6)
    for step in (5, 6):
        (tmp_path / f"{step}.json").write_text("{}")
    checkpoints = Checkpoints(tmp_path, keep=2, say=lambda line: None)
    assert_same(checkpoints.restore(state_at(0)), state_at(4))
    checkpoints.save(state_at(5), wait=True)
    assert manifest.fault(tmp_path, 5) is None
    assert checkpoints.steps() == [4, 5, 6]
    checkpoints.save(state_at(7), wait=True)
    assert checkpoints.steps() == [5, 7]
    assert not (tmp_path / "00000006").exists()


def test_the_newest_stay_and_every_so_many(tmp_path):
    checkpoints, _ = fill(tmp_path, 3, 4, 5, 6, 8, 9, keep=2, keep_every=4)
    assert checkpoints.steps() == [4, 8, 9]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["00000004", "00000008", "00000009"]
    (tmp_path / "00000007").mkdir()  # of a run that was killed
    checkpoints.save(state_at(10), wait=True)
    assert not (tmp_path / "00000007").exists()
    for wrong in ({"keep": 0}, {"keep_every": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            Checkpoints(tmp_path, **wrong)


def test_the_best_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.best() is None
    for step, metric in ((0, float("nan")), (1, 0.5), (2, np.float32(0.25)), (3, 0.75), (4, float("nan")), (5, 0.25)):
        checkpoints.save(state_at(step), metric=metric, wait=True)
    assert checkpoints.best() == (2, 0.25)
    assert checkpoints.steps() == [2, 5]
    checkpoints.save(state_at(5), metric=0.125)  # measured after it was saved
    assert checkpoints.best() == (5, 0.125)
    checkpoints.save(state_at(6), wait=True)
    assert checkpoints.steps() == [5, 6]
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 5, "metric": 0.125}
    (tmp_path / "best.json").write_text("{")
    assert checkpoints.best() is None


def test_a_step_is_written_once(tmp_path):
    checkpoints, _ = fill(tmp_path, 1)
    before = (tmp_path / "1.json").stat().st_mtime_ns
    checkpoints.save(state_at(1), wait=True)
    again = Checkpoints(tmp_path)
    again.save(again.restore(state_at(0)), wait=True)
    assert (tmp_path / "1.json").stat().st_mtime_ns == before


def test_a_state_of_another_structure_is_refused_by_name(tmp_path):
    checkpoints, _ = fill(tmp_path, 1)
    wider = state_at(0, size=128)
    with pytest.raises(ValueError, match="another model or optimiser: .*kernel .float32.8, 64. there, .*128") as caught:
        checkpoints.restore(wider)
    assert len(str(caught.value)) < 700
    with pytest.raises(ValueError, match=r"opt_state/1/0/mu/in/bias \(float32\[64\] there, none here\)"):
        checkpoints.restore(state_at(0).replace(opt_state=()))
    single = {**state_at(0).params, "out": jnp.zeros([64, 3])}
    with pytest.raises(ValueError, match=r"params/out \(bfloat16\[64, 3\] there, float32\[64, 3\] here\)"):
        checkpoints.restore(state_at(0).replace(params=single))


def test_parts_that_are_younger_than_the_checkpoint_are_taken_from_the_new_state(tmp_path):
    @flax.struct.dataclass
    class Younger(State):
        skipped: jax.Array

    checkpoints, _ = fill(tmp_path, 1)
    like = Younger(**vars(state_at(0)), skipped=jnp.int32(5))
    restored = checkpoints.restore(like, optional=["skipped"])
    assert int(restored.skipped) == 5
    assert_same(State(**{name: value for name, value in vars(restored).items() if name != "skipped"}), state_at(1))
    with pytest.raises(ValueError, match=r"skipped \(none there, int32\[\] here\)"):
        checkpoints.restore(like)


def test_parts_are_read_without_knowing_the_rest(tmp_path):
    fill(tmp_path, 1, 2)
    step, parts = read_parts(tmp_path, "ema_params", "step")
    assert step == int(parts["step"]) == 2
    assert jax.tree.all(jax.tree.map(lambda leaf: type(leaf) is np.ndarray, parts))
    assert parts["ema_params"]["out"].dtype == ml_dtypes.bfloat16
    assert_same(parts["ema_params"], jax.tree.map(np.asarray, state_at(2).ema_params))
    assert_same(read_parts(tmp_path, "ema_params", step=1)[1]["ema_params"]["none"], {})
    with pytest.raises(ValueError, match="holds no ema and no more; it holds ema_params, key, opt_state, params, step"):
        read_parts(tmp_path, "ema", "more")
    assert read_parts(tmp_path / "none", "ema_params") is None
    assert not (tmp_path / "none").exists()


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
def test_a_write_that_fails_is_raised_later_and_leaves_the_step_before(tmp_path, small_files):
    checkpoints, lines = fill(tmp_path, 1)
    large = state_at(2).replace(ema_params={"w": jax.random.normal(jax.random.key(0), (500, 500))})
    checkpoints.save(large)  # the error comes when it is written
    with pytest.raises(OSError, match=r"checkpoint 2 was not written to .* \(the newest there is 1\): ") as caught:
        checkpoints.save(large)
    assert caught.value.errno == errno.EFBIG
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
def test_a_full_disk_keeps_the_step_before(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", tmp_path]).returncode:
        pytest.skip("cannot mount a disk here")
    try:
        checkpoints, _ = fill(tmp_path, 1)
        large = state_at(2).replace(ema_params={"w": jax.random.normal(jax.random.key(0), (2000, 2000))})
        for _ in range(2):
            checkpoints.save(large)
            with pytest.raises(OSError, match="checkpoint 2 was not written .* the disk is full; free") as caught:
                checkpoints.wait()
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
from train.test_checkpoint import large_at

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
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": tests, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **environment}
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
from train.test_checkpoint import Checkpoints, assert_same, sharded

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
