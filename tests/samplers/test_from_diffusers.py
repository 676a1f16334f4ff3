"""Samplers of diffusers' scheduler files, against runs recorded from diffusers 0.42.1, and what is refused."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import samplers
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import make_denoiser
from sdjax.diffusion.guidance import Unguided
from sdjax.diffusion.network import FunctionNetwork
from sdjax.samplers import from_diffusers
from sdjax.schedule import NoiseSchedule

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden/diffusers_schedulers.npz"))
CASES = {case["id"]: case for case in json.loads(str(GOLDEN.pop("spec")))}
MOST = 24  # rows: all runs are filled up to as many, so that one program serves them
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MULTI, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"


def network(x, t, prediction, t_scale):
    """Returns the recorded runs' network: a formula of x and the timestep."""
    k = (1 + 0.1 * jnp.cos(jnp.arange(x.size))).reshape(x.shape)
    a, b, c = {"epsilon": (0.1, 0.85, 0.3), "v_prediction": (0.2, -0.4, 0.25)}[prediction]
    u = t / t_scale
    return x * ((u * b + a) * k) + x / (x * x + 1) * ((1 - u) * c)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def scan(rule, prediction, of_formula, sign, state, rows, noise, t_scale):
    def apply(x, t, conditioning):
        return sign * network(x, t[0], of_formula, t_scale)

    denoiser = make_denoiser(FunctionNetwork(apply), {}, prediction, [Conditioning()], Unguided())
    state = state.replace(memory=denoiser.init(state.x))
    return samplers.scan_rows(rule, denoiser, state, samplers.repeat(rows, len(state.x)), noise)


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_run_is_made_again(name):
    case = CASES[name]
    config, options = case["config"], dict(case["options"])
    strength = options.pop("strength", 1.0)
    sampler = from_diffusers(config, **options)
    steps = case["num_steps"]
    skip = steps - int(steps * strength)
    rows = sampler.steps(sampler.noise, steps, skip=skip)
    # Exponential sigmas' timesteps are truncated: 999 becomes 998 or not by the last bit of a logarithm
    truncated = bool(config.get("use_exponential_sigmas")) and name.startswith("DEIS")
    np.testing.assert_allclose(rows.timestep, GOLDEN[f"{name}/timesteps"], rtol=2e-5, atol=1.01 if truncated else 2e-3)
    x = sampler.initial(jnp.asarray(GOLDEN["x_T"]), rows)
    if skip:
        x = GOLDEN["x0"] + sampler.grid(sampler.noise, steps).sigma[skip] * GOLDEN["start_noise"]
    noise = np.zeros((MOST, *x.shape), np.float32)
    drawn = np.flatnonzero(rows.coef.noise)
    drawn = np.arange(len(rows.index)) if case["draws"] == len(rows.index) else drawn
    noise[drawn[: case["draws"]]] = GOLDEN["noises"][: case["draws"]]
    (run,) = samplers.chunks(rows, MOST)
    state = scan(
        sampler.rule, sampler.noise.config.prediction, config.get("prediction_type", "epsilon"),
        -1.0 if sampler.negated else 1.0, sampler.rule.init(jnp.asarray(x, jnp.float32)), run, noise, case["t_scale"],
    )  # fmt: skip
    got, want = np.asarray(sampler.final(state, rows)), GOLDEN[f"{name}/out"]
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < (1e-3 if truncated else 2e-4)


def test_a_field_of_another_class_that_is_off_has_no_effect():
    """The file of Stable Diffusion 1.5's repository says clip_sample=false, which PNDMScheduler does not have."""
    config = LATENT | {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1}
    assert from_diffusers(config | {"clip_sample": False, "thresholding": None}) == from_diffusers(config)
    with pytest.raises(ValueError, match="unknown field 'clip_sample'"):
        from_diffusers(config | {"clip_sample": True})


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {}, "a scheduler's file is a JSON object with a _class_name"),
        ({"_class_name": "VQDiffusionScheduler"}, {}, "unknown scheduler 'VQDiffusionScheduler'.*; the known ones are"),
        ({"_class_name": MULTI, "sigma": 1}, {}, "DPMSolverMultistepScheduler: unknown field 'sigma' in its file"),
        ({"_class_name": MULTI, "use_flow_sigmas": True}, {}, "use_flow_sigmas is False here, because flow matching"),
        ({"_class_name": MULTI, "use_karras_sigmas": True, "use_lu_lambdas": True}, {}, "only one of use_karras"),
        ({"_class_name": MULTI, "algorithm_type": "dpmsolver"}, {}, "cannot end without noise"),
        ({"_class_name": MULTI, "solver_order": 4}, {}, "order of DPMSolverMultistep is 1, 2 or 3; got 4"),
        ({"_class_name": MULTI, "variance_type": "learned"}, {}, "predict no variance"),
        ({"_class_name": MULTI, "timestep_spacing": "even"}, {}, "timestep_spacing is linspace or leading or trailing"),
        ({"_class_name": MULTI, "beta_start": "a"}, {}, "beta_start is a finite number; got 'a'"),
        ({"_class_name": MULTI}, {"eta": 1.0}, "its step has no argument 'eta'"),
        ({"_class_name": MULTI}, {"sigmas": [3.0, 0.0]}, "it takes no list of sigmas"),
        ({"_class_name": MULTI}, {"timesteps": [1, 5]}, "timesteps fall from step to step"),
        ({"_class_name": UNIPC, "solver_type": "bh1"}, {}, "UniPC ends without noise only with"),
        ({"_class_name": UNIPC, "predict_x0": False}, {}, "UniPC ends without noise only with"),
        ({"_class_name": UNIPC, "solver_order": 3, "lower_order_final": False}, {}, "UniPC ends without noise only"),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large_log"}, {}, "variance_type is fixed_small or"),
        ({"_class_name": "DDIMInverseScheduler"}, {}, "clip_sample is False here, because inversion that limits x0"),
        ({"_class_name": "SASolverScheduler", "tau_func": "f"}, {}, "tau_func is None here"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_in_a_sentence(config, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_diffusers(config, **options)
    assert "\n" not in str(caught.value)


def test_the_file_must_be_for_what_the_model_predicts():
    sampler = from_diffusers({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", **LATENT})
    with pytest.raises(
        ValueError, match="this DDIMScheduler is for a model that predicts v; the model predicts epsilon"
    ):
        sampler.steps(NoiseSchedule(), 5)


def test_the_schedule_is_the_files_not_the_models():
    table = list(np.linspace(1e-3, 2e-2, 100))
    sampler = from_diffusers({"_class_name": "DDIMScheduler", "num_train_timesteps": 100, "trained_betas": table})
    a = np.cumprod(1 - np.array(table))
    rows = sampler.steps(NoiseSchedule(), 10)
    np.testing.assert_allclose(rows.timestep, np.arange(90, -1, -10))
    np.testing.assert_allclose(rows.sigma, np.sqrt(1 / a - 1)[np.arange(90, -1, -10)], rtol=1e-6)


def test_missing_fields_have_the_defaults_of_the_class():
    bare = from_diffusers({"_class_name": "DDIMScheduler"})
    assert bare.limit is not None  # clip_sample is true unless the file says otherwise
    assert bare.noise.config.beta_end == 0.02
    assert from_diffusers({"_class_name": "LCMScheduler"}).noise.config.beta_end == 0.012


def test_given_timesteps_need_their_number_of_steps():
    sampler = from_diffusers({"_class_name": MULTI, **LATENT}, timesteps=[999, 500, 100])
    assert len(sampler.steps(NoiseSchedule(), 3).index) == 3
    with pytest.raises(ValueError, match="the timesteps make 3 steps; got num_steps 4"):
        sampler.steps(NoiseSchedule(), 4)
