"""Latent consistency models behind the interface of the parity kit."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from sdjax.convert.containers.lazy import LazyTensor, read_tree
from sdjax.convert.errors import CheckpointError
from sdjax.convert.names import tables
from sdjax.convert.names.matching import match, refuse
from sdjax.nn import UNet
from sdjax.nn.layers.embeddings import guidance_embedding

from tests.parity_models import config_from_spec


def lcm_embedding(guidance_scale, dim):
    """Returns the sinusoid of a guidance scale, [dim]."""
    return np.asarray(guidance_embedding(jnp.asarray([guidance_scale], jnp.float32), dim))[0]


def lcm_unet(spec, state_dict, x, t, context, guidance_scale):
    """Returns the prediction of a UNet in diffusers' names that takes the guidance scale; x is NCHW."""
    unet = dataclasses.replace(config_from_spec(spec).unet, guidance_dim=spec["time_cond_proj_dim"])
    names = {f"unet/{name}": array for name, array in state_dict.items()}
    tensors = {name: LazyTensor(a.shape, a.dtype, lambda a=a: a, name=name) for name, a in names.items()}
    found = match(tensors, tables.part_table("unet", unet, "diffusers"), ema=False)
    refuse(found, "a UNet", CheckpointError)
    params = read_tree(found.leaves(tensors, np.dtype("float32")), {})["unet"]
    scale = jnp.full(len(x), guidance_scale, jnp.float32)
    out = UNet(unet).apply({"params": params}, jnp.moveaxis(jnp.asarray(x), 1, -1), t, context, None, scale)
    return np.moveaxis(np.asarray(out), -1, 1)
