"""Samplers: methods that turn noise into a latent by several calls of the network.

    sampler = SAMPLERS["ddim"]()
    rows = sampler.steps(schedule, 50)
    latent = sample(sampler, denoiser, sampler.initial(noise, rows), rows, keys)

To write a sampler, derive a frozen dataclass from `Sampler` and define its method `rows`:

    @dataclasses.dataclass(frozen=True)
    class HalfNoise(samplers.Sampler):
        def rows(self, schedule, grid):
            t, sigma = grid
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
from typing import TYPE_CHECKING, Any

from sdjax.samplers.adams import DEIS, IPNDM
from sdjax.samplers.adaptive import DPMSolverAdaptive
from sdjax.samplers.ancestral import DDIM, DDPM, LCM, Euler
from sdjax.samplers.dpm_adaptive import DPMAdaptive
from sdjax.samplers.dpm_fast import DPMFast
from sdjax.samplers.dpm_solver import DPMSolverMultistep, DPMSolverSinglestep, DPMSolverSinglestepFixed
from sdjax.samplers.er_sde import ERSDE
from sdjax.samplers.few_step import TCD
from sdjax.samplers.heun import HeunPP2, Restart
from sdjax.samplers.inversion import DDIMInversion
from sdjax.samplers.known_schedules import SCHEDULES, make_schedule
from sdjax.samplers.multistep import LMS, PLMS, PNDM
from sdjax.samplers.noise import draw_noise
from sdjax.samplers.rows import Coef, Rows, batch, chunks, draws, repeat, row, stack
from sdjax.samplers.rule import Denoised, Denoiser, Linear, Rule, State, Stateless, scan_rows
from sdjax.samplers.sa_solver import SASolver
from sdjax.samplers.sampler import Sampler, sample
from sdjax.samplers.schedules import Schedule
from sdjax.samplers.sde import DPMSolverSDE, DPMSolverSDE2S, DPMSolverSDE3M
from sdjax.samplers.second_order import DPMSolver2MCFGPP, GradientEstimation, ResMultistep
from sdjax.samplers.seeds import Seeds2, Seeds3
from sdjax.samplers.spacing import SPACINGS, Grid
from sdjax.samplers.start import Start, make_start
from sdjax.samplers.two_stage import DPM2, DPMSolver2S, Heun
from sdjax.samplers.unipc import UniPC

if TYPE_CHECKING:
    from sdjax.samplers.diffusers.build import from_diffusers

__all__ = [
    "DDIM", "DDPM", "DEIS", "DPM2", "ERSDE", "IPNDM", "LCM", "LMS", "PLMS", "PNDM", "SAMPLERS", "SCHEDULES", "SPACINGS",
    "TCD", "Coef", "DDIMInversion", "DPMAdaptive", "DPMFast", "DPMSolver2MCFGPP", "DPMSolver2S", "DPMSolverAdaptive",
    "DPMSolverMultistep", "DPMSolverSDE", "DPMSolverSDE2S", "DPMSolverSDE3M", "DPMSolverSinglestep",
    "DPMSolverSinglestepFixed", "Denoised", "Denoiser", "Euler", "GradientEstimation", "Grid", "Heun", "HeunPP2",
    "Linear", "ResMultistep", "Restart", "Rows", "Rule", "SASolver", "Sampler", "Schedule", "Seeds2", "Seeds3", "Start",
    "State", "Stateless", "UniPC", "batch", "chunks", "draw_noise", "draws", "from_diffusers", "make_schedule",
    "make_start", "repeat", "row", "sample", "scan_rows", "stack",
]  # fmt: skip

SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "plms": PLMS,
    "pndm": PNDM,
    "dpm_solver": DPMSolverMultistep,
    "dpm_solver_singlestep": lambda: DPMSolverSinglestep(order=3),
    "dpm_solver_adaptive": DPMSolverAdaptive,
    "dpmpp_2m": lambda: DPMSolverMultistep(spacing="karras", end="zero", lower_order_below=0),
    "dpmpp_2m_sde": DPMSolverSDE,
    "dpmpp_2s_ancestral": lambda: DPMSolver2S(eta=1.0),
    "dpm2": DPM2,
    "dpm2_ancestral": lambda: DPM2(eta=1.0),
    "euler": Euler,
    "euler_ancestral": lambda: Euler(eta=1.0),
    "heun": Heun,
    "lms": LMS,
    "lms_x0": lambda: LMS(ends_in_x0=True),
    "unipc_bh1": lambda: UniPC(order=3, variant="bh1", spacing="karras", last_sigma=0.001),
    "unipc_bh2": lambda: UniPC(order=3, spacing="karras", last_sigma=0.001),
    "deis": lambda: DEIS(polynomial="time", spacing="karras", lower_order_below=0),
    "deis_log_rho": lambda: DEIS(order=2),
    "ipndm": IPNDM,
    "ipndm_v": lambda: IPNDM(variable_steps=True),
    "sa_solver": SASolver,
    "sa_solver_pece": lambda: SASolver(evaluates_twice=True),
    "tcd": TCD,
    "unipc": UniPC,
    "lcm": LCM,
    "lcm_x0": lambda: LCM(boundary=False),
    "ddim_cfg_pp": lambda: DDIM(cfg_pp=True),
    "euler_cfg_pp": lambda: Euler(cfg_pp=True),
    "euler_ancestral_cfg_pp": lambda: Euler(eta=1.0, cfg_pp=True),
    "heunpp2": HeunPP2,
    "restart": lambda: Restart(automatic=True),
    "dpm_fast": DPMFast,
    "dpm_adaptive": DPMAdaptive,
    "dpmpp_2s_ancestral_cfg_pp": lambda: DPMSolver2S(eta=1.0, cfg_pp=True),
    "dpmpp_2m_cfg_pp": DPMSolver2MCFGPP,
    "dpmpp_sde": DPMSolverSDE2S,
    "dpmpp_2m_sde_heun": lambda: DPMSolverSDE(solver_type="heun", brownian=True),
    "dpmpp_3m_sde": DPMSolverSDE3M,
    "res_multistep": ResMultistep,
    "res_multistep_ancestral": lambda: ResMultistep(eta=1.0),
    "res_multistep_cfg_pp": lambda: ResMultistep(cfg_pp=True),
    "res_multistep_ancestral_cfg_pp": lambda: ResMultistep(eta=1.0, cfg_pp=True),
    "gradient_estimation": GradientEstimation,
    "gradient_estimation_cfg_pp": lambda: GradientEstimation(cfg_pp=True),
    "er_sde": ERSDE,
    "seeds_2": Seeds2,
    "seeds_3": Seeds3,
}


def __getattr__(name: str) -> Any:
    if name == "from_diffusers":  # few pictures need it
        from sdjax.samplers.diffusers.build import from_diffusers

        return from_diffusers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
