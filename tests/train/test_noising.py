"""The noise of a training step, against closed forms of its distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.train.objectives import draws, noising
from sdjax.train.objectives.diffusion import DiffusionObjective

KEYS = draws.keys_of(jax.random.key(3), 0, jnp.arange(6000))
FLAT = jnp.concatenate([jnp.full((6000, 4, 4, 1), value) for value in (0.0, 2.0)], axis=-1)


def noise(x0=FLAT, keys=KEYS, **settings):
    return np.asarray(noising.step_noise(DiffusionObjective(**settings), keys, x0))


def offsets(made):
    """The variance of the means over a channel, without the 1 / 16 of 16 independent numbers."""
    return made.mean((1, 2)).var(0) - 1 / 16


def test_an_adaptive_offset_follows_the_channels_mean_and_is_not_negative():
    np.testing.assert_allclose(offsets(noise(offset_noise=0.3, offset_adaptive=0.2)), [0.3**2, 0.7**2], rtol=0.08)
    fallen = noise(offset_noise=0.3, offset_adaptive=-0.2)  # 0.3 - 0.2 * 2 is below 0
    np.testing.assert_allclose(offsets(fallen), [0.3**2, 0.0], atol=0.006)
    np.testing.assert_array_equal(fallen[..., 1], noise()[..., 1])


def test_a_random_strength_is_uniform_up_to_the_given_one():
    # E[(u k)^2] = k^2 / 3; the fourth power shows that u is drawn for each example: 3 k^4 / 5
    means = noise(offset_noise=3.0, offset_random=True).mean((1, 2)).ravel()
    assert means.var() == pytest.approx(3.0 + 1 / 16, rel=0.06)
    assert (means**4).mean() == pytest.approx(3 * 81 / 5 + 6 * 3 / 16 + 3 / 256, rel=0.15)
    objective = DiffusionObjective(perturbation=0.6, perturbation_random=True)
    more = np.asarray(noising.step_perturbation(objective, KEYS, FLAT))
    assert more.var() == pytest.approx(0.36 / 3, rel=0.05)
    spread = more.std((1, 2, 3)) / 0.6  # of 32 numbers each
    assert np.quantile(spread, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.03)


def enlarged(values, size):
    """Values [n, ...] enlarged along the first axis, bilinearly from the middles of pixels."""
    at = np.clip((np.arange(size) + 0.5) * len(values) / size - 0.5, 0, len(values) - 1)
    below = np.floor(at).astype(int)
    above, share = np.minimum(below + 1, len(values) - 1), (at - below)[:, None, None]
    return (1 - share) * values[below] + share * values[above]


def test_multires_noise_is_the_sum_of_ever_coarser_noise_until_a_side_is_one():
    base, key = np.asarray(jax.random.normal(jax.random.key(1), (8, 6, 2))), KEYS[0]
    made = np.asarray(jax.jit(lambda: noising.multires(KEYS[:1], base[None], 4, 0.5))())[0]
    total, sides = base.astype(float), []
    for i in range(4):
        level = jax.random.fold_in(jax.random.fold_in(key, draws.MULTIRES), i)
        ratio = 2 + 2 * float(jax.random.uniform(jax.random.fold_in(level, 0)))
        h, w = max(1, int(8 / ratio**i)), max(1, int(6 / ratio**i))
        drawn = np.asarray(jax.random.normal(jax.random.fold_in(level, 1), (8 // 2**i, max(1, 6 // 2**i), 2)))[:h, :w]
        total += 0.5**i * enlarged(enlarged(drawn, 8).transpose(1, 0, 2), 6).transpose(1, 0, 2)
        sides.append((h, w))
        if 1 in (h, w):
            break
    assert 1 < len(sides) < 4
    np.testing.assert_allclose(made, total / total.std(ddof=1), rtol=1e-4, atol=1e-5)


def test_multires_noise_has_unit_spread_in_each_example_and_is_alike_nearby():
    keys = KEYS[:2000]
    made = np.asarray(jax.jit(lambda: noising.multires(keys, jnp.zeros((2000, 8, 8, 1)), 2, 1.0))())
    np.testing.assert_allclose(made.std((1, 2, 3), ddof=1), 1.0, rtol=1e-5)
    near, far = ((made[:, 0, 0] * made[:, y, x]).mean() for y, x in ((0, 1), (7, 7)))
    assert near > 0.2 > 0.1 > far


def test_a_kind_of_noise_does_not_depend_on_the_other_rows_of_its_batch():
    settings = {"offset_noise": 0.2, "offset_random": True, "offset_adaptive": 0.1, "multires_noise": 2}
    made = jax.jit(functools.partial(noising.step_noise, DiffusionObjective(**settings)))
    some, one = made(KEYS[:5], FLAT[:5]), made(KEYS[3:4], FLAT[3:4])
    np.testing.assert_allclose(one[0], some[3], atol=1e-6)
