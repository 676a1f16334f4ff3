"""Low-rank changes: factored, summed and resized."""

import numpy as np
import pytest

from sdjax.adapters import AdapterError, Difference, LowRank
from sdjax.adapters.combining import combine
from sdjax.adapters.factoring import Truncation, concatenate, factor, refactor, singular_values
from sdjax.adapters.families import LoKr

RNG = np.random.default_rng(0)
SHAPES = [(12, 20), (20, 12), (3, 3, 6, 10), (1, 1, 8, 5)]


def change(shape, rank, scale=0.5):
    *window, d = shape
    return LowRank(RNG.normal(size=(*window, rank)).astype("f"), RNG.normal(size=(rank, d)).astype("f"), scale)


def dense(delta, shape):
    return np.asarray(delta.difference(np.zeros(shape, np.float32)))


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sum_of_factors_is_the_sum_of_their_changes(shape):
    pairs = [(change(shape, 3, 0.5), 0.7), (change(shape, 5, 2.0), -0.5)]
    want = sum(weight * dense(delta, shape) for delta, weight in pairs)
    total = concatenate(pairs)
    assert total.up.shape[0] == 8
    assert distance(dense(total, shape), want) < 1e-6
    same = refactor(pairs, Truncation(energy=1.0))
    assert distance(dense(same.change, shape), want) < 2e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_no_factors_of_a_rank_are_nearer_than_those_of_the_largest_singular_values(shape):
    whole = RNG.normal(size=shape).astype("f")
    found = factor(whole, Truncation(rank=4))
    values = np.linalg.svd(np.asarray(whole, np.float64).reshape(-1, shape[-1]), compute_uv=False)
    assert found.rank == 4
    # Eckart and Young: the squared error is the sum of the squares of the values that are left out
    error = np.linalg.norm(dense(found.change, shape) - whole)
    assert error == pytest.approx(np.sqrt(np.sum(values[4:] ** 2)), rel=1e-4)
    assert found.kept == pytest.approx(np.sum(values[:4] ** 2) / np.sum(values**2), rel=1e-5)
    np.testing.assert_allclose(singular_values(whole), values, rtol=1e-4)


def test_resizing_by_factors_is_the_svd_of_the_product():
    shape = (3, 3, 6, 10)
    low = change(shape, 7)
    by_factors = refactor([(low, 1.0)], Truncation(rank=3))
    by_product = factor(dense(low, shape), Truncation(rank=3))
    assert distance(dense(by_factors.change, shape), dense(by_product.change, shape)) < 1e-5
    assert by_factors.kept == pytest.approx(by_product.kept, rel=1e-5)


def test_truncations_keep_as_few_values_as_their_limits_allow():
    values = np.sqrt(np.asarray([0.5, 0.3, 0.15, 0.05], np.float64))
    assert [Truncation(energy=share).count(values, 4) for share in (0.4, 0.6, 0.8, 0.81, 1.0)] == [1, 2, 2, 3, 4]
    assert Truncation(rank=2, energy=0.99).count(values, 4) == 2
    assert Truncation(ratio=2).count(values, 4) == 3  # larger than sqrt(0.5) / 2 = sqrt(0.125)
    assert Truncation(rank=9).count(values, 3) == 3
    assert Truncation(energy=0.9).count(np.zeros(4), 4) == 1


@pytest.mark.parametrize("limits", [{"rank": 0}, {"energy": 0.0}, {"energy": 1.1}, {"ratio": 0.5}])
def test_limits_out_of_range_are_refused(limits):
    with pytest.raises(ValueError, match="got"):
        Truncation(**limits)


def test_a_smaller_rank_is_padded_so_that_all_layers_have_one():
    low = change((12, 20), 2)
    found = refactor([(low, 1.0)], Truncation(rank=5))
    assert found.rank == 5
    assert distance(dense(found.change, (12, 20)), dense(low, (12, 20))) < 1e-6


def test_clamping_limits_all_numbers_to_a_quantile_of_them():
    whole = RNG.normal(size=(20, 12)).astype("f")
    free, clamped = (factor(whole, Truncation(rank=4), quantile).change for quantile in (None, 0.9))
    numbers = np.concatenate([np.ravel(free.up), np.ravel(free.down)])
    limit = np.quantile(numbers, 0.9)
    np.testing.assert_allclose(np.clip(free.up, -limit, limit), clamped.up, rtol=1e-6)


def test_adapters_are_summed_leaf_by_leaf_and_kinds_without_a_sum_are_named():
    one, two = change((12, 20), 3), change((12, 20), 2)
    bias = Difference(np.arange(20, dtype="f"))
    a, b = {"unet/x/kernel": one, "unet/x/bias": bias}, {"unet/x/kernel": two, "unet/y/kernel": one}
    found = combine([(a, 2.0), (b, -1.0)])
    want = 2 * dense(one, (12, 20)) - dense(two, (12, 20))
    assert distance(dense(found.adapter["unet/x/kernel"], (12, 20)), want) < 1e-6
    np.testing.assert_array_equal(found.adapter["unet/x/bias"].value, 2 * bias.value)
    small = combine([(a, 1.0), (b, 1.0)], Truncation(rank=2))
    assert {delta.up.shape[0] for delta in small.adapter.values() if isinstance(delta, LowRank)} == {2}
    mixed = combine([(a, 1.0), ({"unet/x/kernel": Difference(np.ones((12, 20), "f"))}, 1.0)])
    assert distance(dense(mixed.adapter["unet/x/kernel"], (12, 20)), dense(one, (12, 20)) + 1) < 1e-6
    with pytest.raises(AdapterError, match="unet/z/kernel is changed by str.*different shapes"):
        combine([({"unet/z/kernel": "?", "unet/x/kernel": change((12, 9), 1)}, 1.0), (a, 1.0)])


def test_kinds_without_low_ranks_are_resized_by_their_differences():
    w1, w2 = RNG.normal(size=(4, 3)).astype("f"), RNG.normal(size=(5, 4)).astype("f")  # [o1, i1], [o2, i2]
    found = combine([({"a/kernel": LoKr(w1=w1, w2=w2)}, 0.5)], Truncation(energy=1.0), shapes={"a/kernel": (12, 20)})
    assert distance(dense(found.adapter["a/kernel"], (12, 20)).T, 0.5 * np.kron(w1, w2)) < 1e-5


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(AdapterError, match="not finite"):
        factor(np.full((3, 4), np.nan, "f"), Truncation(rank=1))
