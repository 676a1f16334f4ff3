"""The parity kit's kind `guidance`, by sdjax's rules, patches and denoiser."""

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import samplers
from sdjax.adapters import FreeU, FreeUNumbers, patched
from sdjax.adapters.perturbed import PerturbedAttention
from sdjax.diffusion import rules
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import conditionings_of, make_denoiser
from sdjax.diffusion.guidance import Call, ClassifierFree, make_guidance
from sdjax.diffusion.network import UNetNetwork
from sdjax.nn import UNet
from sdjax.schedule import NoiseSchedule

# A rule's options by the tools' words
WORDS = {
    "adaptive_projected_guidance_momentum": "momentum", "adaptive_projected_guidance_rescale": "threshold",
    "norm_threshold": "threshold", "neg_scale": "negative", "multiplier": "share", "zero_init_steps": "zero_steps",
    "scale_low": "low", "scale_high": "high", "freq_cutoff": "cutoff", "threshold_percentile": "percentile",
    "mimic_mode": "mimic_curve", "mimic_scale_min": "mimic_lowest", "cfg_mode": "curve", "cfg_scale_min": "lowest",
    "sched_val": "power", "separate_feature_channels": "separate", "scaling_startpoint": "start",
    "variability_measure": "measure", "interpolate_phi": "mix",
}  # fmt: skip
# What a tool's rule of that name is here
COMFYUI = {
    "rescale_cfg": ("rescale", {"space": "v"}),
    "apg": ("apg", {"form": "comfyui", "space": "x0"}),
    "cfg_zero_star": ("cfg_zero_star", {"space": "x0", "fitted": "epsilon", "zero_steps": 0}),
    "tcfg": ("tcfg", {"space": "epsilon"}),
    "dynamic_thresholding": ("dynamic_thresholding", {"clock": "timesteps"}),
}
AXES = {(-3, -2, -1): "picture", (-2, -1): "channel", (-3,): "pixel"}  # of NCHW


def nhwc(x):
    return jnp.moveaxis(jnp.asarray(x, jnp.float32), -3, -1)


def nchw(x):
    return np.asarray(jnp.moveaxis(x, -1, -3))


def guidance(tool, name, scale, options, cond, uncond, *, extra=None, x=None, sigma=None):
    """Returns the guided results, NCHW, one for each entry of the first axis, which are the steps of a run."""
    rule = made(tool, name, scale, dict(options))
    outputs = {"conditional": cond, "unconditional": uncond}
    if name == "edit":
        outputs = {"conditional": cond, "unconditional": extra, "nothing": uncond}
    elif extra is not None:
        outputs["empty" if name == "perp_neg" else "conditional 2"] = extra
    n, b = cond.shape[:2]
    memory = rule.init(nhwc(cond[0]))
    out = []
    for i in range(n):
        level = np.full(b, 1.0 if sigma is None else sigma[i], np.float32)
        at = 500.0 if sigma is None else nearest(NoiseSchedule(), sigma[i])
        row = samplers.row(at, level, 0.0, calls=[1.0])._replace(step=np.int32(i), num_steps=np.int32(n), sigma=level)
        here = jnp.zeros_like(nhwc(cond[i])) if x is None else nhwc(x[i])
        # Outputs are x0 for ComfyUI and A1111; for diffusers any space will do, as long as x has no part in it
        call = Call(here, row, 0.0, 1.0, "x0")
        call = call._replace(on=rule.on(call))
        denoised, memory = rule.combine({key: nhwc(value[i]) for key, value in outputs.items()}, call, memory)
        out.append(nchw(denoised.x0))
    return np.stack(out)


def made(tool, name, scale, options):
    """Returns the guidance that a tool has by this name."""
    if name == "and":
        weights = np.asarray(options["weights"], np.float32)
        return ClassifierFree(scale, 0.0, (rules.And(weights[None], len(weights)),))
    if name == "edit":
        return ClassifierFree(scale, 0.0, (rules.Edit(options["image_scale"]),))
    rescale = options.pop("guidance_rescale", 0.0)
    if name == "rescale_noise_cfg":
        return ClassifierFree(scale, rescale)
    around = {key: options.pop(key) for key in ("start", "stop") if key in options and tool == "diffusers"}
    original = options.pop("use_original_formulation", False)
    own, named = (name, {}) if tool != "comfyui" else COMFYUI.get(name, (name, {}))
    named = dict(named)
    if "adaptive_projected_guidance_norm_dim" in options:
        named["norm_over"] = AXES[tuple(sorted(options.pop("adaptive_projected_guidance_norm_dim")))]
    for key, value in options.items():
        if key == "separate_feature_channels":
            value = "channels" if value == "enable" else "no"
        named[WORDS.get(key, key)] = value
    if original:
        scale = scale + 1
        named |= {"form": "paper"} if name == "apg" else {}
    chain = rules.make_rules(own, named)
    if around:
        chain = (*chain, *rules.make_rules("interval", around))
    return ClassifierFree(scale, rescale, chain)


def nearest(schedule, sigma):
    """Returns the timestep whose log sigma is nearest."""
    return float(np.argmin(abs(np.log(schedule.sigmas) - np.log(sigma))))


class Guided:
    """The parts of the kit's Model that guide."""

    def unet_with(self, tool, feature, options, x, t, context):
        b, ones = len(x), np.ones(len(x), np.float32)
        if feature == "pag":
            patch, own = PerturbedAttention(",".join(options["layers"]), 1, 0), None
        else:
            patch = FreeU(2 if feature == "freeu_v2" else 1, tool)
            own = FreeUNumbers(*(ones * options[name] for name in ("b1", "b2", "s1", "s2")))
        assert b == len(t)

        def run(params, *args):
            with patched([patch], own=[own]):
                return UNet(self.config.unet).apply({"params": params}, *args)

        return nchw(jax.jit(run)(self.params["unet"], nhwc(x), jnp.asarray(t), jnp.asarray(context)))

    def guided_run(self, feature, num_steps, options, x_T, cond, uncond, scale):
        named = dict(options)
        rescale = named.pop("guidance_rescale", 0.0)
        words = {"pag_scale": "strength", "sag_scale": "strength", "pag_adaptive_scale": "adaptive"}
        chain = rules.make_rules(feature, {words.get(key, key): value for key, value in named.items()})
        sampler = samplers.DDIM(spacing="leading")
        rows = sampler.steps(self.schedule, num_steps)
        denoiser = self._guided(make_guidance(scale, rescale, chain), cond, uncond)

        def run(params, x):
            return samplers.sample(sampler, denoiser(params), x, rows, jnp.zeros((1, *x.shape)))

        return nchw(jax.jit(run)(self.params["unet"], sampler.initial(nhwc(x_T), rows)))

    def guided_denoised(self, feature, options, x, sigma, cond, uncond, scale):
        names = {"scale": "strength", "blur_sigma": "blur"}
        named = {names[key]: value for key, value in options.items()}
        named |= {"space": "epsilon"} if feature == "sag" else {}
        denoiser = self._guided(make_guidance(scale, 0.0, rules.make_rules(feature, named)), cond, uncond)
        row = samplers.row(nearest(self.schedule, sigma), np.float32(sigma), 0.0, calls=[1.0])

        def run(params, x):
            made = denoiser(params)
            return made(x, row, made.init(x))[0].x0

        return nchw(jax.jit(run)(self.params["unet"], nhwc(x)))

    def _guided(self, guidance, cond, uncond):
        told = {"unconditional": uncond}
        branches = [Conditioning(jnp.asarray(told.get(name, cond))) for name in conditionings_of(guidance)]
        network = UNetNetwork(self.config.unet, "float32")
        return lambda params: make_denoiser(network, params, self.config.schedule.prediction, branches, guidance)
