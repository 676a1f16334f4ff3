"""Seamless tiling behind the parity kit's interface."""

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.network import UNetNetwork
from sdjax.pipeline.programs import VAEProgram


def tiled(config, params, part, axes, *inputs):
    """Returns the output of a part of the model whose convolutions wrap around along `axes`, NCHW."""
    if part == "unet":
        x, t, context = (jnp.asarray(a) for a in inputs)
        network = UNetNetwork(config.unet, "float32", seamless=axes)
        out, _ = jax.jit(network)(params["unet"], jnp.moveaxis(x, 1, -1), t, Conditioning(context), ())
    else:
        vae, x = VAEProgram(config.vae, "float32", axes), jnp.moveaxis(jnp.asarray(inputs[0]), 1, -1)
        if part == "decoded":  # the kit's latents are unscaled
            out = vae.run(params["vae"], x * config.vae.scale_factor, "decode")
        else:
            out = vae.run(params["vae"], x, "encode")
    return np.asarray(jnp.moveaxis(out, -1, 1))
