"""Samplers: methods that turn noise into a latent by several calls of the network.

    sampler = SAMPLERS["ddim"]()
    rows = sampler.steps(schedule, 50)
    latent = sample(sampler, denoiser, sampler.initial(noise, rows), rows, keys)

To write a sampler, derive a frozen dataclass from `Sampler` and define its method `steps`:

    @dataclasses.dataclass(frozen=True)
    class HalfNoise(samplers.Sampler):
        def steps(self, schedule, num_steps, *, skip=0):
            t, sigma = self.grid(schedule, num_steps, skip=skip)
            keep = 0.5 * sigma[1:] / sigma[:-1]  # half of the noise stays, the other half is drawn again
            fresh = 0.75**0.5 * sigma[1:]
            return samplers.stack([
                samplers.row(t[i], sigma[i], sigma[i + 1], base=keep[i], calls=[1 - keep[i]], noise=fresh[i])
                for i in range(len(keep))
            ])

    sdjax.text_to_image(pipe, "a cat", sampler=HalfNoise())

`row` documents the numbers of a row. `SAMPLERS["half_noise"] = HalfNoise` gives the sampler a name in Python.
"""

from collections.abc import Callable

from sdjax.samplers.ancestral import DDIM, DDPM, LCM, Euler
from sdjax.samplers.dpm_solver import DPMSolver
from sdjax.samplers.known_schedules import SCHEDULES, make_schedule
from sdjax.samplers.multistep import LMS, PLMS, PNDM
from sdjax.samplers.noise import draw_noise
from sdjax.samplers.rows import Coef, Rows, batch, chunks, repeat, row, stack
from sdjax.samplers.rule import Denoised, Denoiser, Linear, Rule, State, Stateless, scan_rows
from sdjax.samplers.sampler import Sampler, sample
from sdjax.samplers.schedules import Schedule
from sdjax.samplers.sde import DPMSolverSDE
from sdjax.samplers.spacing import SPACINGS
from sdjax.samplers.start import Start, make_start
from sdjax.samplers.two_stage import DPM2, DPMSolver2S, Heun
from sdjax.samplers.unipc import UniPC

__all__ = [
    "DDIM", "DDPM", "DPM2", "LCM", "LMS", "PLMS", "PNDM", "SAMPLERS", "SCHEDULES", "SPACINGS", "Coef", "DPMSolver",
    "DPMSolver2S", "DPMSolverSDE", "Denoised", "Denoiser", "Euler", "Heun", "Linear", "Rows", "Rule", "Sampler",
    "Schedule", "Start", "State", "Stateless", "UniPC", "batch", "chunks", "draw_noise", "make_schedule",
    "make_start", "repeat", "row", "sample", "scan_rows", "stack",
]  # fmt: skip

SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "plms": PLMS,
    "pndm": PNDM,
    "dpm_solver": DPMSolver,
    "dpm_solver_singlestep": lambda: DPMSolver(method="singlestep", order=3),
    "dpm_solver_adaptive": lambda: DPMSolver(method="adaptive", algorithm="dpmsolver", order=3),
    "dpmpp_2m": lambda: DPMSolver(spacing="karras", end="zero", lower_order_below=0),
    "dpmpp_2m_sde": DPMSolverSDE,
    "dpmpp_2s_ancestral": lambda: DPMSolver2S(eta=1.0),
    "dpm2": DPM2,
    "dpm2_ancestral": lambda: DPM2(eta=1.0),
    "euler": Euler,
    "euler_ancestral": lambda: Euler(eta=1.0),
    "heun": Heun,
    "lms": LMS,
    "unipc": UniPC,
    "lcm": LCM,
}
