"""Checkpoints: what is stored comes back bit for bit or not at all, whatever happens to the disk or the program."""

import json
import os
import random
import re
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoint_checks import State, assert_same, fill, state_at
from jax.sharding import NamedSharding, PartitionSpec

from sdjax.loading.run_folder import read_parts
from sdjax.storage import manifest
from sdjax.train.checkpoints.checkpoint import Checkpoints


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
    "truncated": (truncate, "its file .* has changed since it was written"),
    "emptied": (lambda folder: os.truncate(files_of(folder, 3)[0], 0), "its file .* has changed since it was written"),
    "deleted": (lambda folder: files_of(folder, 3)[1].unlink(), "its file .* is missing"),
    "added": (lambda folder: (folder / "00000003/more").write_text(""), "its file more is not in its manifest"),
    "no folder": (lambda folder: shutil.rmtree(folder / "00000003"), "its folder is missing"),
    "no manifest": (lambda folder: (folder / "3.json").unlink(), "it has no manifest: writing it was interrupted"),
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
    assert re.search(f"is skipped: {said}|{said}", line)
    assert line.endswith(f"step {intact} is used instead")
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
