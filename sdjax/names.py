"""The names of samplers and schedules here and in other tools. One table each; imports nothing heavy.

`find_sampler` and `find_schedule` take any of these names. A name of ours means ours. Between tools the first one that
knows a name decides; `tool` asks for one tool's meaning. Spelling does not matter: "DPM++ 2M", "dpmpp_2m" and "dpm++2m"
are the same.

A1111 is AUTOMATIC1111's web UI and Forge; in ComfyUI, names that end in "Scheduler" are nodes.
"""

import difflib
import re
from collections.abc import Iterable
from typing import NamedTuple

from sdjax.checks.arguments import shown

TOOLS = ("a1111", "comfyui", "diffusers", "k_diffusion", "sd_cpp", "invokeai")
TITLES = {
    "a1111": "A1111", "comfyui": "ComfyUI", "diffusers": "diffusers", "k_diffusion": "k-diffusion",
    "sd_cpp": "stable-diffusion.cpp", "invokeai": "InvokeAI",
}  # fmt: skip
ZERO_SNR = ("diffusers", "a1111", "comfyui")  # the keys of sdjax.schedule.LAST_ALPHAS

LISTS = ("sigmas", "timesteps")  # schedules that are given by their numbers


class Names(NamedTuple):
    """A sampler or schedule in every tool. In a tool that has several names for it, they are separated by ", "."""

    a1111: str = ""
    comfyui: str = ""
    diffusers: str = ""
    k_diffusion: str = ""
    sd_cpp: str = ""
    invokeai: str = ""

    def of(self, tool: str) -> list[str]:
        """Returns its names in one tool, the usual one first."""
        return [name for name in getattr(self, tool).split(", ") if name]


class Method(NamedTuple):
    """A sampler: what it is called, its order of convergence, and its network calls for N steps."""

    names: Names
    order: str
    calls: str


MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
SDE = f"{MULTI}(algorithm_type=sde-dpmsolver++"
SAMPLERS: dict[str, Method] = {
    "ddim": Method(Names("DDIM", "", "DDIMScheduler", "", "ddim_trailing", "ddim"), "1", "N"),
    "ddpm": Method(Names("DDPM", "ddpm", "DDPMScheduler", "", "", "ddpm"), "noise", "N"),
    "plms": Method(Names("PLMS"), "2", "N + 1"),
    "pndm": Method(Names("", "", "PNDMScheduler", "", "", "pndm"), "2", "N + 1"),
    "dpm_solver": Method(Names("", "", MULTI), "2", "N"),
    "dpm_solver_singlestep": Method(Names("", "", SINGLE, "", "", "dpmpp_2s"), "3", "N"),
    "dpm_solver_adaptive": Method(Names(), "3", "chosen while it runs"),
    "dpmpp_2m": Method(
        Names("DPM++ 2M", "dpmpp_2m", f"{MULTI}(use_karras_sigmas)", "sample_dpmpp_2m", "dpm++2m", "dpmpp_2m"),
        "2", "N",
    ),
    "dpmpp_2m_sde": Method(
        Names("DPM++ 2M SDE", "dpmpp_2m_sde, dpmpp_2m_sde_gpu", f"{SDE})", "sample_dpmpp_2m_sde", "", "dpmpp_2m_sde"),
        "noise", "N",
    ),
    "dpmpp_2s_ancestral": Method(
        Names("DPM++ 2S a", "dpmpp_2s_ancestral", "", "sample_dpmpp_2s_ancestral", "dpm++2s_a"), "noise", "2N - 1"
    ),
    "dpm2": Method(
        Names("DPM2", "dpm_2", "KDPM2DiscreteScheduler", "sample_dpm_2", "dpm2", "kdpm_2"), "2", "2N - 1"
    ),
    "dpm2_ancestral": Method(
        Names("DPM2 a", "dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler", "sample_dpm_2_ancestral", "",
              "kdpm_2_a"),
        "noise", "2N - 1",
    ),
    "euler": Method(
        Names("Euler", "euler", "EulerDiscreteScheduler", "sample_euler", "euler", "euler"), "1", "N"
    ),
    "euler_ancestral": Method(
        Names("Euler a", "euler_ancestral", "EulerAncestralDiscreteScheduler", "sample_euler_ancestral", "euler_a",
              "euler_a"),
        "noise", "N",
    ),
    "heun": Method(Names("Heun", "heun", "HeunDiscreteScheduler", "sample_heun", "heun", "heun"), "2", "2N - 1"),
    "lms": Method(Names("LMS", "", "LMSDiscreteScheduler", "sample_lms", "", "lms"), "4", "N"),
    "lms_x0": Method(Names("", "lms"), "4", "N"),
    "unipc": Method(Names("UniPC", "", "UniPCMultistepScheduler", "", "", "unipc"), "2", "N"),
    "unipc_bh1": Method(Names("", "uni_pc"), "3", "N"),
    "unipc_bh2": Method(Names("", "uni_pc_bh2"), "3", "N"),
    "deis": Method(Names("", "deis"), "3", "N"),
    "deis_log_rho": Method(Names("", "", "DEISMultistepScheduler", "", "", "deis"), "2", "N"),
    "ipndm": Method(Names("", "ipndm", "", "", "ipndm"), "2", "N"),
    "ipndm_v": Method(Names("", "ipndm_v", "", "", "ipndm_v"), "2", "N"),
    "sa_solver": Method(Names("", "sa_solver", "SASolverScheduler"), "noise", "N"),
    "sa_solver_pece": Method(Names("", "sa_solver_pece"), "noise", "2N - 1"),
    "tcd": Method(Names("", "", "TCDScheduler", "", "tcd", "tcd"), "noise", "N"),
    "lcm": Method(Names("LCM", "", "LCMScheduler", "", "lcm", "lcm"), "noise", "N"),
    "lcm_x0": Method(Names("", "lcm"), "noise", "N"),
    "ddim_cfg_pp": Method(Names("DDIM CFG++"), "1", "N"),
    "euler_cfg_pp": Method(Names("", "euler_cfg_pp", "", "", "euler_cfg_pp"), "1", "N"),
    "euler_ancestral_cfg_pp": Method(Names("", "euler_ancestral_cfg_pp", "", "", "euler_a_cfg_pp"), "noise", "N"),
    "heunpp2": Method(Names("HeunPP2", "heunpp2"), "1", "3N - 3"),
    "restart": Method(Names("Restart"), "noise", "2N - 1"),
    "dpm_fast": Method(Names("DPM fast", "dpm_fast", "", "sample_dpm_fast"), "3", "N"),
    "dpm_adaptive": Method(
        Names("DPM adaptive, k_dpm_ad", "dpm_adaptive", "", "sample_dpm_adaptive"), "3", "chosen while it runs"
    ),
    "dpmpp_2s_ancestral_cfg_pp": Method(Names("", "dpmpp_2s_ancestral_cfg_pp"), "noise", "2N - 1"),
    "dpmpp_2m_cfg_pp": Method(Names("", "dpmpp_2m_cfg_pp"), "2", "N"),
    "dpmpp_sde": Method(
        Names("DPM++ SDE", "dpmpp_sde, dpmpp_sde_gpu", "DPMSolverSDEScheduler", "sample_dpmpp_sde", "", "dpmpp_sde"),
        "noise", "2N - 1",
    ),
    "dpmpp_2m_sde_heun": Method(
        Names("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun, dpmpp_2m_sde_heun_gpu"), "noise", "N"
    ),
    "dpmpp_3m_sde": Method(
        Names("DPM++ 3M SDE", "dpmpp_3m_sde, dpmpp_3m_sde_gpu", "", "sample_dpmpp_3m_sde"), "noise", "N"
    ),
    "res_multistep": Method(Names("", "res_multistep", "", "", "res_multistep"), "2", "N"),
    "res_multistep_ancestral": Method(Names("", "res_multistep_ancestral"), "noise", "N"),
    "res_multistep_cfg_pp": Method(Names("", "res_multistep_cfg_pp"), "2", "N"),
    "res_multistep_ancestral_cfg_pp": Method(Names("", "res_multistep_ancestral_cfg_pp"), "noise", "N"),
    "gradient_estimation": Method(Names("", "gradient_estimation"), "1", "N"),
    "gradient_estimation_cfg_pp": Method(Names("", "gradient_estimation_cfg_pp"), "1", "N"),
    "er_sde": Method(Names("", "er_sde", "", "", "er_sde"), "noise", "N"),
    "seeds_2": Method(Names("", "seeds_2"), "noise", "2N - 1"),
    "seeds_3": Method(Names("", "seeds_3"), "noise", "3N - 2"),
}  # fmt: skip

SCHEDULES: dict[str, Names] = {
    "even": Names(),
    "leading": Names("", "", "timestep_spacing=leading"),
    "compvis": Names(),
    "trailing": Names("", "", "timestep_spacing=trailing"),
    "lcm": Names("", "", "", "", "lcm"),
    "linspace": Names("", "", "timestep_spacing=linspace"),
    "time_uniform": Names(),
    "time_quadratic": Names(),
    "logSNR": Names("", "", "use_lu_lambdas"),
    "exponential": Names(
        "Exponential", "exponential, ExponentialScheduler", "use_exponential_sigmas", "get_sigmas_exponential",
        "exponential",
    ),
    "karras": Names("Karras", "karras, KarrasScheduler", "use_karras_sigmas", "get_sigmas_karras", "karras"),
    "normal": Names("Uniform, Normal", "normal", "interpolation_type=log_linear", "DiscreteSchedule.get_sigmas",
                    "discrete"),
    "simple": Names("Simple", "simple", "", "", "simple"),
    "sgm_uniform": Names("SGM Uniform", "sgm_uniform", "", "", "sgm_uniform"),
    "ddim_uniform": Names("DDIM", "ddim_uniform"),
    "polyexponential": Names("Polyexponential", "PolyexponentialScheduler", "", "get_sigmas_polyexponential"),
    "beta": Names("Beta", "beta, BetaSamplingScheduler", "use_beta_sigmas"),
    "linear_quadratic": Names("", "linear_quadratic"),
    "kl_optimal": Names("KL Optimal", "kl_optimal", "", "", "kl_optimal"),
    "laplace": Names("", "LaplaceScheduler"),
    "vp": Names("", "VPScheduler", "", "get_sigmas_vp"),
    "align_your_steps": Names("", "AlignYourStepsScheduler", "", "", "ays"),
    "align_your_steps_11": Names("Align Your Steps, Align Your Steps 11", "", "StableDiffusionSigmas"),
    "align_your_steps_32": Names("Align Your Steps 32"),
    "align_your_steps_timesteps": Names("", "", "StableDiffusionTimesteps"),
    "gits": Names("", "GITSScheduler", "", "", "gits"),
    "sd_turbo": Names("Turbo", "SDTurboScheduler"),
}  # fmt: skip

# Endings that say the schedule in a sampler's name: A1111's labels before 1.9, k-diffusion's short names, InvokeAI's
ENDINGS = {
    " karras": "karras", " exponential": "exponential", " polyexponential": "polyexponential",
    " sgm uniform": "sgm_uniform", " beta": "beta", "_karras": "karras", "_exponential": "exponential",
    "_ka": "karras", "_k": "karras",
}  # fmt: skip
OF_DIFFUSERS = {  # an option of a diffusers scheduler -> the schedule it means
    "use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta",
    "use_lu_lambdas": "logSNR", "timestep_spacing=leading": "leading", "timestep_spacing=trailing": "trailing",
    "timestep_spacing=linspace": "linspace",
}  # fmt: skip


class Found(NamedTuple):
    """What a name means: a sampler, and the schedule that the name says, if it does."""

    sampler: str
    schedule: str | None = None


def plain(name: str) -> str:
    """Returns a name without what tools spell differently: case, signs, "k_", "sample_" and "get_sigmas_"."""
    low = name.lower().strip().removeprefix("k_").removeprefix("sample_").removeprefix("get_sigmas_")
    return re.sub(r"[^a-z0-9=]", "", low.replace("++", "pp"))


def find_sampler(name: str, tool: str | None = None, more: Iterable[str] = ()) -> Found:
    """Returns the sampler that a name means, in any tool or in one `tool`. `more` are further names of ours.

    Raises ValueError, listing the nearest known names, if there is none.
    """
    ours = {name: Names() for name in more} | {name: method.names for name, method in SAMPLERS.items()}
    found = _look_up(name, ours, tool)
    if found is not None:
        return Found(found, "trailing" if plain(name) == "ddimtrailing" else None)
    low = name.lower().strip()
    for ending, schedule in ENDINGS.items():
        if low.endswith(ending):
            found = _look_up(low.removesuffix(ending), ours, tool)
            if found is not None:
                return Found(found, schedule)
    of_class = _of_diffusers(name)
    if of_class is not None:
        return of_class
    raise ValueError(_unknown("sampler", name, ours))


def find_schedule(name: str, tool: str | None = None, more: Iterable[str] = ()) -> str:
    """Returns our name of a schedule. Raises ValueError, listing the nearest known names, if there is none."""
    ours = {name: Names() for name in more} | SCHEDULES
    found = _look_up(name, ours, tool)
    if found is None:
        raise ValueError(_unknown("schedule", name, ours))
    return found


def _look_up(name: str, table: dict[str, Names], tool: str | None) -> str | None:
    """Returns our name for a name: exact names before other spellings, our names before those of tools."""
    if tool is None and name in table:
        return name
    tools = TOOLS if tool is None else (tool,)
    for same in (lambda text: text, plain):
        wanted = same(name)
        for one in tools:
            for own, names in table.items():
                if wanted and wanted in [same(text) for text in names.of(one)]:
                    return own
        if wanted in [same(own) for own in table]:
            return next(own for own in table if same(own) == wanted)
    return None


def _of_diffusers(name: str) -> Found | None:
    """Returns what a diffusers class with options means: "DPMSolverMultistepScheduler(use_karras_sigmas=True)"."""
    match = re.fullmatch(r"\s*(\w+Scheduler)\s*(?:\((.*)\)|,(.*))?\s*", name, re.DOTALL)
    if match is None:
        return None
    given = re.split(r"[,;]", match[2] or match[3] or "")
    options = {re.sub(r"\s|['\"]", "", text).removesuffix("=True") for text in given} - {""}
    schedules = [OF_DIFFUSERS[option] for option in options if option in OF_DIFFUSERS]
    best: Found | None = None
    most = (-1, -1)  # how many options fit: those that say the method count before those that say the schedule
    for own, method in SAMPLERS.items():
        for text in method.names.of("diffusers"):
            label, _, needed = text.partition("(")
            wanted = set(re.split(r",\s*", needed.rstrip(")"))) - {""}
            fits = len(wanted - OF_DIFFUSERS.keys()), len(wanted)
            if label == match[1] and wanted <= options and fits > most:
                best, most = Found(own, schedules[0] if schedules else None), fits
    left = sorted(option for option in options if option not in OF_DIFFUSERS and option not in SDE)
    if best is not None and left:
        raise ValueError(
            f"the sampler {shown(name)} has options that its name cannot say: {', '.join(left)}; write {best.sampler}, "
            "and set its options (in Python, sdjax.samplers.from_diffusers takes a whole scheduler_config.json)"
        )
    return best


def _unknown(kind: str, name: str, table: dict[str, Names]) -> str:
    """Returns the sentence about an unknown name, with up to five near ones and what they are here."""
    every = {plain(own): own for own in table}
    for own, names in table.items():
        for tool in TOOLS:
            for text in names.of(tool):
                every.setdefault(plain(text), own)
    near = [every[text] for text in difflib.get_close_matches(plain(name), every, 5, 0.5)]
    listed = ", ".join(dict.fromkeys(near)) if near else ", ".join(table)
    what = "the nearest known ones are" if near else "the known ones are"
    return f"unknown {kind} {shown(name)}; {what} {listed} (`sdjax samplers` lists all)"
