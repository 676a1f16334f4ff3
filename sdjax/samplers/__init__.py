"""Samplers: how noise becomes a latent in a number of calls of the network.

    sampler = SAMPLERS["ddim"]()
    rows = sampler.steps(schedule, 50)
    latent = sample(sampler, denoise, sampler.initial(noise, rows), rows, keys)

A new sampler is a frozen dataclass with a method `steps` and a line in SAMPLERS.
"""

from collections.abc import Callable

from sdjax.samplers.ancestral import DDIM, DDPM, LCM, Euler
from sdjax.samplers.base import Sampler, State, Steps, chunks, draw_noise, sample, scan_rows
from sdjax.samplers.dpm_solver import DPMSolver
from sdjax.samplers.multistep import LMS, PLMS, PNDM
from sdjax.samplers.sde import DPMSolverSDE
from sdjax.samplers.spacing import SPACINGS
from sdjax.samplers.start import Start, make_start
from sdjax.samplers.two_stage import DPM2, DPMSolver2S, Heun
from sdjax.samplers.unipc import UniPC

__all__ = [
    "DDIM", "DDPM", "DPM2", "LCM", "LMS", "PLMS", "PNDM", "SAMPLERS", "SPACINGS", "DPMSolver", "DPMSolver2S",
    "DPMSolverSDE", "Euler", "Heun", "Sampler", "Start", "State", "Steps", "UniPC", "chunks", "draw_noise",
    "make_start", "sample", "scan_rows",
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
