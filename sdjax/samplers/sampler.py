"""The base class of samplers. A sampler is a method with its settings; it computes the rows of a run."""

import dataclasses
import math
from collections.abc import Iterable
from typing import ClassVar, Literal, TypeAlias

from jaxtyping import Array, Float

from sdjax.checks.arguments import flag, number, shown
from sdjax.samplers.known_schedules import SCHEDULES
from sdjax.samplers.rows import Rows, first_sigma, per_image, repeat
from sdjax.samplers.rule import Constrain, Denoiser, Linear, Noisy, Rule, State, scan_rows
from sdjax.samplers.schedules import Schedule
from sdjax.samplers.spacing import SPACINGS, Grid, make_grid
from sdjax.schedule import NoiseSchedule
from sdjax.spelling import meant
from sdjax.typing import Keys

End: TypeAlias = Literal["zero", "sigma_min"]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampling method with its settings. Only `rule` enters compiled programs.

    `spacing` is a name of `sdjax.samplers.known_schedules.SCHEDULES`, or a Schedule with options. `end` is where the
    last step ends: "sigma_min" is the small noise of the first timestep, where ldm's samplers stop; "zero" is no noise.
    """

    spacing: str | Schedule = "even"
    end: End = "sigma_min"

    # True: the first x has the variance of a noisy latent, 1 + sigma^2, as in ldm's samplers, which use x_T unchanged.
    # False: its variance is sigma^2, as in k-diffusion's
    variance_preserving: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.spacing, Schedule):
            choose("spacing", self.spacing, SCHEDULES)
        choose("end", self.end, ("zero", "sigma_min"))
        for field in dataclasses.fields(self):
            value, usual = getattr(self, field.name), field.default
            if isinstance(usual, bool):
                flag(field.name, value)
            elif isinstance(usual, int | float) and (value is None or isinstance(value, str | bytes | list | tuple)):
                number(field.name, value)

    @property
    def rule(self) -> Rule:
        """The compiled part of the sampler."""
        return Linear()

    @property
    def uses_unconditional(self) -> bool:
        """Whether the steps use the unconditional x0 (CFG++). Then it is computed at guidance scale 1 too."""
        return False

    @property
    def ends_alone(self) -> bool:
        """Whether it has its own `final`, and so shares no batch with other samplers."""
        return type(self).final is not Sampler.final

    def grid(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Grid:
        """Returns where the steps start and end, without the first `skip` of them."""
        if isinstance(self.spacing, Schedule):
            return self.spacing.grid(schedule, num_steps, end=self.end, skip=skip)
        if self.spacing in SPACINGS:
            return make_grid(self.spacing, schedule, num_steps, end=self.end, skip=skip)
        return SCHEDULES[self.spacing]().grid(schedule, num_steps, end=self.end, skip=skip)

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns the rows of one image for `num_steps` steps, without the first `skip` (image to image starts later).

        Raises ValueError for numbers out of range.
        """
        return self.rows(schedule, self.grid(schedule, num_steps, skip=skip))

    def rows(self, schedule: NoiseSchedule, grid: Grid) -> Rows:
        """Returns the rows of one image for the steps of the grid, whatever sigmas they have."""
        raise NotImplementedError

    def initial(self, noise: Noisy, rows: Rows) -> Noisy:
        """Returns the first x, given unit noise. The rows are those of one image or of a batch."""
        sigma = first_sigma(rows)[0]
        factor = (1 + sigma**2) ** 0.5 if self.variance_preserving else sigma
        return noise * per_image(factor, noise)

    def final(self, state: State, rows: Rows) -> Noisy:
        """Returns the latent after the last row: x divided by sqrt(1 + sigma^2), the scale of the references."""
        return state.x / per_image((1 + rows.sigma_next[-1] ** 2) ** 0.5, state.x)


def choose(name: str, value: str, known: Iterable[str]) -> None:
    """Raises ValueError, listing the known values, unless `value` is one of them."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"unknown {name} {value!r}{meant(value, known)}; the known ones are {', '.join(known)}")


def check_numbers(sampler: Sampler, *names: str, below: float = math.inf) -> None:
    """Raises ValueError unless the sampler's fields of these names are finite numbers from 0 up to `below`."""
    for name in names:
        number(name, getattr(sampler, name), 0, below)


def check_positive(sampler: Sampler, *names: str) -> None:
    """Raises ValueError unless the sampler's fields of these names are finite and above 0."""
    for name in names:
        if not 0 < getattr(sampler, name) < math.inf:
            raise ValueError(f"{name} is a positive number; got {getattr(sampler, name)}")


def check_order(order: int, most: int) -> None:
    """Raises ValueError unless an order is a whole number from 1 to `most`."""
    if order not in range(1, most + 1):
        raise ValueError(f"order is {', '.join(map(str, range(1, most)))} or {most}; got {order}")


def check_eta(eta: float) -> float:
    """Returns eta as Python's float. Raises ValueError unless it is a finite number >= 0."""
    try:
        return number("eta", eta, 0)
    except ValueError:
        raise ValueError(f"eta is a finite number from 0 up; got {shown(eta)}") from None


def sample(
    sampler: Sampler,
    denoise: Denoiser,
    x: Noisy,
    rows: Rows,
    noise: Keys | Float[Array, "n b ..."],
    constrain: Constrain | None = None,
) -> Noisy:
    """Returns the latents that a sampler makes of x, in the scale of the references: the whole run in one call.

    The rows are those of one image. Every image of the batch uses them.
    """
    state = dataclasses.replace(sampler.rule.init(x), memory=denoise.init(x))
    state = scan_rows(sampler.rule, denoise, state, repeat(rows, x.shape[0]), noise, constrain)
    return sampler.final(state, rows)
