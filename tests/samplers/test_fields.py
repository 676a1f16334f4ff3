"""Every field of every sampler changes what is computed, or says that it is without effect."""

import dataclasses
import inspect
import warnings

import jax
import numpy as np

from sdjax import samplers
from sdjax.checks.effects import ignored
from sdjax.checks.notes import Note
from sdjax.config import ScheduleConfig
from sdjax.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(ScheduleConfig())
OTHERS = {
    "spacing": ("time_quadratic", "logSNR", "trailing"), "end": ("zero", "sigma_min"),
    "algorithm": ("dpmsolver", "dpmsolver++"), "order": (1, 2, 3, 4), "solver_type": ("taylor", "heun"),
    "low": (0.4,), "high": (4.0,), "max_stage": (1,), "r_1": (0.2,), "r_2": (0.5,), "polynomial": ("time",),
    "variant": ("bh1",), "predict": ("epsilon",), "uncorrected": ((5,),), "last_sigma": (1e-3,),
    "corrector_order": (2,),
}  # fmt: skip
CLASSES = [one for one in vars(samplers).values() if inspect.isclass(one) and issubclass(one, samplers.Sampler)]


def others(name, value):
    if name in OTHERS:
        return [other for other in OTHERS[name] if other != value]
    return [not value] if isinstance(value, bool) else [value * 0.5 + 0.1] if isinstance(value, float) else [value + 1]


def numbers(sampler):
    """Returns all numbers of 15 steps, the default of lower_order_below, that begin below the last timestep."""
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(sampler.steps(SCHEDULE, 18, skip=3))])


def test_a_field_is_obeyed_or_declared():
    assert len(CLASSES) > 10
    for one in CLASSES:
        if one is samplers.Sampler:
            continue
        usual = one()
        rows = numbers(usual)
        without = {field.name for field, _ in ignored(usual)}
        for field in dataclasses.fields(usual):
            changed, accepted = False, 0
            for value in others(field.name, getattr(usual, field.name)):
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", Note)
                        other = dataclasses.replace(usual, **{field.name: value})
                        made = numbers(other)
                except ValueError:  # not beside the others
                    continue
                accepted += 1
                changed |= other.rule != usual.rule or not np.array_equal(made, rows)
            if accepted:  # "end" has one value for some
                assert changed == (field.name not in without), (one.__name__, field.name)
