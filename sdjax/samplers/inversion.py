"""DDIM backwards: from a picture's latent to the noise that DDIM makes it of."""

import dataclasses

import numpy as np

from sdjax.checks.arguments import whole
from sdjax.samplers.rows import Rows, row, stack
from sdjax.samplers.sampler import Sampler
from sdjax.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class DDIMInversion(Sampler):
    """Walks DDIM's steps backwards, from the sigma where its last step ends to the one where its first step starts.

    DDIM goes from x', at timestep t' and sigma', to x = x' + (sigma - sigma') epsilon(x', t'). Backwards x' is unknown,
    so the network gets x in its place, but the timestep t':

        x'_1 = x + (sigma' - sigma) epsilon(x, t'),    x'_k+1 = x + (sigma' - sigma) epsilon(x'_k, t').

    `refinements` is how often each step is made again with its last result: 0 is the usual inversion, and with more the
    result approaches the exact inverse. Every refinement is one more call of the network in each step.

    Source: Song et al. 2021 (arXiv 2010.02502), section 4.3; diffusers' DDIMInverseScheduler; for the refinements Pan
    et al. 2023 (arXiv 2309.04907).
    """

    refinements: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("refinements", self.refinements, 0, 100)

    def steps(self, schedule: NoiseSchedule, num_steps: int, *, skip: int = 0) -> Rows:
        """Returns 1 + refinements rows per step. `skip` leaves out DDIM's first steps: that is, the last ones here."""
        t, sigma = self.grid(schedule, num_steps, skip=skip)
        rows = []
        for i in range(len(t) - 2, -1, -1):
            slope = sigma[i] - sigma[i + 1]
            # A network cannot be asked for the noise in an image without noise: it is called as if there were a little
            start = max(sigma[i + 1], schedule.sigmas[0])
            keep = np.sqrt((1 + sigma[i + 1] ** 2) / (1 + start**2))
            rows.append(row(t[i], start, sigma[i], base=keep, calls=[slope], remember="epsilon"))
            for _ in range(self.refinements):
                again = row(t[i], sigma[i], sigma[i], base=keep, calls=[slope], remember="epsilon", starts_step=False)
                rows.append(again)
        return stack(rows)
