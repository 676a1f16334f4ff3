"""The moving average, the learning rate, and the step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdjax.train.optim import OptimConfig, learning_rate, make_optimizer
from sdjax.train.state import TrainState, ema_decay, update_ema
from sdjax.train.step import make_train_step


def test_ema_decay_is_litemas():
    # LitEma: num_updates += 1; decay = min(decay, (1 + num_updates) / (10 + num_updates))
    steps = np.array([1, 2, 10, 1000, 10**6])
    expected = [2 / 11, 3 / 12, 11 / 20, 1001 / 1010, 0.9999]
    np.testing.assert_allclose(ema_decay(jnp.asarray(steps), 0.9999), expected, rtol=1e-6)


def test_the_average_of_a_constant_decay_is_the_weighted_sum_that_it_stands_for():
    values = np.random.default_rng(0).normal(size=20).astype(np.float32)
    average = {"w": jnp.float32(0.5)}
    for value in values:
        average = update_ema(average, {"w": jnp.float32(value)}, 0.9)
    weights = 0.1 * 0.9 ** np.arange(20)[::-1]
    assert float(average["w"]) == pytest.approx(0.9**20 * 0.5 + weights @ values, rel=1e-5)


def test_learning_rate_rises_stays_and_falls():
    rate = learning_rate(OptimConfig(steps=100, learning_rate=2.0, warmup=10, cooldown=20))
    seen = np.array([float(rate(n)) for n in range(101)])
    assert seen[0] == pytest.approx(2e-6)
    np.testing.assert_allclose(seen[10:81], 2.0)
    np.testing.assert_allclose(seen[80:101], np.linspace(2.0, 0.0, 21), atol=1e-6)
    assert (np.diff(seen[:11]) > 0).all()


def test_a_longer_run_starts_as_the_shorter_one():
    short, long = (learning_rate(OptimConfig(steps=n, learning_rate=1.0, warmup=5, cooldown=20)) for n in (60, 900))
    assert [float(short(n)) for n in range(40)] == [float(long(n)) for n in range(40)]


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="fit into the run's steps; got 60 and 50 of 100"):
        OptimConfig(steps=100, warmup=60, cooldown=50)
    with pytest.raises(ValueError, match="positive"):
        OptimConfig(steps=100, learning_rate=0.0)


def test_weight_decay_spares_biases_and_scales():
    config = OptimConfig(steps=10, learning_rate=0.1, weight_decay=0.5)
    params = {"kernel": jnp.ones([2, 2]), "bias": jnp.ones([2])}
    optimizer = make_optimizer(config)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05)  # rate * decay * weight: Loshchilov & Hutter, decoupled
    np.testing.assert_allclose(updates["bias"], 0.0)


def test_a_step_is_gradient_descent_with_fresh_keys():
    keys = []

    def loss(params, average, batch, batch_keys, step):
        jax.debug.callback(lambda k: keys.extend(map(tuple, np.asarray(k))), jax.random.key_data(batch_keys))
        value = 0.5 * jnp.square(params["w"] - batch).sum()
        return value, {"loss": value}

    step = jax.jit(make_train_step(loss, optax.sgd(0.25), 0.5))
    state = TrainState.create({"w": jnp.array([3.0])}, optax.sgd(0.25), seed=0)
    state, metrics = step(state, {}, jnp.array([1.0]))
    assert float(metrics["loss"]) == 2.0
    assert float(metrics["gradient"]) == 2.0
    assert float(state.params["w"][0]) == 2.5
    assert float(state.ema_params["w"][0]) == pytest.approx(2 / 11 * 3.0 + 9 / 11 * 2.5)  # the first decay is 2 / 11
    assert int(state.step) == 1
    step(state, {}, jnp.array([1.0, 1.0]))
    jax.effects_barrier()
    assert len(set(keys)) == len(keys) == 3
