"""Stopping and going on: bit-exact, through damaged checkpoints, signals and errors."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.train.checkpoint import Checkpoints
from sdjax.train.loop import ahead, fit
from sdjax.train.optim import OptimConfig, make_optimizer
from sdjax.train.state import TrainState
from sdjax.train.step import make_train_step

OPTIMIZER = make_optimizer(OptimConfig(steps=12, learning_rate=1e-3, warmup=2))


def batch(n):
    rng = np.random.default_rng([0, n])
    x = rng.normal(size=(4, 8)).astype(np.float32)
    return x, np.sin(x)


def loss(params, data, key):
    """A small regression that, as diffusion, draws noise from its key."""
    x, y = data
    hidden = jnp.tanh(x @ params["first"] + 0.1 * jax.random.normal(key, (4, 16)))
    value = jnp.square(hidden @ params["second"] - y).mean()
    return value, {"loss": value}


@pytest.fixture(scope="module")
def train_step():
    return make_train_step(loss, OPTIMIZER, 0.99)


def start():
    keys = jax.random.split(jax.random.key(0))
    shapes = {"first": (8, 16), "second": (16, 8)}
    params = {name: 0.3 * jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items())}
    return TrainState.create(params, OPTIMIZER, seed=1)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_a_resumed_run_ends_bit_for_bit_where_one_without_a_stop_ends(tmp_path, train_step):
    whole = fit(start(), train_step, batch, steps=6, folder=tmp_path / "whole", log_every=2)
    fit(start(), train_step, batch, steps=3, folder=tmp_path / "parts", log_every=2)
    resumed = fit(start(), train_step, batch, steps=6, folder=tmp_path / "parts", log_every=2)
    assert_same(whole, resumed)
    lines = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6]
    assert Checkpoints(tmp_path / "parts").steps() == [3, 6]


def test_a_stop_signal_saves_and_is_resumed(tmp_path, train_step):
    def interrupting(n):
        if n == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(n)

    with pytest.raises(KeyboardInterrupt, match="of 50; the same command goes on from there"):
        fit(start(), train_step, interrupting, steps=50, folder=tmp_path)
    (stopped,) = Checkpoints(tmp_path).steps()
    assert stopped < 50
    state = fit(start(), train_step, batch, steps=stopped + 1, folder=tmp_path)
    assert int(state.step) == stopped + 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def simple(step):
    return TrainState(
        jnp.int32(step), {"w": jnp.full([64], float(step))}, {"w": jnp.zeros([64])}, (), jax.random.key(step)
    )


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(simple(step))
    largest = max((p for p in (tmp_path / "00000003").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    (tmp_path / "00000004").mkdir()  # begun and never finished: no manifest
    assert_same(checkpoints.restore(simple(0)), simple(2))
    (tmp_path / "2.json").write_text("{}")
    (tmp_path / "1.json").write_text("{}")
    with pytest.raises(ValueError, match="every checkpoint in .* is damaged .1, 2, 3."):
        checkpoints.restore(simple(0))


def test_the_newest_checkpoints_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.restore(simple(0)) is None
    for step in (1, 5, 9):
        checkpoints.save(simple(step))
    assert checkpoints.steps() == [5, 9]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["00000005", "00000009"]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    def logarithm(params, data, key):
        value = jnp.log(params["w"] - data).sum()
        return value, {"loss": value}

    step = make_train_step(logarithm, OPTIMIZER, 0.9)
    state = TrainState.create({"w": jnp.ones([1])}, OPTIMIZER, seed=0)
    with pytest.raises(FloatingPointError, match="before step 1"):
        fit(state, step, lambda n: jnp.array([2.0]), steps=4, folder=tmp_path, log_every=1)
    assert Checkpoints(tmp_path).steps() == []


def test_batches_made_ahead_come_in_order_and_bring_their_errors():
    assert list(ahead(lambda n: n * n, 3, 40)) == [n * n for n in range(3, 40)]

    def broken(n):
        if n == 2:
            raise OSError("no picture")
        return n

    with pytest.raises(OSError, match="no picture"):
        list(ahead(broken, 0, 5))
