"""Optimisers and learning rates, against the formulas of their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.train.optim import OPTIMIZERS, OWN_DECAY, OptimConfig, OptimNumbers, factors, learning_rate, make_optimizer

PARAMS = {
    "unet": {
        "down": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([0.1, -0.2])},
        "up": {"kernel": jnp.array([[2.0, 1.0], [-1.0, 0.5]])},
    }
}
GRADS = jax.tree.map(lambda a: 0.1 * a + 0.05, PARAMS)


def updates(steps=1, **settings):
    optimizer = make_optimizer(OptimConfig(steps=100, **{"learning_rate": 0.1, "clip": None, **settings}))
    state, params = optimizer.init(PARAMS), PARAMS
    for _ in range(steps):
        out, state = optimizer.update(GRADS, state, params)
        params = jax.tree.map(jnp.add, params, out)
    return out


def test_the_cosine_falls_from_the_end_of_the_warm_up_to_its_final_share():
    rate = learning_rate(OptimConfig(steps=110, learning_rate=2.0, warmup=10, decay="cosine", final=0.1))
    seen = np.array([float(rate(n)) for n in range(111)])
    n = np.arange(101)
    np.testing.assert_allclose(seen[10:], 0.2 + 1.8 * 0.5 * (1 + np.cos(np.pi * n / 100)), rtol=1e-5)
    np.testing.assert_allclose(seen[:10], 2.0 * (1e-6 + (1 - 1e-6) * np.arange(10) / 10), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"decay": "linear"}, lambda s: 1 - s),
        ({"decay": "linear", "final": 0.25}, lambda s: 1 - 0.75 * s),
        ({"decay": "polynomial", "power": 2.5}, lambda s: (1 - s) ** 2.5),
        # Three times from 1 towards 0, and 0 at the very end
        ({"decay": "cosine_with_restarts", "cycles": 3}, lambda s: (s < 1) * (1 + np.cos(np.pi * (3 * s % 1))) / 2),
    ],
)
def test_a_falling_rate_is_its_formula(settings, expected):
    rate = learning_rate(OptimConfig(steps=70, learning_rate=0.5, warmup=6, warmup_from=0.0, **settings))
    seen = np.asarray(jax.vmap(rate)(jnp.arange(71)))
    # float32; 3 s is a whole number at some steps, where its rest may be 1 - 1e-7: the cosine then is 1 below
    share = np.arange(65) / 64
    np.testing.assert_allclose(seen[6:], 0.5 * expected(share), atol=1e-6)
    np.testing.assert_allclose(seen[:6], 0.5 * np.arange(6) / 6, atol=1e-7)


def test_sgd_has_nesterovs_momentum():
    # With a constant gradient g, the momentum is g, 1.9 g; Nesterov's steps are 1.9 g, 2.71 g
    first, second = (updates(steps, name="sgd", weight_decay=0.0)["unet"]["up"]["kernel"] for steps in (1, 2))
    np.testing.assert_allclose(first, -0.1 * 1.9 * GRADS["unet"]["up"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(second, -0.1 * 2.71 * GRADS["unet"]["up"]["kernel"], rtol=1e-5)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_numbers_may_be_arguments_of_a_compiled_update(name):
    rates = (("unet/down", 0.5), ("unet/up", 0.0))
    one = OptimConfig(steps=50, name=name, learning_rate=0.3, rates=rates)
    changed = {"steps": 20, "learning_rate": 0.7, "warmup": 2, "warmup_from": 0.5, "weight_decay": 0.2, "clip": 0.1}
    other = OptimConfig(name=name, **changed, cooldown=15, rates=(("unet/down", 0.25), ("unet/up", 0.0)))
    own, given = make_optimizer(other), make_optimizer(one)
    compiled = jax.jit(lambda *args, numbers: given.update(*args, numbers=numbers))
    (state, again), params = (own.init(PARAMS), given.init(PARAMS)), PARAMS
    for _ in range(4):
        expected, state = own.update(GRADS, state, params)
        out, again = compiled(GRADS, again, params, numbers=OptimNumbers.of(other))
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(out), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9)  # float32's rounding of fused products
        params = jax.tree.map(jnp.add, params, expected)


def test_adamws_first_step_is_the_gradients_sign():
    out = updates(weight_decay=0.0)
    np.testing.assert_allclose(out["unet"]["up"]["kernel"], -0.1 * np.sign(GRADS["unet"]["up"]["kernel"]), rtol=1e-4)


def test_lions_step_is_the_sign_of_the_interpolated_momentum():
    out = updates(name="lion", weight_decay=0.0)
    np.testing.assert_allclose(out["unet"]["up"]["kernel"], -0.1 * np.sign(GRADS["unet"]["up"]["kernel"]), rtol=1e-6)


def test_muons_step_has_singular_values_of_one_size():
    out = np.asarray(updates(name="muon", weight_decay=0.0)["unet"]["up"]["kernel"])
    values = np.linalg.svd(out, compute_uv=False)
    # 0.2 sqrt(max(2, 2)) times the rate, as far as five Newton-Schulz steps bring them: 0.7 to 1.2
    assert 0.6 < values.min() / (0.1 * 0.2 * 2**0.5) <= values.max() / (0.1 * 0.2 * 2**0.5) < 1.3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_descends(name):
    optimizer = make_optimizer(
        OptimConfig(steps=300, name=name, learning_rate=1.0 if name in OWN_DECAY else 0.03, weight_decay=0.0)
    )
    target = jax.tree.map(lambda a: a + 0.5, PARAMS)

    def distance(params):
        return sum(jnp.square(a - b).sum() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(target)))

    @jax.jit
    def step(params, state):
        out, state = optimizer.update(jax.grad(distance)(params), state, params)
        return jax.tree.map(jnp.add, params, out), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(300):
        params, state = step(params, state)
    assert float(distance(params)) < 0.1 * float(distance(PARAMS))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in OWN_DECAY])
def test_weight_decay_is_the_rate_times_the_weight_and_spares_vectors(name):
    with_decay, without = updates(name=name, weight_decay=0.5), updates(name=name, weight_decay=0.0)
    change = jax.tree.map(jnp.subtract, with_decay, without)["unet"]["down"]
    np.testing.assert_allclose(change["kernel"], -0.1 * 0.5 * PARAMS["unet"]["down"]["kernel"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(change["bias"], 0.0, atol=1e-7)


def test_the_references_weight_decay_acts_on_vectors_too():
    with_decay, without = updates(weight_decay=0.5, decay_all=True), updates(weight_decay=0.0)
    change = jax.tree.map(jnp.subtract, with_decay, without)["unet"]["down"]["bias"]
    np.testing.assert_allclose(change, -0.1 * 0.5 * PARAMS["unet"]["down"]["bias"], rtol=1e-4)


def test_parts_have_rates_of_their_own_and_none_at_all():
    rates = (("unet/down/kernel", 0.25), ("unet/up", 0.0))
    plain, own = updates(weight_decay=0.5), updates(weight_decay=0.5, rates=rates)
    np.testing.assert_allclose(own["unet"]["down"]["kernel"], 0.25 * plain["unet"]["down"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(own["unet"]["down"]["bias"], plain["unet"]["down"]["bias"], rtol=1e-5)
    assert not np.any(own["unet"]["up"]["kernel"])
    assert factors((rates,), PARAMS)["unet"]["down"] == {"kernel": 0.25, "bias": 1.0}
    # what does not learn has no moments
    state = make_optimizer(OptimConfig(steps=9, rates=rates)).init(PARAMS)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * (4 + 2) + 2


def test_the_clip_bounds_what_the_optimiser_sees():
    norm = float(np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(GRADS))))
    optimizer = make_optimizer(OptimConfig(steps=9, learning_rate=0.1, clip=norm / 10, weight_decay=0.0))
    state = optimizer.init(PARAMS)
    _, state = optimizer.update(GRADS, state, PARAMS)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2, 2)]
    np.testing.assert_allclose(
        sorted(np.abs(m).max() for m in moments)[-1],
        0.1 * np.abs(GRADS["unet"]["down"]["kernel"]).max() / 10,
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "soap"}, "one of adamw, adafactor, lion, sgd, prodigy, dadapt_adamw, muon; got 'soap'$"),
        ({"name": "AdamW8bit"}, "got 'AdamW8bit': the nearest is adamw, with its state in float32 instead of 8 bits"),
        ({"name": "DAdaptLion"}, "the nearest is dadapt_adamw$"),
        ({"name": "AdaFactor"}, "the nearest is adafactor$"),
        ({"name": "sgd", "beta2": 0.9}, "sgd has no beta2"),
        ({"name": "dadapt_adamw", "warmup": 3, "warmup_from": 0.0}, "warmup_from is above 0"),
        ({"decay": "polynomial", "power": 0.0}, "power is above 0"),
        ({"epochs": 0}, "at least 1"),
        ({"name": "adafactor", "beta1": 0.9}, "adafactor has no beta1"),
        ({"decay": "cosine", "cooldown": 3}, "needs no cooldown"),
        ({"rates": (("unet", -1.0),)}, "not negative"),
        ({"clip": 0.0}, "positive"),
    ],
)
def test_bad_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        OptimConfig(steps=10, **settings)
