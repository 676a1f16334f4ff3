"""IP-Adapter and InstructPix2Pix behind the interface of the parity kit."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from sdjax import convert
from sdjax.adapters.ip_adapter import ImagePromptArrays, ImagePrompts
from sdjax.adapters.patch import patched
from sdjax.nn import UNet
from sdjax.nn.ip_adapter import IPAdapter, by_path

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
