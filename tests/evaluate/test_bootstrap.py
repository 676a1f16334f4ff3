"""The bootstrap against the formulas of the mean, and comparisons of two models by it."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from sdjax.evaluate import bootstrap, result
from sdjax.evaluate.comparing import compare
from sdjax.evaluate.distances import frechet
from sdjax.evaluate.measures import MEASURES
from sdjax.evaluate.measuring import Reference, measure
from sdjax.evaluate.result import Evaluation, Judged, measured


def mean(features):
    return float(features["score"].mean())


def test_resamples_are_the_same_each_time_and_draw_every_row_alike():
    rows = [bootstrap.resample(b, 50) for b in range(400)]
    np.testing.assert_array_equal(rows[7], bootstrap.resample(7, 50))
    assert not np.array_equal(rows[0], rows[1])
    counts = np.bincount(np.concatenate(rows), minlength=50)
    # Each row is drawn 400 times on average, with a variance of 400 (1 - 1 / 50): five standard deviations are 99
    assert np.abs(counts - 400).max() < 99


def test_the_spread_of_a_resampled_mean_is_the_standard_error():
    scores = np.random.default_rng(1).normal(3, 2, (60, 1))
    samples = bootstrap.resampled(mean, {"score": scores}, 1000)
    error = scores.std() / np.sqrt(60)  # of the bootstrap's own distribution, exactly
    # The standard deviation of 1,000 normal values has a relative error of 1 / sqrt(2000) = 2.2 %
    np.testing.assert_allclose(samples.std(), error, rtol=0.09)
    low, high = bootstrap.interval(scores.mean(), samples)
    np.testing.assert_allclose([low, high], scores.mean() + np.array([-1.96, 1.96]) * error, atol=0.2 * error)
    assert bootstrap.interval(scores.mean(), samples, 0.5).high < high


def test_a_distance_lies_within_its_interval_although_resamples_are_farther_away():
    rng = np.random.default_rng(0)
    features, reference = rng.normal(0, 1, (60, 8)), rng.normal(0.5, 1, (200, 8))
    value = frechet(features, reference)
    samples = bootstrap.resampled(lambda own: frechet(own["x"], reference), {"x": features}, 50)
    assert samples.mean() > value  # rows that repeat narrow the covariance
    low, high = bootstrap.interval(value, samples)
    assert low < value < high
    np.testing.assert_allclose((low + high) / 2, value, rtol=0.2)


@pytest.mark.parametrize(("right", "trials"), [(0, 4), (1, 7), (5, 10), (187, 200), (8, 8)])
def test_the_interval_of_a_share_is_wilsons(right, trials):
    exact = binomtest(right, trials).proportion_ci(method="wilson")
    low, high = bootstrap.share_interval(right / trials, trials)
    np.testing.assert_allclose([low, high], exact, atol=1e-12)
    assert 0 <= low <= right / trials <= high <= 1
    assert high - low > 0.01  # also if all are right


def test_the_interval_of_a_difference_of_shares_is_newcombes():
    # Newcombe 1998, Statistics in Medicine 17, 873, table II, method 10: 56 of 70 less 48 of 80
    found = bootstrap.difference_of_shares((48 / 80, 80), (56 / 70, 70))
    np.testing.assert_allclose(found, [0.0524, 0.3339], atol=5e-5)
    swapped = bootstrap.difference_of_shares((56 / 70, 70), (48 / 80, 80))
    np.testing.assert_allclose(swapped, [-found.high, -found.low], atol=1e-12)
    # Pairs that agree more often narrow it; those of all right pictures are no certainty
    paired = bootstrap.difference_of_shares((0.6, 80), (0.8, 80), 0.7)
    assert found.low < paired.low < 0.2 < paired.high < found.high
    assert bootstrap.difference_of_shares((1.0, 8), (1.0, 8)).high > 0.3


def test_a_difference_of_shares_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(120):
        hard = rng.random(50)  # a caption's own difficulty makes both models fail together
        one, other = (hard < 0.85).astype(float)[:, None], ((hard + rng.normal(0, 0.1, 50)) < 0.85)[:, None] * 1.0
        (found,) = compare(share(one), share(other))
        covered += found.interval.low <= 0.0 <= found.interval.high
    # The truth is 0 but for the share of noise that the end at 1 reflects, below 0.001. Of 120, 95 % have a standard
    # deviation of 2.4; Newcombe's interval of paired shares covers somewhat more often
    assert covered >= 108


def share(right):
    samples = bootstrap.resampled(mean, {"score": right}, 40)
    one = measured(
        right.mean(), samples, title="S", lower_is_better=False, of="n", bounds=(0, 1), trials=len(right)
    )  # fmt: skip
    return Evaluation({"name": "A"}, "c", len(right), (Judged("scale 2", {}, {}, {"score": one}),))


def test_a_share_that_no_picture_counts_alone_for_stays_below_one():
    samples = np.array([0.9, 0.95, 1.0, 0.99])
    of = {"title": "Recall", "lower_is_better": False, "of": "n"}
    assert measured(0.99, samples, **of).interval.high > 1
    assert measured(0.99, samples, bounds=(0, 1), **of).interval.high == 1


@pytest.mark.parametrize("apart", [0.0, 0.5])
def test_the_interval_of_kid_covers_the_truth_as_often_as_it_says(apart):
    """Pictures of a normal distribution whose mean is `apart` in each column from that of the reference."""
    rng, count, columns = np.random.default_rng(0), 50, 8
    covered, of_zero, bias = [], [], []
    for _ in range(80):
        real, own = rng.normal(0, 1, (count, columns)), rng.normal(apart, 1, (count, columns))
        reference = Reference({"pool": real}, None, "real")
        found = measure(MEASURES["kid"], {"pool": own}, reference, identity="n", resamples=40)
        covered.append(found.interval.low <= kid_of_normal(apart, real) <= found.interval.high)
        of_zero.append(found.interval.low <= 0 <= found.interval.high)
        bias.append(np.mean(found.samples) - found.value)
    # Of 80, 95 % have a standard deviation of 2.4 %, and ends from 40 resamples lie inside the true ones. Near 0, where
    # the estimate is quadratic in the deviations, halves spread up to 1.7 times as far as they should
    assert 0.86 <= np.mean(covered) <= 1
    assert apart or np.mean(of_zero) >= 0.88
    # With repeated rows the mean would be larger by E k(x, x) - E k(x, x') over 50, at least 0.1
    assert abs(np.mean(bias)) < 0.03


def kid_of_normal(apart, real):
    """The expectation of KID between normal rows x with mean `apart` in each column and these rows y.

    Of given y, s = x y / d is normal: E (1 + s)^3 = M^3 + 3 M V, with M = 1 + E s. Of two x, the third central moment
    of the sum of the columns' products is added.
    """
    count, d = real.shape
    m = 1 + apart * real.mean(1)
    between = (m**3 + 3 * m * np.square(real).sum(1) / d**2).mean()
    one, two, three = apart**2, (1 + apart**2) ** 2, (apart**3 + 3 * apart) ** 2  # moments of a product
    m = 1 + one
    own = m**3 + 3 * m * (two - one**2) / d + (three - 3 * one * two + 2 * one**3) / d**2
    kernel = (real @ real.T / d + 1) ** 3
    return own + (kernel.sum() - np.trace(kernel)) / (count * (count - 1)) - 2 * between


def test_an_interval_needs_two_resamples():
    with pytest.raises(ValueError, match="at least two resamples; got 1"):
        bootstrap.interval(1.0, [1.0])


def evaluation(name, scores, captions="c", setting="scale 2", lower=False, of="network", resamples=200):
    samples = bootstrap.resampled(mean, {"score": scores}, resamples)
    one = measured(scores.mean(), samples, title="Score", lower_is_better=lower, of=of)
    return Evaluation({"name": name}, captions, len(scores), (Judged(setting, {"scale": 2}, {}, {"score": one}),))


def test_a_paired_difference_is_seen_where_captions_differ_more_than_models():
    rng = np.random.default_rng(2)
    captions, noise = rng.normal(0, 5, (80, 1)), rng.normal(0, 0.2, (80, 1))
    one, other = evaluation("A", captions), evaluation("B", captions + 0.2 + noise)
    (comparison,) = compare(one, other)
    difference = 0.2 + noise.mean()
    half = 1.96 * noise.std() / np.sqrt(80)
    # Quantiles of 200 resamples have a relative error of about a tenth
    np.testing.assert_allclose(comparison.interval, [difference - half, difference + half], atol=0.25 * half)
    assert comparison.better == "B"
    assert comparison.sentence.endswith("paired by caption), is more than noise: B is better.")
    (unpaired,) = compare(one, evaluation("B", rng.permutation(captions + 0.2 + noise), captions="d"))
    assert unpaired.better is None
    assert unpaired.sentence.endswith("not paired: other captions), is no more than noise.")
    assert unpaired.interval.high - unpaired.interval.low > 5 * (comparison.interval.high - comparison.interval.low)


@pytest.mark.parametrize(("lower", "better"), [(False, "B"), (True, "A")])
def test_the_better_one_is_the_one_in_the_measures_direction(lower, better):
    scores = np.random.default_rng(3).normal(0, 1, (20, 1))
    (found,) = compare(evaluation("A", scores, lower=lower), evaluation("B", scores + 1, lower=lower))
    assert found.better == better
    (same,) = compare(evaluation("A", scores), evaluation("A", scores))
    assert same.better is None
    assert same.interval == (0, 0)


def test_one_setting_of_each_is_compared_and_others_by_name():
    scores = np.random.default_rng(3).normal(0, 1, (20, 1))
    (found,) = compare(evaluation("A", scores), evaluation("B", scores, setting="scale 5"))
    assert found.setting == "scale 2 and scale 5"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"of": "another"}, "measured with different networks or references"),
        ({"resamples": 100}, "200 and 100 resamples"),
        ({"resamples": 0}, "200 and 0 resamples"),
    ],
)
def test_what_cannot_be_compared_says_why(changes, why):
    scores = np.random.default_rng(3).normal(0, 1, (20, 1))
    with pytest.raises(ValueError, match=f"nothing to compare: .*{why}"):
        compare(evaluation("A", scores), evaluation("B", scores, **changes))


def test_a_result_is_the_same_after_json_and_a_table_has_its_values(tmp_path):
    made = evaluation("A", np.random.default_rng(3).normal(0, 1, (20, 1)))
    path = tmp_path / "result.json"
    path.write_text(made.to_json())
    assert result.read(path) == made
    head, line = made.to_csv().splitlines()
    assert head == "setting,scale,score,score low,score high"
    assert float(line.split(",")[2]) == made.settings[0].measures["score"].value
    nothing = measured(float("nan"), [float("nan")] * 3, title="T", lower_is_better=True, of="")
    assert (nothing.value, nothing.samples, nothing.interval) == (None, (), None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda found: "[" * 50_000, "is no result of an evaluation"),
        (lambda found: "[1]", 'with "format": "sdjax evaluation 1"'),
        (lambda found: found | {"format": "sdjax evaluation 9"}, "expected a JSON object"),
        (lambda found: found | {"settings": []}, "it has no settings"),
        (lambda found: found | {"settings": [3]}, "measures is a dict; got None"),
        (lambda found: found | {"count": "3"}, "count is a int; got '3'"),
        (lambda found: found | {"model": None}, "model is a dict"),
        (lambda found: json.dumps(found).replace('"value": ', '"value": NaN, "v": '), "numbers are finite; got NaN"),
        (lambda found: json.dumps(found).replace('"samples": [', '"samples": ["x", '), "expected a number; got 'x'"),
        (lambda found: json.dumps(found).replace('"samples": [', '"samples": [1e999, '), "expected a number; got inf"),
    ],
)
def test_another_file_is_refused_in_one_sentence(change, sentence, tmp_path):
    scores = np.random.default_rng(3).normal(0, 1, (5, 1))
    changed = change(json.loads(evaluation("A", scores, resamples=2).to_json()))
    path = tmp_path / "result.json"
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(ValueError, match="is no result of an evaluation: ") as caught:
        result.read(path)
    assert sentence in str(caught.value)
