"""What a user chooses: a method with its settings, which writes the rows of a run."""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar, Literal, TypeAlias

from jaxtyping import Array, Float

from sdjax.checks.arguments import number, shown
from sdjax.samplers.rows import Rows, per_image, repeat
from sdjax.samplers.rule import Constrain, Denoiser, Linear, Noisy, Rule, State, scan_rows
from sdjax.samplers.spacing import SPACINGS, Grid, make_grid
from sdjax.schedule import NoiseSchedule
from sdjax.typing import Keys

End: TypeAlias = Literal["zero", "sigma_min"]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampling method with its settings. Only `rule` enters compiled programs.

    `spacing` is a name of `sdjax.samplers.spacing.SPACINGS`; `end` says where the last step leads: "sigma_min", the
    first timestep's small noise, where ldm's samplers stop, or "zero", no noise at all.
    """

    spacing: str = "even"
    end: End = "sigma_min"

    # Whether pure noise enters with the variance of a noisy latent, 1 + sigma^2 (ldm's samplers, which take x_T as it
    # is), or with sigma^2 alone (k-diffusion's)
    variance_preserving: ClassVar[bool] = True

    def __post_init__(self) -> None:
        choose("spacing", self.spacing, SPACINGS)
        choose("end", self.end, ("zero", "sigma_min"))

    @property
    def rule(self) -> Rule:
        """What is compiled."""
        return Linear()

    def grid(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Grid:
        """Returns where the steps start and end, without the first `skip` of them."""
        return make_grid(self.spacing, schedule, num_steps, end=self.end, skip=skip)

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns one image's rows of `num_steps` steps, without the first `skip` (image to image starts later).

        Raises ValueError for numbers out of range.
        """
        raise NotImplementedError

    def initial(self, noise: Noisy, rows: Rows) -> Noisy:
        """Returns the x to start from, given unit noise. The rows are one image's or a batch's."""
        sigma = rows.sigma[0]
        factor = (1 + sigma**2) ** 0.5 if self.variance_preserving else sigma
        return noise * per_image(factor, noise)

    def final(self, state: State, rows: Rows) -> Noisy:
        """Returns the latent after the last row: x in the reference's scale, divided by sqrt(1 + sigma^2)."""
        return state.x / per_image((1 + rows.sigma_next[-1] ** 2) ** 0.5, state.x)


def choose(name: str, value: str, known: Iterable[str]) -> None:
    """Raises ValueError, listing the known values, unless `value` is one of them."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"unknown {name} {value!r}; the known ones are {', '.join(map(str, known))}")


def check_eta(eta: float) -> None:
    """Raises ValueError unless eta is a finite number that is not negative."""
    try:
        number("eta", eta, 0)
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
    """Returns the latents that a sampler makes of x, in the reference's scale: start, rows and end in one call.

    The rows are one image's, and every image of the batch takes them.
    """
    state = dataclasses.replace(sampler.rule.init(x), memory=denoise.init(x))
    state = scan_rows(sampler.rule, denoise, state, repeat(rows, x.shape[0]), noise, constrain)
    return sampler.final(state, rows)
