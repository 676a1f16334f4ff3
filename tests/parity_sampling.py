"""The parity kit's `sample` arguments, carried out by sdjax's samplers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import samplers
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import make_denoiser
from sdjax.diffusion.guidance import make_guidance
from sdjax.diffusion.network import FunctionNetwork

SOLVERS = {
    "multistep": samplers.DPMSolverMultistep,
    "singlestep": samplers.DPMSolverSinglestep,
    "singlestep_fixed": samplers.DPMSolverSinglestepFixed,
    "adaptive": samplers.DPMSolverAdaptive,
}
CHUNK = 8  # rows of one compiled scan, so that all linear samplers of a model share one program


@functools.lru_cache(maxsize=8)
def runner(model_fn, prediction, rule):
    """Returns the compiled scan of a network."""

    def apply(x, t, told):
        x = x if told.concat is None else jnp.concatenate([x, told.concat], axis=-1)
        return model_fn(x, t, told.context, told.label)

    @jax.jit
    def run(state, rows, noise, branches, guidance, mask, mask_x0, mask_noise):
        denoiser = make_denoiser(FunctionNetwork(apply), {}, prediction, branches, guidance)
        state = state.replace(memory=denoiser.init(state.x))

        def constrain(x, row):  # ldm's mask: 1 keeps mask_x0, with new noise before each step
            return mask * (mask_x0 + row.sigma[0] * mask_noise[row.index[0]]) + (1 - mask) * x

        return samplers.scan_rows(rule, denoiser, state, rows, noise, None if mask is None else constrain)

    return run


def make_sampler(name, algorithm, method, order, solver_type, skip_type, first_order_last_below, atol, rtol, eta):
    """Returns the sampler that the kit's words describe."""
    if name == "ddim":
        return samplers.DDIM(spacing="compvis", eta=eta)
    if name == "plms":
        return samplers.PLMS(spacing="compvis")
    if name != "dpm":
        raise ValueError(f"unknown sampler {name!r} of the parity kit")
    options = {"algorithm": algorithm, "order": order, "solver_type": solver_type, "spacing": skip_type}
    if method == "multistep":
        options["lower_order_below"] = first_order_last_below
    elif method == "adaptive":
        options |= {"atol": atol, "rtol": rtol, "joint": True}
    return SOLVERS[method](**{key: value for key, value in options.items() if value is not None})


def sample_with(
    model_fn, schedule, sampler_name, num_steps, *, x_T, cond, uncond, scale, eta=0.0, noise=None, concat=None,
    label=None, uncond_label=None, algorithm=None, method=None, order=None, solver_type=None, skip_type=None,
    first_order_last_below=None, atol=None, rtol=None, mask=None, mask_x0=None, mask_noise=None,
):  # fmt: skip
    """Returns the reference's latent, NCHW, of model_fn(x, t, context, label) in NHWC, by the kit's description."""
    sampler = make_sampler(
        sampler_name, algorithm, method, order, solver_type, skip_type, first_order_last_below, atol, rtol, eta
    )
    rows = sampler.steps(schedule, 1000 if num_steps is None else num_steps)
    x = sampler.initial(nhwc(x_T), rows)
    return run_rows(
        model_fn, schedule, sampler, rows, x, cond, uncond, scale, noise, concat, label, uncond_label, mask, mask_x0,
        mask_noise,
    )  # fmt: skip


def img2img_with(model_fn, schedule, num_steps, *, x0, start_noise, t_enc, cond, uncond, scale, **more):
    """Returns what CompVis's stochastic_encode and decode make of x0, NCHW, in t_enc of its steps."""
    sampler = samplers.DDIM(spacing="compvis")
    strength = min((t_enc + 0.5) / num_steps, 1)  # of which int(strength * num_steps) is t_enc
    start = samplers.make_start(sampler, schedule, num_steps, strength, counting="compvis")
    x = start.of_x0 * nhwc(x0) + start.of_noise * nhwc(start_noise)
    return run_rows(model_fn, schedule, sampler, start.rows, x, cond, uncond, scale, **more)


def nhwc(x):
    return None if x is None else jnp.moveaxis(jnp.asarray(x, jnp.float32), -3, -1)


def run_rows(
    model_fn, schedule, sampler, rows, x, cond, uncond, scale, noise=None, concat=None, label=None, uncond_label=None,
    mask=None, mask_x0=None, mask_noise=None,
):  # fmt: skip
    """Returns the latent, NCHW, after the rows from x, which is NHWC."""
    concat = nhwc(concat)
    guidance = make_guidance(1 if uncond is None else scale)
    of_branch = {"unconditional": (uncond, uncond_label), "conditional": (cond, label)}
    branches = [
        Conditioning(jnp.asarray(context), concat=concat, label=None if label is None else jnp.asarray(label))
        for context, label in (of_branch[branch] for branch in guidance.branches)
    ]
    noise = jnp.zeros((1, *x.shape)) if noise is None else nhwc(noise)
    run = runner(model_fn, schedule.config.prediction, sampler.rule)
    state = sampler.rule.init(x)
    size = CHUNK if sampler.rule == samplers.Linear() else len(rows.timestep)
    for part in samplers.chunks(samplers.repeat(rows, len(x)), size):
        state = run(state, part, noise, branches, guidance, nhwc(mask), nhwc(mask_x0), nhwc(mask_noise))
    return np.asarray(jnp.moveaxis(sampler.final(state, rows), -1, 1))
