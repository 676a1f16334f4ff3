"""Stopping and going on: bit-exact, through damaged checkpoints, signals and errors."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdjax.train.checkpoints.checkpoint import Checkpoints
from sdjax.train.data.ahead import ahead
from sdjax.train.loop import Event, Stopped, fit
from sdjax.train.metrics import Writers
from sdjax.train.objectives import draws
from sdjax.train.optim import OptimConfig, make_optimizer
from sdjax.train.state import GuardConfig, TrainState
from sdjax.train.step import make_train_step
from sdjax.train.watch import HUNG

OPTIMIZER = make_optimizer(OptimConfig(steps=12, learning_rate=1e-3, warmup=2))


def batch(n):
    rng = np.random.default_rng([0, n])
    x = rng.normal(size=(4, 8)).astype(np.float32)
    return x, np.sin(x)


def loss(params, average, data, keys, step):
    """A small regression that, as diffusion, draws noise from its keys."""
    x, y = data
    hidden = jnp.tanh(x @ params["first"] + 0.1 * draws.normal(keys, draws.NOISE, (16,)))
    value = jnp.square(hidden @ params["second"] - y).mean()
    return value, {"loss": value}


@pytest.fixture(scope="module")
def train_step():
    return compiled(loss)


def compiled(loss, optimizer=OPTIMIZER, **settings):
    step = jax.jit(make_train_step(loss, optimizer, 0.99, **settings), donate_argnums=0)
    return lambda state, batch: step(state, {}, batch)


def run(folder, train_step, steps, *, state=None, batch=batch, keep=2, **settings):
    """Goes on from the folder's newest checkpoint, as a training does."""
    with Checkpoints(folder, keep) as checkpoints:
        state = start() if state is None else state
        state = checkpoints.restore(state) or state
        with contextlib.closing(Writers(folder, steps, first=int(state.step), tensorboard=False)) as log:
            return fit(
                state, train_step, lambda first: ahead(batch, first, steps), steps=steps, checkpoints=checkpoints,
                log=log, **settings,
            )  # fmt: skip


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
    whole = run(tmp_path / "whole", train_step, 6, log_every=2)
    run(tmp_path / "parts", train_step, 3, log_every=2)
    resumed = run(tmp_path / "parts", train_step, 6, log_every=2)
    assert_same(whole, resumed)
    lines = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6]
    assert Checkpoints(tmp_path / "parts").steps() == [3, 6]


def test_a_stop_signal_saves_and_is_resumed(tmp_path, train_step):
    def interrupting(n):
        if n == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(n)

    with pytest.raises(Stopped, match="of 50; the same command goes on from there"):
        run(tmp_path, train_step, 50, batch=interrupting)
    (stopped,) = Checkpoints(tmp_path).steps()
    assert stopped < 50
    state = run(tmp_path, train_step, stopped + 1)
    assert int(state.step) == stopped + 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_user_signal_saves_and_goes_on(tmp_path, train_step):
    def asking(n):
        if n == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return batch(n)

    run(tmp_path, train_step, 12, batch=asking)
    first, last = Checkpoints(tmp_path).steps()
    assert first < 12 == last


def test_bad_steps_change_nothing_and_too_many_end_the_run(tmp_path):
    def bad(number):
        return lambda n: batch(n) if n not in number else tuple(np.full_like(a, np.nan) for a in batch(n))

    step = compiled(loss)
    state = run(tmp_path / "some", step, 8, batch=bad({2, 3, 6}), log_every=4, refused_limit=3)
    assert (int(state.refused.total), int(state.updates)) == (3, 5)
    lines = [json.loads(line) for line in (tmp_path / "some" / "log.jsonl").read_text().splitlines()]
    assert [line["refused"] for line in lines] == [2, 1]
    assert all(np.isfinite(line["loss"]) for line in lines)
    # what is left is the run that never saw them, but for what is drawn
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.ema_params)))
    with pytest.raises(FloatingPointError, match="3 steps in a row, up to step"):
        run(tmp_path / "many", step, 8, batch=bad({2, 3, 4}), refused_limit=3)
    assert Checkpoints(tmp_path / "many").steps() == []


def test_a_refused_step_leaves_the_whole_state_as_it_was():
    step = compiled(loss)
    before = jax.tree.map(np.asarray, (start().params, start().ema_params, start().opt_state))
    state, metrics = step(start(), tuple(np.full_like(a, np.inf) for a in batch(0)))
    assert float(metrics["refused"]) == 1
    assert_same(before, (state.params, state.ema_params, state.opt_state))
    assert (int(state.step), int(state.updates), int(state.refused.in_a_row)) == (1, 0, 1)
    state, _ = step(state, batch(1))
    assert (int(state.updates), int(state.refused.in_a_row)) == (1, 0)


def test_a_spike_is_a_gradient_far_above_the_usual(tmp_path):
    def linear(params, average, data, keys, step):  # a gradient is the data
        value = (params["w"] * data).sum()
        return value, {"loss": value}

    step = compiled(linear, optax.sgd(1e-3), guard=GuardConfig(spike=5.0, after=4))
    sizes = [40.0, 1.0, 1.0, 2.0, 30.0, 80.0, 1.0]  # usual after four: 11; after the fifth, 14.8
    state = TrainState.create({"w": jnp.zeros([1])}, optax.sgd(1e-3), seed=0)
    seen = []
    for size in sizes:
        state, metrics = step(state, jnp.array([size]))
        seen.append(float(metrics["refused"]))
    assert seen == [0, 0, 0, 0, 0, 1, 0]
    assert float(state.refused.typical) == pytest.approx(np.mean([40, 1, 1, 2, 30, 1]))


def test_parts_of_a_batch_give_the_step_of_the_whole():
    whole, _ = compiled(loss)(start(), batch(0))
    parts, _ = compiled(loss, accumulate=2)(start(), batch(0))
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_events_come_when_they_are_due_and_the_best_state_is_saved(tmp_path, train_step):
    called = []

    def validate(state):
        called.append(int(state.step))
        return {"best": abs(int(state.step) - 4), "validation": 1.0}

    run(tmp_path, train_step, 7, events=(Event(2, validate),), keep=1)
    assert called == [2, 4, 6, 7]
    assert Checkpoints(tmp_path, keep=1).steps() == [4, 7]
    # what comes first comes before the first step, and not again when the run goes on
    called.clear()
    run(tmp_path / "first", train_step, 3, events=(Event(5, validate, first=True),))
    run(tmp_path / "first", train_step, 4, events=(Event(5, validate, first=True),))
    assert called == [0, 3, 4]


def test_compiling_is_said_and_counts_for_no_time(tmp_path, train_step, capsys):
    seen = set()

    def slow(state, data):
        if len(data[0]) not in seen:  # as XLA
            seen.add(len(data[0]))
            time.sleep(1.0)
        return train_step(state, data)

    sizes = lambda n: jax.tree.map(lambda a: a[: 2 if n % 2 else 1], batch(n))  # noqa: E731
    run(tmp_path, slow, 6, batch=sizes, log_every=1, programs=2)
    told = capsys.readouterr().err
    assert "compiling program 1 of 2 of the training step" in told
    assert "; 1 more to come, each with the first batch of its size" in told
    assert told.count("compiled in ") == told.count("compiling program") == 2
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert max(line["seconds"] for line in lines) < 1.0


def test_a_run_that_hangs_ends_with_a_sentence(tmp_path):
    code = """
import time
from sdjax.train.watch import Watch
with Watch(0.5) as watch, watch("step 7"):
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == HUNG
    assert "step 7 took longer than 0.5 seconds (process 0 of 1)" in done.stderr


def test_batches_made_ahead_come_in_order_and_bring_their_errors():
    assert list(ahead(lambda n: n * n, 3, 40)) == [n * n for n in range(3, 40)]

    def broken(n):
        if n == 2:
            raise OSError("no picture")
        return n

    with pytest.raises(OSError, match="no picture"):
        list(ahead(broken, 0, 5))
