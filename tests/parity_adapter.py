"""sdjax behind the interface of the parity kit: numpy in and out, NCHW, names as in released files.

The kit is outside this repository: outputs of the reference PyTorch code on small models with set weights, and a script
that compares with them. What `tests/golden` holds is taken from it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import convert
from sdjax.convert import CheckpointError
from sdjax.nn import AutoencoderKL, TextEncoder, UNet
from sdjax.pictures.watermark import embed as watermark
from sdjax.pictures.watermark import read_bits, to_bits
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.samplers.spacing import compvis_timesteps
from sdjax.schedule import NoiseSchedule

from tests.parity_control import adapter_parameter_count as control_count
from tests.parity_control import (
    control_active,
    controlnet,
    controlnet_hint,
    controlnet_unet,
    inpaint_hint,
    t2i_features,
    t2i_unet,
)
from tests.parity_depth import bert, depth, prepare_depth
from tests.parity_dsam import diffusers_sample, diffusers_sigmas, diffusers_timesteps
from tests.parity_embed import embedding_text, hypernetwork, hypernetwork_unet
from tests.parity_grid import lcm_embedding, lcm_unet
from tests.parity_guid import Guided, guidance
from tests.parity_hires import tiled
from tests.parity_images import ip_tokens, ip_unet, pix2pix
from tests.parity_ksam import ksampler
from tests.parity_lorat import lora_merged
from tests.parity_merge import models_merged
from tests.parity_models import config_from_spec
from tests.parity_motion import animate_unet, motion_count, motion_module
from tests.parity_noise import a1111_noise, brownian, comfyui_noise, comfyui_step_noise, diffusers_noise, torch_randn
from tests.parity_prompt import (
    a1111_and,
    a1111_attention,
    a1111_chunks,
    a1111_prompt_at,
    a1111_schedule,
    comfyui_chunks,
    comfyui_weights,
    context_of,
    pad_contexts,
)
from tests.parity_read import lora_apply, lora_merge
from tests.parity_sampling import img2img_with, sample_with
from tests.parity_sched import (
    a1111_guided_calls,
    align_your_steps,
    comfyui_percent_to_sigma,
    sigma_schedule,
    sigma_to_timestep,
    timestep_to_sigma,
    tool_sample,
)
from tests.parity_schedulers import scheduler, scheduler_timesteps
from tests.parity_small import esrgan, taesd_decode, taesd_encode
from tests.parity_towers import clip_pixels, noise_embedding, prior, prior_sample, safety, vision
from tests.parity_training import train3
from tests.parity_tune import train_controlnet, train_embedding, train_lora

__all__ = [
    "CheckpointError",
    "a1111_and",
    "a1111_attention",
    "a1111_chunks",
    "a1111_guided_calls",
    "a1111_noise",
    "a1111_prompt_at",
    "a1111_schedule",
    "adapter_parameter_count",
    "align_your_steps",
    "animate_unet",
    "bert",
    "brownian",
    "clip_pixels",
    "comfyui_chunks",
    "comfyui_noise",
    "comfyui_percent_to_sigma",
    "comfyui_step_noise",
    "comfyui_weights",
    "control_active",
    "controlnet",
    "controlnet_hint",
    "controlnet_unet",
    "depth",
    "diffusers_noise",
    "diffusers_sample",
    "diffusers_sigmas",
    "diffusers_timesteps",
    "embedding_text",
    "esrgan",
    "guidance",
    "hypernetwork",
    "hypernetwork_unet",
    "ip_tokens",
    "ip_unet",
    "inpaint_hint",
    "ksampler",
    "lcm_embedding",
    "lcm_unet",
    "load",
    "lora_apply",
    "lora_merge",
    "merge",
    "motion_module",
    "noise_embedding",
    "pad_contexts",
    "parameter_counts",
    "pix2pix",
    "prepare_depth",
    "prior",
    "prior_sample",
    "read_watermark",
    "safety",
    "scheduler",
    "scheduler_timesteps",
    "sigma_schedule",
    "sigma_to_timestep",
    "t2i_features",
    "timestep_to_sigma",
    "t2i_unet",
    "taesd_decode",
    "taesd_encode",
    "tokens",
    "tool_sample",
    "torch_randn",
    "train_controlnet",
    "train_embedding",
    "train_lora",
    "vision",
    "watermark",
]

jax.config.update("jax_default_matmul_precision", "highest")

parameter_counts = convert.parameter_counts


def adapter_parameter_count(kind, shapes):
    """Returns the number of learned parameters of a file with tensors of these shapes."""
    return motion_count(shapes) if kind == "animatediff" else control_count(kind, shapes)


def merge(method, models, options):
    """Returns the tensors that a method makes of the models."""
    return (lora_merged if method.startswith(("lora_", "extract_")) else models_merged)(method, models, options)


def tokens(text: str) -> list[int]:
    """Returns the token ids of a text, without start, end and padding, not cut."""
    return Tokenizer().encode(text)


def read_watermark(image, num_bits):
    """Returns the bits read from uint8 RGB pixels, bool [num_bits]."""
    return to_bits(read_bits(image, num_bits))


def nhwc(x):
    return jnp.moveaxis(jnp.asarray(x, jnp.float32), 1, -1)


def nchw(x):
    return np.asarray(jnp.moveaxis(x, -1, 1))


@functools.lru_cache
def _compiled(config):
    return jax.jit(lambda p, *args: UNet(config).apply({"params": p}, *args))


class Model(Guided):
    """A model of the kit."""

    def __init__(self, config, params, bundle=None):
        self.config, self.bundle = config, bundle
        self.params = jax.tree.map(jnp.asarray, params)
        self.schedule = NoiseSchedule(config.schedule)

    @property
    def _unet(self):
        return _compiled(self.config.unet)

    def text(self, ids):
        return np.asarray(TextEncoder(self.config.text).apply({"params": self.params["text"]}, jnp.asarray(ids)))

    def context(self, tool, text, options):
        return context_of(self, tool, text, options)

    def encode(self, image):
        return nchw(AutoencoderKL(self.config.vae).apply({"params": self.params["vae"]}, nhwc(image), method="encode"))

    def decode(self, z):
        latent = nhwc(z) * self.config.vae.scale_factor
        return nchw(AutoencoderKL(self.config.vae).apply({"params": self.params["vae"]}, latent, method="decode"))

    def unet(self, x, t, context, y=None):
        y = None if y is None else jnp.asarray(y)
        return nchw(self._unet(self.params["unet"], nhwc(x), jnp.asarray(t), jnp.asarray(context), y))

    def alphas_cumprod(self):
        return self.schedule.alphas_cumprod

    def ddim_timesteps(self, num_steps):
        return np.sort(compvis_timesteps(self.schedule, num_steps))

    @functools.cached_property
    def _network(self):  # one object a model: what is compiled around it is kept
        return lambda x, t, context, label: self._unet(self.params["unet"], x, t, context, label)

    def sample(self, sampler, num_steps, **options):
        return sample_with(self._network, self.schedule, sampler, num_steps, **options)

    def tiled(self, part, axes, *inputs):
        return tiled(self.config, self.params, part, axes, *inputs)

    def img2img_compvis(self, num_steps, **options):
        return img2img_with(self._network, self.schedule, num_steps, **options)

    def train3(self, *, x0, noise, t, context, lr, grads, params):
        x0, noise = (jnp.moveaxis(jnp.asarray(a, jnp.float32), -3, -1) for a in (x0, noise))
        return train3(
            self.config, self.params, x0=x0, noise=noise, t=t, context=jnp.asarray(context), lr=lr, grads=grads,
            params_wanted=params,
        )  # fmt: skip


def load(spec, state_dict):
    """Returns the model of a kit specification and tensors named as in a released file."""
    bundle = convert.load_model(state_dict, config=config_from_spec(spec))
    return Model(bundle.config, bundle.params, bundle)
