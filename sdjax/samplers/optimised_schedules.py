"""Schedules whose sigmas were optimised for Stable Diffusion 1 and published as numbers.

Each table is interpolated linearly in log sigma to other numbers of steps.

Source: Sabour et al. 2024 (arXiv 2404.14507), "Align your steps", and its project page; Chen et al. 2024
(arXiv 2405.11326), "GITS". The numbers are those in ComfyUI's nodes, in AUTOMATIC1111's and Forge's schedule types and
in diffusers' AysSchedules.
"""

import dataclasses
import functools
from importlib import resources
from typing import Any

import numpy as np

from sdjax.checks.arguments import number, shown
from sdjax.samplers.schedules import Schedule, clipped, ended
from sdjax.samplers.spacing import Grid, from_noise_alone
from sdjax.schedule import NoiseSchedule

AYS_TIMESTEPS = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24)
AYS: dict[int, tuple[float, ...]] = {
    10: (14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092, 0.9642583904,
         0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    11: (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    32: (14.615, 11.23951352, 8.64363081, 6.64729424, 5.57250862, 4.71648546, 3.99196065, 3.5195609, 3.13490466,
         2.79228788, 2.48773628, 2.21663865, 1.97508351, 1.7793172, 1.61475335, 1.46540953, 1.314849, 1.16642497,
         1.03475547, 0.91573744, 0.80748169, 0.71202361, 0.621739, 0.53065202, 0.4529096, 0.37491455, 0.27461819,
         0.2011529, 0.14105873, 0.06682881, 0.03166121, 0.015),
}  # fmt: skip
GITS_GRID = 100  # the tables of GITS choose among 101 even timesteps


def log_linear(sigmas: np.ndarray, points: int) -> np.ndarray:
    """Returns so many sigmas, whose logarithms are interpolated linearly between those given."""
    old, new = (np.linspace(0, 1, count) for count in (len(sigmas), points))
    return np.exp(np.interp(new, old, np.log(sigmas)))


def of_table(noise: NoiseSchedule, starts: np.ndarray, end: str) -> Grid:
    """Returns the grid of published sigmas. If the model's last timestep is pure noise, the first step starts there."""
    if from_noise_alone(noise, noise.num_timesteps - 1):
        starts = np.append(noise.sigmas[-1], starts[1:])
    return ended(noise, clipped(noise, starts, "log_sigma"), starts, end)


@dataclasses.dataclass(frozen=True)
class AlignYourSteps(Schedule):
    """Align your steps, by one of three tables.

    `table` 10 is ComfyUI's, with ten decimals: n + 1 sigmas, the last of which becomes the end. `table` 11 is
    AUTOMATIC1111's, with three decimals: n sigmas, and then the end. `table` 32 is Forge's "Align Your Steps 32": n
    sigmas, stretched to the model's range, and then the end.
    """

    name = "align_your_steps"
    table: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.table, bool) or self.table not in AYS:
            raise ValueError(f"table is one of {', '.join(map(str, AYS))}; got {shown(self.table)}")

    def path(self, noise: NoiseSchedule, num_steps: int, end: str) -> Grid:
        table = np.array(AYS[self.table])
        if self.table == 10:
            return of_table(noise, log_linear(table, num_steps + 1)[:-1], end)
        if self.table == 32:
            usual = NoiseSchedule().sigmas if from_noise_alone(noise, noise.num_timesteps - 1) else noise.sigmas
            share = (table - table[-1]) / (table[0] - table[-1])
            table = usual[0] + share * (usual[-1] - usual[0])
        return of_table(noise, log_linear(table, num_steps), end)


@dataclasses.dataclass(frozen=True)
class AYSTimesteps(Schedule):
    """The ten timesteps of align your steps (diffusers' StableDiffusionTimesteps), interpolated linearly."""

    name = "align_your_steps_timesteps"

    def path(self, noise: NoiseSchedule, num_steps: int, end: str) -> Grid:
        old, new = (np.linspace(0, 1, count) for count in (len(AYS_TIMESTEPS), num_steps))
        timestep = np.minimum(np.interp(new, old, AYS_TIMESTEPS), noise.num_timesteps - 1)
        return ended(noise, timestep, noise.sigma(timestep, "log_sigma"), end)


@functools.cache
def gits_tables() -> dict[str, list[list[int]]]:
    """Returns for each coefficient, as "1.20", the tables for 2 to 20 steps: numbers of timesteps on the grid."""
    tables: dict[str, list[list[int]]] = {}
    text = resources.files("sdjax.assets").joinpath("gits.txt").read_text(encoding="ascii")
    for line in text.splitlines():
        if not line.startswith("#"):
            coefficient, *inner = line.split()
            tables.setdefault(coefficient, []).append([0, *map(int, inner), GITS_GRID])
    return tables


@dataclasses.dataclass(frozen=True)
class GITS(Schedule):
    """Geometry-inspired time schedule: the tables for 2 to 20 steps; more steps interpolate the table for 20.

    `coeff` is from 0.8 to 1.5 in steps of 0.05: a larger one puts more steps where there is little noise.
    """

    name = "gits"
    fewest = 2
    coeff: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        number("coeff", self.coeff)
        if f"{self.coeff:.2f}" not in gits_tables() or abs(self.coeff * 20 - round(self.coeff * 20)) > 1e-6:
            raise ValueError(f"coeff is 0.8, 0.85, 0.9, ... or 1.5; got {shown(self.coeff)}")

    def path(self, noise: NoiseSchedule, num_steps: int, end: str) -> Grid:
        usual: Any = NoiseSchedule()  # the published sigmas are those of Stable Diffusion's timesteps
        tables = gits_tables()[f"{self.coeff:.2f}"]
        places = np.array(tables[min(num_steps, 20) - 2])
        sigma = usual.sigma((usual.num_timesteps - 1) * (1 - places / GITS_GRID))
        if num_steps > 20:
            sigma = log_linear(sigma, num_steps + 1)
        return of_table(noise, sigma[:-1], end)
