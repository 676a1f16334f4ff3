"""Compares two evaluations: for every measure one sentence that says whether the difference is more than noise."""

import dataclasses

import numpy as np

from sdjax.evaluate.bootstrap import LEVEL, Interval, difference_of_shares, interval, is_more_than_noise
from sdjax.evaluate.result import Evaluation, Measured


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The difference of a measure between two models, second minus first. `paired`: by caption."""

    setting: str
    measure: str
    title: str
    first: float
    second: float
    interval: Interval
    paired: bool
    better: str | None  # the name of the better model; None if the difference is no more than noise

    @property
    def sentence(self) -> str:
        """The comparison in one sentence."""
        low, high = self.interval
        values = f"{self.first:.4g} and {self.second:.4g}, a difference of {self.second - self.first:+.4g}"
        how = "paired by caption" if self.paired else "not paired: other captions"
        verdict = "no more than noise" if self.better is None else f"more than noise: {self.better} is better"
        return f"{self.title} at {self.setting}: {values} ({LEVEL:.0%} {low:+.4g} to {high:+.4g}, {how}), is {verdict}."


def compare(first: Evaluation, second: Evaluation) -> list[Comparison]:
    """Returns the comparison of every measure and setting that both evaluations have.

    The difference's interval is from the differences of the resamples, that of shares of right pictures from both
    intervals and the resamples' correlation. If both have the same captions and seeds, these are drawn in pairs;
    otherwise they are independent. If each has a single setting, these two are compared.

    Raises ValueError, saying why, if nothing can be compared.
    """
    names = [_name(one) for one in (first, second)]
    labels = names if names[0] != names[1] else [f"the first {names[0]}", f"the second {names[1]}"]
    paired = (first.captions, first.count) == (second.captions, second.count)
    others = {one.name: one for one in second.settings}
    lone = len(first.settings) == len(second.settings) == 1
    found, refused = [], []
    for one in first.settings:
        other = second.settings[0] if lone else others.get(one.name)
        if other is None:
            refused.append(f"only one has the setting {one.name}")
            continue
        setting = one.name if one.name == other.name else f"{one.name} and {other.name}"
        for name in one.measures:
            if name not in other.measures:
                refused.append(f"only one has the measure {name}")
                continue
            why = _reason_against(one.measures[name], other.measures[name])
            if why is not None:
                refused.append(f"{name}: {why}")
                continue
            found.append(_compare(setting, name, one.measures[name], other.measures[name], labels, paired))
    if not found:
        raise ValueError(
            "the two evaluations have nothing to compare: " + ("; ".join(dict.fromkeys(refused)) or "no measure")
        )
    return found


def _name(evaluation: Evaluation) -> str:
    return str(evaluation.model.get("name", "the model"))


def _reason_against(one: Measured, other: Measured) -> str | None:
    """Returns why two values cannot be compared; None if they can."""
    if one.of != other.of:
        return f"they are measured with different networks or references ({one.of}; {other.of})"
    if one.value is None or other.value is None:
        return "a value is not a number"
    if len(one.samples) != len(other.samples) or len(one.samples) < 2:
        return f"they have {len(one.samples)} and {len(other.samples)} resamples, not an equal number from 2 up"
    return None


def _compare(
    setting: str, name: str, one: Measured, other: Measured, labels: list[str], paired: bool
) -> Comparison:  # fmt: skip
    assert one.value is not None  # `_reason_against`
    assert other.value is not None
    difference = other.value - one.value
    ends = _interval(one, other, paired)
    better = None
    if is_more_than_noise(ends):
        better = labels[(difference < 0) == one.lower_is_better]
    return Comparison(setting, name, one.title, one.value, other.value, ends, paired, better)


def _interval(one: Measured, other: Measured, paired: bool) -> Interval:
    assert one.value is not None  # `_reason_against`
    assert other.value is not None
    if one.trials is None or other.trials is None:
        return interval(other.value - one.value, np.subtract(other.samples, one.samples))
    vary = paired and np.ptp(one.samples) > 0 and np.ptp(other.samples) > 0
    correlation = float(np.corrcoef(one.samples, other.samples)[0, 1]) if vary else 0.0
    return difference_of_shares((one.value, one.trials), (other.value, other.trials), correlation)
