"""IP-Adapter and InstructPix2Pix behind the interface of the parity kit."""

import dataclasses

import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax import convert
from sdjax.adapters.ip_adapter import ImagePromptArrays, ImagePrompts
from sdjax.adapters.patch import patched
from sdjax.nn import UNet
from sdjax.nn.ip_adapter import IPAdapter, by_path
from sdjax.pipeline.model import Pipeline
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.tasks.computing import Computing
from sdjax.tasks.edit import edited, with_image_scale
from sdjax.tasks.make_batch import batch_of

from tests.parity_models import config_from_spec


def ip_tokens(spec, state_dict, net, embeds):
    """Returns the tokens [b, n, d] of encoded pictures: those that an identity in place of the first key gives."""
    loaded = convert.load_ip_adapter(net, config_from_spec(spec))
    config = dataclasses.replace(loaded.config, attentions=(loaded.config.context,))
    same = {"kernel": jnp.eye(loaded.config.context)}
    params = {**loaded.params, "attention_0": {"to_k_ip": same, "to_v_ip": same}}
    return np.asarray(IPAdapter(config).apply({"params": params}, jnp.asarray(embeds)[:, None])[0].keys)


def ip_unet(spec, state_dict, nets, x, t, context):
    """Returns the UNet's output with image prompts."""
    bundle = convert.load_model(state_dict, config=config_from_spec(spec))
    own = []
    for net in nets:
        loaded = convert.load_ip_adapter(net["net"], bundle.config)
        made = IPAdapter(loaded.config).apply({"params": loaded.params}, jnp.asarray(net["embeds"])[:, None])
        of_path = by_path(made, bundle.config.unet)
        own.append(
            ImagePromptArrays(
                {path: one.keys for path, one in of_path.items()}, {path: one.values for path, one in of_path.items()},
                {path: jnp.full(len(x), net["scale"], jnp.float32) for path in of_path},
                jnp.asarray([[jnp.inf, -jnp.inf]] * len(x)),
            )
        )  # fmt: skip
    with patched([ImagePrompts()], None, [own]):
        out = UNet(bundle.config.unet).apply(
            {"params": bundle.params["unet"]}, jnp.moveaxis(jnp.asarray(x), 1, -1), jnp.asarray(t), jnp.asarray(context)
        )
    return np.moveaxis(np.asarray(out), -1, 1)


def pix2pix(spec, state_dict, num_steps, x_T, image_latent, cond, uncond, scale, image_scale):
    """Returns the latent that InstructPix2Pix's loop makes of noise, by Euler's method."""
    bundle = convert.load_model(state_dict, config=config_from_spec(spec))
    pipe = Pipeline(bundle.config, bundle.params, Tokenizer())
    nhwc = lambda a: np.moveaxis(np.asarray(a), 1, -1)  # noqa: E731
    height, width = (side * bundle.config.vae.factor for side in x_T.shape[2:])
    request = sdjax.Request(
        prompt_embeds=cond[0], negative_prompt_embeds=uncond[0], latents=nhwc(x_T)[0], sampler="euler",
        spacing="linspace", num_steps=num_steps, guidance_scale=scale, height=height, width=width,
    )  # fmt: skip
    batch = batch_of(pipe, [with_image_scale(request, image_scale)], Computing())
    making = edited(batch, jnp.asarray(nhwc(image_latent)))
    while True:
        try:
            next(making)
        except StopIteration as done:
            return np.moveaxis(np.asarray(done.value), -1, 1)
