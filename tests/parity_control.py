"""ControlNets and T2I-Adapters behind the interface of the parity kit."""

import math

import jax.numpy as jnp
import numpy as np

from sdjax import convert
from sdjax.adapters.control import Controls, Features, ImageControl, last_layers, scales
from sdjax.adapters.patch import patched
from sdjax.convert.parts.controlnet import find_controlnet
from sdjax.convert.parts.ip_adapter import find_ip_adapter
from sdjax.convert.parts.t2i import find_t2i
from sdjax.nn import UNet
from sdjax.nn.controlnet import ControlNet, HintEncoder
from sdjax.nn.t2i import T2IAdapter
from sdjax.pictures import hints
from sdjax.tasks.control_arrays import steps_of

from tests.parity_models import config_from_spec


def nhwc(x):
    return jnp.moveaxis(jnp.asarray(x, jnp.float32), 1, -1)


def nchw(x):
    return np.asarray(jnp.moveaxis(x, -1, 1))


def _loaded(spec, state_dict, net, pooled=False):
    config = config_from_spec(spec)
    unet = convert.load_model(state_dict, config=config).params["unet"]
    return convert.load_controlnet(net, config, unet, pooled=pooled), config, unet


def controlnet(spec, state_dict, net, x, t, context, hint, global_average_pooling=False):
    """Returns the residuals of a ControlNet, the middle one last."""
    loaded, _, _ = _loaded(spec, state_dict, net, global_average_pooling)
    out = ControlNet(loaded.config).apply(
        {"params": loaded.params}, nhwc(x), jnp.asarray(t), jnp.asarray(context), nhwc(hint)
    )
    return [nchw(one) for one in (*out.skips, out.middle)]


def controlnet_hint(spec, state_dict, net, hint):
    """Returns the hint encoder's output."""
    loaded, _, _ = _loaded(spec, state_dict, net)
    encoder = HintEncoder(loaded.config.unet.channels[0], loaded.config.hint_widths)
    return nchw(encoder.apply({"params": loaded.params["controlnet_cond_embedding"]}, nhwc(hint)))


def t2i_features(kind, net, hint):
    """Returns the features of a T2I-Adapter, level by level."""
    loaded = convert.load_t2i(net)
    assert loaded.config.light == (kind == "light")
    return [nchw(one) for one in T2IAdapter(loaded.config).apply({"params": loaded.params}, nhwc(hint))]


def adapter_parameter_count(kind, shapes):
    """Returns the number of parameters of a whole file with tensors of these shapes."""
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    found = {"controlnet": find_controlnet, "t2i": find_t2i, "ip_adapter": find_ip_adapter}[kind](tensors)
    leaves = found.leaves(None, None) if kind == "controlnet" else found.leaves(None)
    return sum(math.prod(leaf.shape) for leaf in leaves.values())


def controlnet_unet(spec, state_dict, nets, x, t, context, guess=None):
    """Returns the UNet's output with ControlNets. With a guess mode the batch is [uncond; cond]."""
    mode = {None: "balanced", "cldm": "control", "diffusers": "guess"}[guess]
    configs, shared, own = [], [], []
    for net in nets:
        loaded, config, unet = _loaded(spec, state_dict, net["net"], net.get("global_average_pooling", False))
        weights = np.tile(np.float32(net["scale"]) * scales(mode, loaded.config.outputs), (len(x), 1))
        if guess is not None:
            weights[: len(x) // 2] = 0
        hint = jnp.broadcast_to(nhwc(net["hint"]), (len(x), *nhwc(net["hint"]).shape[1:]))
        configs.append(loaded.config)
        shared.append(loaded.params)
        own.append(_image_control(hint, weights, x))
    return _patched_unet(config, unet, Controls(tuple(configs)), shared, own, x, t, context)


def t2i_unet(spec, state_dict, features, x, t, context):
    """Returns the UNet's output with features added."""
    config = config_from_spec(spec)
    unet = convert.load_model(state_dict, config=config).params["unet"]
    patch = Features(last_layers(config.unet))
    return _patched_unet(config, unet, patch, None, [nhwc(one) for one in features], x, t, context)


def _image_control(hint, weights, x):
    b, _, h, w = x.shape
    always = np.tile(np.float32([np.inf, -np.inf]), (b, 1))
    return ImageControl(hint, jnp.asarray(weights), jnp.ones((b, h, w, 1)), jnp.asarray(always))


def _patched_unet(config, unet, patch, shared, own, x, t, context):
    with patched([patch], [shared], [own]):
        out = UNet(config.unet).apply({"params": unet}, nhwc(x), jnp.asarray(t), jnp.asarray(context))
    return nchw(out)


def inpaint_hint(image, mask):
    """Returns the hint of an inpainting ControlNet, [1, 3, h, w]."""
    return nchw(hints.inpaint_hint(image, mask)[None])


def control_active(start, end, num_steps):
    """Returns 1 or 0 for every step."""
    first, stop = steps_of((start, end), num_steps)
    return [int(first <= i < stop) for i in range(num_steps)]
