"""Distances between sets of features: closed forms, small cases worked out by hand, and what is refused."""

import math

import numpy as np
import pytest

from sdjax.evaluate import distances
from sdjax.evaluate.measures import MEASURES

RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(60, 5)), RNG.normal(size=(40, 5)) * 1.5 + 0.3


def with_moments(mean, deviations):
    """Returns rows whose mean and covariance (n - 1) are exactly these."""
    n = 2 * len(deviations)
    rows = np.zeros((n, len(deviations)))
    for i, deviation in enumerate(deviations):
        rows[2 * i : 2 * i + 2, i] = np.array([1, -1]) * deviation * math.sqrt((n - 1) / 2)
    return rows + mean


def test_frechet_of_independent_columns_is_the_sum_over_columns():
    x, y = with_moments([1.0, 2.0, 3.0], [1.0, 2.0, 0.0]), with_moments([1.0, 4.0, 2.0], [3.0, 2.5, 1.0])
    want = (0 + 4 + 1) + (2**2 + 0.5**2 + 1**2)  # (m1 - m2)^2 + (s1 - s2)^2
    assert distances.frechet(x, y) == pytest.approx(want, rel=1e-12)


def test_frechet_of_rows_and_of_statistics_agree_for_few_and_many_rows():
    for x, y in ((X, Y), (X[:4], Y), (X[:3], Y[:2])):  # fewer rows than columns: no full rank
        statistics = distances.mean_and_covariance(y)
        assert distances.frechet_to_statistics(*statistics)(x) == pytest.approx(distances.frechet(x, y), rel=1e-7)


def test_large_matrices_give_the_same_distance(monkeypatch):
    for x, y in ((X, Y), (X, Y[:4]), (X[:4], Y)):
        want = distances.frechet(x, y)
        monkeypatch.setattr(distances, "EXACT", 0)
        assert distances.frechet(x, y) == pytest.approx(want, rel=1e-7)  # the root of rounding errors
        monkeypatch.undo()


def test_measures_of_a_prepared_reference_are_the_same():
    for measure in MEASURES.values():
        x, y = ({name: rows + i for i, name in enumerate(measure.features)} for rows in (X[:40], Y))
        reference = y if measure.needs_reference else None
        assert measure.against(reference)(x) == measure.function(x, reference)
        if measure.of_statistics is not None:
            of = measure.of_statistics(distances.mean_and_covariance(y[measure.features[0]]))
            assert of(x) == pytest.approx(measure.function(x, y), rel=1e-9)


def test_frechet_does_not_change_when_the_features_are_rotated():
    rotation = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    assert distances.frechet(X @ rotation, Y @ rotation) == pytest.approx(distances.frechet(X, Y), rel=1e-10)


def test_frechet_of_equal_sets_is_zero():
    assert abs(distances.frechet(X, X[::-1])) < 1e-12
    assert abs(distances.frechet(X[:3], X[:3])) < 1e-12


def test_kernel_distance_by_hand():
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [-1.0]])
    # pairs of x: (1 2 + 1)^3 = 27; of y: 1; across: 1, 0, 1, (-1)^3
    assert distances.kernel_distance(x, y) == pytest.approx(27 + 1 - 2 * (1 + 0 + 1 - 1) / 4)


def test_kernel_distance_is_unbiased_and_subsets_average_to_the_whole():
    whole = distances._unbiased(X[:40], Y)
    parts = distances.kernel_distance(X[:40], Y, size=10, subsets=2000)
    assert parts == pytest.approx(whole, rel=0.05)  # three standard errors of 2,000 subsets of ten
    assert distances.kernel_distance(X, Y, size=10) == distances.kernel_distance(X, Y, size=10)


def test_cmmd_of_opposite_and_equal_directions():
    x = np.array([[3.0, 0.0]])
    assert distances.cmmd(x, 2 * x) == pytest.approx(0)  # lengths do not count
    assert distances.cmmd(x, -x) == pytest.approx(1000 * (2 - 2 * math.exp(-4 / 200)))


def test_precision_and_recall_of_a_line():
    reference = np.arange(5.0)[:, None]  # radii to the third neighbour: 3, 2, 2, 2, 3
    assert distances.precision(np.array([[-3.0], [-3.1], [2.0], [8.0]]), reference) == 0.5
    assert distances.recall(np.array([[0.0], [0.1], [0.2], [0.3]]), reference) == 0.2  # balls of 0.3 and less


def test_precision_does_not_depend_on_the_blocks(monkeypatch):
    want = distances.precision(X, Y), distances.recall(X, Y), distances.cmmd(X, Y)
    monkeypatch.setattr(distances, "_BLOCK", 7)
    assert (distances.precision(X, Y), distances.recall(X, Y)) == want[:2]
    assert distances.cmmd(X, Y) == pytest.approx(want[2], rel=1e-10)


def test_inception_score_of_certain_and_even_pictures():
    certain = 1e4 * np.eye(8)
    assert distances.inception_score(certain, splits=1) == pytest.approx(8)
    assert distances.inception_score(certain, splits=10) == pytest.approx(2)  # four parts of two labels each
    assert distances.inception_score(np.zeros((20, 8))) == pytest.approx(1)


def test_clip_scores_by_hand():
    images, texts = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[5.0, 5.0], [0.0, -3.0]])
    assert distances.clip_score(images, texts) == pytest.approx((math.sqrt(0.5) - 1) / 2)
    assert distances.clip_s(images, texts) == pytest.approx(2.5 * math.sqrt(0.5) / 2)


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_refuses_what_is_not_finite_and_nothing(name):
    measure = MEASURES[name]
    good = {feature: np.ones((6, 3)) + np.eye(6, 3) for feature in measure.features}
    assert math.isfinite(measure.function(good, good if measure.needs_reference else None))
    for bad, words in ((np.full((6, 3), np.nan), "finite"), (np.ones((0, 3)), "at least"), (np.ones(3), "one row")):
        with pytest.raises(ValueError, match=words):
            measure.function(good | {measure.features[0]: bad}, good if measure.needs_reference else None)
    if measure.needs_reference:
        with pytest.raises(ValueError, match="there are none"):
            measure.function(good, None)
        with pytest.raises(ValueError, match="columns"):
            measure.function(good, {feature: np.ones((6, 4)) for feature in measure.features})


@pytest.mark.parametrize("name", ["fid", "kid", "precision"])
def test_one_picture_is_too_few(name):
    one, many = {"pool": np.ones((1, 3))}, {"pool": RNG.normal(size=(6, 3))}
    with pytest.raises(ValueError, match="at least"):
        MEASURES[name].function(many, one)
