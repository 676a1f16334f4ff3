"""ControlNets and T2I-Adapters behind the interface of the parity kit."""

import math

import jax.numpy as jnp
import numpy as np

from sdjax import convert
from sdjax.convert.parts.controlnet import find_controlnet
from sdjax.convert.parts.ip_adapter import find_ip_adapter
from sdjax.convert.parts.t2i import find_t2i
from sdjax.nn.controlnet import ControlNet, HintEncoder
from sdjax.nn.t2i import T2IAdapter

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
