"""Samplers that users wrote as any object with `steps`. `Sampler` provides the methods that they lack."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np

from sdjax.checks.arguments import shown
from sdjax.samplers.rows import Rows
from sdjax.samplers.rule import Noisy, Rule, State
from sdjax.samplers.sampler import Sampler
from sdjax.samplers.spacing import Grid
from sdjax.schedule import NoiseSchedule


class HasSteps(Protocol):
    """A user's sampler. It may also have the other methods and properties of `Sampler`."""

    def steps(self, schedule: NoiseSchedule, num_steps: int) -> Rows:
        """Returns the rows of one image."""
        ...


@dataclasses.dataclass(frozen=True)
class Custom(Sampler):
    """Makes a sampler of an object with a method `steps(schedule, num_steps)`. Other methods of `Sampler` are optional.

    Without a method `grid`, the grid is read from the rows that start steps. The first steps are left out by `skip` if
    the object's `steps` accepts it, else by cutting its rows.
    """

    inner: HasSteps = dataclasses.field(default_factory=Sampler)

    @property
    def rule(self) -> Rule:
        """The compiled part of the sampler."""
        return self.inner.rule if hasattr(self.inner, "rule") else super().rule

    @property
    def uses_unconditional(self) -> bool:
        """Whether the object says that its steps use the unconditional x0."""
        return bool(getattr(self.inner, "uses_unconditional", False))

    @property
    def ends_alone(self) -> bool:
        """Whether the object has its own `final`."""
        return hasattr(self.inner, "final")

    def grid(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Grid:
        """Returns where the steps start and end, without the first `skip` of them."""
        if hasattr(self.inner, "grid"):
            return self.inner.grid(schedule, num_steps, skip=skip)
        rows = self.steps(schedule, num_steps)
        ends = ((rows.timestep, np.float32(0)), (rows.sigma, rows.sigma_next[-1]))
        return Grid(*(np.append(values[rows.starts_step], last).astype(np.float64)[skip:] for values, last in ends))

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns the object's rows, without those of the first `skip` steps."""
        steps: Callable[..., Rows] = self.inner.steps
        if "skip" in inspect.signature(steps).parameters:
            return self._checked(steps(schedule, num_steps, skip=skip))
        rows = self._checked(steps(schedule, num_steps))
        first = int(np.flatnonzero(rows.starts_step)[skip])
        rest = jax.tree.map(lambda a: a[first:], rows)
        return rest._replace(step=rest.step - rest.step[0], num_steps=rest.num_steps - rest.step[0])

    def initial(self, noise: Noisy, rows: Rows) -> Noisy:
        """Returns the x to start from, given unit noise."""
        return (self.inner.initial if hasattr(self.inner, "initial") else super().initial)(noise, rows)

    def final(self, state: State, rows: Rows) -> Noisy:
        """Returns the latent after the last row."""
        return (self.inner.final if hasattr(self.inner, "final") else super().final)(state, rows)

    def _checked(self, rows: Rows) -> Rows:
        """Returns the rows. Raises ValueError unless they are one image's, as `sdjax.samplers.stack` makes them."""
        stacked = isinstance(rows, Rows) and np.ndim(rows.index) == 1 and rows.starts_step.dtype == bool
        if not stacked or not np.any(rows.starts_step):
            raise ValueError(
                f"the sampler {type(self.inner).__name__}: its steps return at least one row, joined by "
                f"sdjax.samplers.stack; got {shown(rows)}"
            )
        return rows


def complete(sampler: Sampler | HasSteps) -> Sampler:
    """Returns the sampler itself, or wraps an object that has a method `steps`. Raises ValueError for anything else."""
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(sampler, type) or not callable(getattr(sampler, "steps", None)):
        what = shown(sampler)
        if isinstance(sampler, type):
            what = f"the class {sampler.__name__}: pass {sampler.__name__}()"
        raise ValueError(f"sampler is a name or a sampler, an object with a method steps; got {what}")
    return Custom(inner=sampler)
