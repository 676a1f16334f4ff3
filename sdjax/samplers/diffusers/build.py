"""Reads the files of diffusers' schedulers: `from_diffusers`. Every field is used, or refused with a sentence."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdjax.checks.arguments import is_sequence, number, shown
from sdjax.samplers.adams import DEIS
from sdjax.samplers.ancestral import Euler
from sdjax.samplers.diffusers.fields import Fields
from sdjax.samplers.diffusers.grid import DiffusersGrid, Last
from sdjax.samplers.diffusers.own import (
    EDM,
    DPMSolverSDEScheduler,
    EDMGrid,
    EulerScheduler,
    IPNDMScheduler,
    LMSScheduler,
    SASolverScheduler,
    SDEThirdOrderScheduler,
    SinglestepScheduler,
    Trigonometric,
)
from sdjax.samplers.diffusers.scheduler import DiffusersSampler
from sdjax.samplers.diffusers.whole import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    LCMScheduler,
    PNDMScheduler,
    WholeGrid,
)
from sdjax.samplers.dpm_solver import DPMSolverMultistep
from sdjax.samplers.few_step import TCD
from sdjax.samplers.sampler import Sampler
from sdjax.samplers.two_stage import DPM2, Heun
from sdjax.samplers.unipc import UniPC
from sdjax.spelling import meant

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis")
SOLVER_TYPES = {"midpoint": "midpoint", "heun": "heun", **dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint")}


def from_diffusers(
    config: Mapping[str, Any],
    *,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    **step: float | bool,
) -> Sampler:
    """Returns the sampler that makes the steps of a scheduler of diffusers 0.42.1, given its scheduler_config.json.

    Missing fields have the class's defaults. `timesteps` or `sigmas` (with the last one) are those of `set_timesteps`;
    then the number of steps must be theirs. `step` are the arguments of the scheduler's `step`: eta,
    use_clipped_model_output, s_churn, s_tmin, s_tmax, s_noise, order.

    The sampler works on the file's noise schedule, whatever the model's is. Its `steps` raises ValueError if the file's
    prediction_type is not what the model predicts.

    Raises ValueError, in one sentence, for a class, field, value or argument that is unknown or has no meaning for
    Stable Diffusion 1 and 2, and for settings with which diffusers' steps are not finite.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("_class_name"), str):
        raise ValueError(f"a scheduler's file is a JSON object with a _class_name; got {shown(config)}")
    name = config["_class_name"]
    if name not in CLASSES:
        raise ValueError(
            f"unknown scheduler {shown(name)}{meant(name, CLASSES)}; the known ones are {', '.join(CLASSES)}"
        )
    fields = Fields(config, step, timesteps=_listed("timesteps", timesteps), sigmas=_listed("sigmas", sigmas))
    sampler = CLASSES[name](fields)
    fields.check_rest()
    return sampler


def _listed(name: str, values: Sequence[float] | None) -> tuple[float, ...] | None:
    if values is None:
        return None
    if not is_sequence(values) or not len(values):
        raise ValueError(f"{name} are a list of numbers; got {shown(values)}")
    out = tuple(number(name, value, 0) for value in values)
    if any(b >= a for a, b in zip(out, out[1:])):
        raise ValueError(f"{name} fall from step to step; got {shown(values)}")
    return out


def _sampler(fields: Fields, method: Sampler, *, limits: bool = True, beside: bool = False) -> DiffusersSampler:
    """Returns the sampler, with the noise schedule and the limit of x0 that the file says."""
    limit = fields.limit() if limits else None
    noise = fields.noise()
    return DiffusersSampler(
        class_name=fields.class_name, method=method, noise=noise, limit=limit, beside=beside and limit is not None
    )


def _of_intervals(
    fields: Fields, last: Last, *, lu: bool = False, clipped: bool = False, given: bool = False
) -> DiffusersGrid:
    """Returns the grid of DPM-Solver, UniPC, DEIS and SA-Solver."""
    fields.only("use_flow_sigmas", False, "flow matching is not for Stable Diffusion 1 and 2")
    for name, value in ("flow_shift", 1.0), ("use_dynamic_shifting", False), ("time_shift_type", "exponential"):
        fields.only(name, value, "flow matching is not for Stable Diffusion 1 and 2")
    sigmas = fields.sigmas(lu=lu)
    return DiffusersGrid(
        spacing=fields.spacing(), offset=fields.whole("steps_offset", 0), of_intervals=True, sigmas=sigmas, last=last,
        lambda_min=fields.number("lambda_min_clipped", float("-inf")) if clipped else float("-inf"),
        timesteps=fields.timesteps(sigmas) if given else None,
    )  # fmt: skip


def _final(fields: Fields) -> Any:
    return fields.choice("final_sigmas_type", "zero", ("zero", "sigma_min"))


def _solver_type(fields: Fields, order: int) -> str:
    """Returns the multistep solver's type. Third order is the authors' in either type of diffusers."""
    kind = SOLVER_TYPES[fields.choice("solver_type", "midpoint", tuple(SOLVER_TYPES))]
    return "taylor" if kind == "heun" and order < 3 else "dpm_solver"


def _algorithm(fields: Fields) -> Any:
    algorithm = fields.choice("algorithm_type", "dpmsolver++", ALGORITHMS)
    return "dpmsolver++" if algorithm == "deis" else algorithm


def _ends_well(fields: Fields, algorithm: str, last: str) -> None:
    if last == "zero" and not algorithm.endswith("++"):
        fields.refuse(f"algorithm_type {algorithm} cannot end without noise: set final_sigmas_type to sigma_min")


def _multistep(fields: Fields) -> Sampler:
    last, order, algorithm = _final(fields), fields.whole("solver_order", 2), _algorithm(fields)
    _ends_well(fields, algorithm, last)
    fields.only("variance_type", None, "models of Stable Diffusion 1 and 2 predict no variance")
    grid = _of_intervals(fields, last, lu=True, clipped=True, given=True)
    solver = DPMSolverMultistep
    if order == 3 and algorithm.startswith("sde-"):
        if algorithm == "sde-dpmsolver":
            fields.refuse("algorithm_type sde-dpmsolver has solver_order 1 or 2")
        solver = SDEThirdOrderScheduler
    return _sampler(fields, _dpm(fields, solver, grid, order, algorithm))


def _dpm(fields: Fields, solver: type[DPMSolverMultistep], grid: Any, order: int, algorithm: Any) -> Sampler:
    options: dict[str, Any] = {}
    lowered, euler = fields.flag("lower_order_final", True), fields.flag("euler_at_final", False)
    if order > 1:
        options = {"lower_order_below": 15 if lowered else 0, "solver_type": _solver_type(fields, order)}
    else:
        _solver_type(fields, order)
    if order > 1 and grid.last != "zero":
        options["euler_at_final"] = euler
    return solver(spacing=grid, algorithm=algorithm, order=order, **options)


def _singlestep(fields: Fields) -> Sampler:
    last, order, algorithm = _final(fields), fields.whole("solver_order", 2), _algorithm(fields)
    _ends_well(fields, algorithm, last)
    kind = SOLVER_TYPES[fields.choice("solver_type", "midpoint", tuple(SOLVER_TYPES))]
    if order == 3 and (algorithm == "sde-dpmsolver" or (algorithm == "sde-dpmsolver++" and kind == "heun")):
        fields.refuse(f"algorithm_type {algorithm} with solver_type {kind} has solver_order 1 or 2")
    fields.only("variance_type", None, "models of Stable Diffusion 1 and 2 predict no variance")
    grid = _of_intervals(fields, last, clipped=True, given=True)
    options: dict[str, Any] = {"solver_type": "taylor" if kind == "heun" else "dpm_solver"} if order > 1 else {}
    return _sampler(fields, SinglestepScheduler(
        spacing=grid, algorithm=algorithm, order=order, lower_order_final=fields.flag("lower_order_final", True),
        **options,
    ))  # fmt: skip


def _multistep_inverse(fields: Fields) -> Sampler:
    order, algorithm = fields.whole("solver_order", 2), _algorithm(fields)
    if algorithm.startswith("sde-"):
        fields.refuse("inversion adds no noise: algorithm_type is dpmsolver or dpmsolver++")
    fields.only("variance_type", None, "models of Stable Diffusion 1 and 2 predict no variance")
    grid = _of_intervals(fields, "repeat", clipped=True)
    return _sampler(fields, _dpm(fields, DPMSolverMultistep, grid.upwards(), order, algorithm))


def _unipc(fields: Fields) -> Sampler:
    last, order = _final(fields), fields.whole("solver_order", 2)
    predicts_x0 = fields.flag("predict_x0", True)
    kind = fields.choice("solver_type", "bh2", ("bh1", "bh2", *SOLVER_TYPES))
    fields.only("solver_p", None, "a predictor of another class is not supported")
    fields.only("shift_terminal", None, "flow matching is not for Stable Diffusion 1 and 2")
    if not predicts_x0 and fields.flag("thresholding", False):
        fields.refuse("with predict_x0 false thresholding has no effect: leave it out")
    ends: Last = "repeat" if last == "sigma_min" else "zero"
    grid = _of_intervals(fields, ends).between(fields.optional("sigma_min"), fields.optional("sigma_max"))
    uncorrected = fields.take("disable_corrector", [])
    if not is_sequence(uncorrected):
        fields.refuse(f"disable_corrector is a list of steps; got {shown(uncorrected)}")
    method = UniPC(
        spacing=grid, order=order, variant="bh1" if kind == "bh1" else "bh2",
        predict="x0" if predicts_x0 else "epsilon",
        lower_order_final=fields.flag("lower_order_final", True), uncorrected=tuple(int(i) for i in uncorrected),
    )  # fmt: skip
    if last == "zero" and not method.can_end_without_noise:
        fields.refuse(
            "UniPC ends without noise only with solver_type bh2, predict_x0 and lower_order_final: "
            "set final_sigmas_type to sigma_min"
        )
    return _sampler(fields, method)


def _deis(fields: Fields) -> Sampler:
    fields.choice("algorithm_type", "deis", ("deis", "dpmsolver", "dpmsolver++"))
    fields.choice("solver_type", "logrho", ("logrho", *SOLVER_TYPES))
    order, lowered = fields.whole("solver_order", 2), fields.flag("lower_order_final", True)
    grid = _of_intervals(fields, "repeat")
    return _sampler(fields, DEIS(spacing=grid, order=order, lower_order_below=15 if lowered else 0))


def _sa_solver(fields: Fields) -> Sampler:
    kind = fields.choice("algorithm_type", "data_prediction", ("data_prediction", "noise_prediction"))
    fields.only("tau_func", None, "the noise is 1 from timestep 200 to 800")
    fields.only("variance_type", None, "models of Stable Diffusion 1 and 2 predict no variance")
    if kind == "noise_prediction" and fields.flag("thresholding", False):
        fields.refuse("thresholding needs algorithm_type data_prediction")
    return _sampler(fields, SASolverScheduler(
        spacing=_of_intervals(fields, "repeat", clipped=True), predict="x0" if kind == "data_prediction" else "epsilon",
        predictor_order=fields.whole("predictor_order", 2), corrector_order=fields.whole("corrector_order", 2),
        lower_order_final=fields.flag("lower_order_final", True), noise_start=800.0, noise_end=200.0, tau_by_start=True,
        simple=kind == "data_prediction",
    ))  # fmt: skip


def _of_starts(fields: Fields, last: Last = "zero", *, spacing: str = "linspace", **more: Any) -> DiffusersGrid:
    """Returns the grid of Euler, Heun, KDPM2, LMS and their like, which start from noise of deviation sigma."""
    chosen = fields.spacing(spacing)
    return DiffusersGrid(
        spacing=chosen,
        offset=fields.whole("steps_offset", 0),
        last=last,
        variance_preserving=chosen == "leading",
        **more,
    )


def _euler(fields: Fields) -> Sampler:
    sigmas = fields.sigmas()
    log_linear = fields.choice("interpolation_type", "linear", ("linear", "log_linear")) == "log_linear"
    continuous = fields.choice("timestep_type", "discrete", ("discrete", "continuous")) == "continuous"
    grid = _of_starts(
        fields, _final(fields), sigmas=sigmas, log_linear=log_linear, timesteps=fields.timesteps(sigmas),
        given_sigmas=fields.given_sigmas(sigmas), continuous=continuous and fields.predicts() == "v_prediction",
    ).between(fields.optional("sigma_min"), fields.optional("sigma_max"))  # fmt: skip
    return _sampler(fields, EulerScheduler(spacing=grid, **fields.churn()), limits=False)


def _simple(
    make: Callable[[DiffusersGrid], Sampler], *, derived: bool = True, clips: bool = False, **more: Any
) -> Callable[[Fields], Sampler]:
    """Returns the reader of a class that has only a grid, with other sigmas if `derived`."""

    def read(fields: Fields) -> Sampler:
        grid = _of_starts(fields, sigmas=fields.sigmas() if derived else "table", **more)
        return _sampler(fields, make(grid), limits=clips)

    return read


def _lms(fields: Fields) -> Sampler:
    order = fields.step_whole("order", 4)
    return _sampler(fields, LMSScheduler(spacing=_of_starts(fields, sigmas=fields.sigmas()), order=order), limits=False)


def _dpm_sde(fields: Fields) -> Sampler:
    fields.only("noise_sampler_seed", None, "the noise is the picture's own")
    s_noise = fields.step_number("s_noise", 1.0)
    grid = _of_starts(fields, sigmas=fields.sigmas())
    return _sampler(fields, DPMSolverSDEScheduler(spacing=grid, s_noise=s_noise), limits=False)


def _ddim(fields: Fields) -> Sampler:
    whole_grid = WholeGrid(
        spacing=fields.spacing("leading"), offset=fields.whole("steps_offset", 0),
        last="zero" if fields.flag("set_alpha_to_one", True) else "sigma_min",
    )  # fmt: skip
    eta, all_clipped = fields.step_number("eta", 0.0), fields.step_flag("use_clipped_model_output", False)
    clips = fields.limits()
    method = DDIMScheduler(spacing=whole_grid, eta=eta, clips=clips, clips_epsilon=all_clipped and clips)
    return _sampler(fields, method, beside=not all_clipped)


def _ddpm(fields: Fields) -> Sampler:
    variance = fields.choice("variance_type", "fixed_small", ("fixed_small", "fixed_small_log", "fixed_large"))
    grid = WholeGrid(
        spacing=fields.spacing("leading"), offset=fields.whole("steps_offset", 0), timesteps=fields.timesteps("table")
    )
    return _sampler(fields, DDPMScheduler(spacing=grid, large=variance == "fixed_large"))


def _ddim_inverse(fields: Fields) -> Sampler:
    fields.only("clip_sample", False, "inversion that limits x0 cannot be undone", default=True)
    fields.number("clip_sample_range", 1.0)
    return _sampler(fields, DDIMInverseScheduler(
        timestep_spacing=fields.choice("timestep_spacing", "leading", ("leading", "trailing")),
        offset=fields.whole("steps_offset", 0), starts_without_noise=fields.flag("set_alpha_to_one", True),
    ), limits=False)  # fmt: skip


def _distilled(fields: Fields, last: Any) -> WholeGrid:
    """Returns the grid of LCM and TCD. Three fields of their files have no effect there."""
    fields.flag("set_alpha_to_one", True)
    fields.whole("steps_offset", 0)
    fields.spacing("leading")
    return WholeGrid(
        distilled=fields.whole("original_inference_steps", 50), last=last, timesteps=fields.timesteps("table")
    )


def _lcm(fields: Fields) -> Sampler:
    scaling = fields.number("timestep_scaling", 10.0)
    return _sampler(fields, LCMScheduler(spacing=_distilled(fields, "zero"), scaling=scaling))


def _tcd(fields: Fields) -> Sampler:
    for name in ("clip_sample", "thresholding"):
        fields.only(name, False, "TCD never limits x0")
    for name, value in ("clip_sample_range", 1.0), ("dynamic_thresholding_ratio", 0.995), ("sample_max_value", 1.0):
        fields.number(name, value)
    fields.number("timestep_scaling", 10.0)
    eta = fields.step_number("eta", 0.3)
    return _sampler(fields, TCD(spacing=_distilled(fields, "sigma_min"), eta=eta), limits=False)


def _pndm(fields: Fields) -> Sampler:
    return _sampler(fields, PNDMScheduler(
        timestep_spacing=fields.spacing("leading"), offset=fields.whole("steps_offset", 0),
        runge_kutta=not fields.flag("skip_prk_steps", False),
        ends_without_noise=fields.flag("set_alpha_to_one", False),
    ), limits=False)  # fmt: skip


def _ipndm(fields: Fields) -> Sampler:
    fields.whole("num_train_timesteps", 1000)
    method = IPNDMScheduler(spacing=Trigonometric(noises=fields.betas()))
    return DiffusersSampler(class_name=fields.class_name, method=method, noise=fields.preconditioned("v"))


def _edm_grid(fields: Fields) -> EDMGrid:
    fields.whole("num_train_timesteps", 1000)
    rho = fields.number("rho", 7.0)
    exponential = fields.choice("sigma_schedule", "karras", ("karras", "exponential")) == "exponential"
    return EDMGrid(
        sigma_min=fields.number("sigma_min", 0.002), sigma_max=fields.number("sigma_max", 80.0),
        sigma_data=fields.number("sigma_data", 0.5), rho=None if exponential else rho, last=_final(fields),
    )  # fmt: skip


def _edm(fields: Fields, method: Sampler, **more: Any) -> Sampler:
    predicts = fields.choice("prediction_type", "epsilon", ("epsilon", "v_prediction"))
    return DiffusersSampler(
        class_name=fields.class_name, method=EDM(method=method), noise=fields.preconditioned("v"),
        negated=predicts == "epsilon", **more,
    )  # fmt: skip


def _edm_euler(fields: Fields) -> Sampler:
    grid = _edm_grid(fields)
    return _edm(fields, EulerScheduler(spacing=grid, **fields.churn(unit=grid.sigma_data)))


def _edm_multistep(fields: Fields) -> Sampler:
    grid, order, algorithm = _edm_grid(fields), fields.whole("solver_order", 2), _algorithm(fields)
    if not algorithm.endswith("++") or (order == 3 and algorithm.startswith("sde-")):
        fields.refuse("algorithm_type is dpmsolver++, or sde-dpmsolver++ with solver_order 1 or 2")
    limit = fields.limit(unit=grid.sigma_data)
    return _edm(fields, _dpm(fields, DPMSolverMultistep, grid, order, algorithm), limit=limit)


CLASSES: dict[str, Callable[[Fields], Sampler]] = {
    "DDIMScheduler": _ddim,
    "DDIMInverseScheduler": _ddim_inverse,
    "DDPMScheduler": _ddpm,
    "DEISMultistepScheduler": _deis,
    "DPMSolverMultistepScheduler": _multistep,
    "DPMSolverMultistepInverseScheduler": _multistep_inverse,
    "DPMSolverSinglestepScheduler": _singlestep,
    "DPMSolverSDEScheduler": _dpm_sde,
    "EDMDPMSolverMultistepScheduler": _edm_multistep,
    "EDMEulerScheduler": _edm_euler,
    "EulerAncestralDiscreteScheduler": _simple(lambda grid: Euler(spacing=grid, eta=1.0), derived=False),
    "EulerDiscreteScheduler": _euler,
    "HeunDiscreteScheduler": _simple(lambda grid: Heun(spacing=grid), clips=True),
    "IPNDMScheduler": _ipndm,
    "KDPM2AncestralDiscreteScheduler": _simple(lambda grid: DPM2(spacing=grid, eta=1.0), rounds_karras=True),
    "KDPM2DiscreteScheduler": _simple(lambda grid: DPM2(spacing=grid), rounds_karras=True),
    "LCMScheduler": _lcm,
    "LMSDiscreteScheduler": _lms,
    "PNDMScheduler": _pndm,
    "SASolverScheduler": _sa_solver,
    "TCDScheduler": _tcd,
    "UniPCMultistepScheduler": _unipc,
}
