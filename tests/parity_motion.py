"""AnimateDiff behind the interface of the parity kit: frames are an axis of x, [b, c, f, h, w]."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import convert
from sdjax.adapters.motion import Motion, blocks_without_attention
from sdjax.adapters.patch import patched
from sdjax.convert.checkpoint import open_checkpoint
from sdjax.convert.parts.motion import canonical, is_position, motion_leaves
from sdjax.convert.parts.networks import network_params
from sdjax.nn import UNet
from sdjax.nn.motion import MotionConfig, MotionModule

from tests.parity_models import config_from_spec


def animate_unet(spec, state_dict, motion, x, t, context, loras=()):
    """Returns the UNet's output for clips with motion modules and motion LoRAs."""
    bundle = convert.load_model(state_dict, config=config_from_spec(spec))
    unet = bundle.config.unet
    modules = convert.load_motion(motion, unet)
    modules = convert.with_motion_loras(modules, [(convert.load_motion_lora(lora), scale) for lora, scale in loras])
    b, c, f, h, w = x.shape
    patch = Motion(modules.config, f, blocks_without_attention(unet))
    frames = jnp.asarray(x).transpose(2, 0, 3, 4, 1).reshape(f * b, h, w, c)
    each = [jnp.tile(jnp.asarray(a), (f, *[1] * (np.ndim(a) - 1))) for a in (np.broadcast_to(t, (b,)), context)]
    with patched([patch], [modules.params]):
        out = UNet(unet).apply({"params": bundle.params["unet"]}, frames, *each)
    return np.asarray(out.reshape(f, b, h, w, -1).transpose(1, 4, 0, 2, 3))


def motion_module(motion, name, x):
    """Returns the output of one module; `name` is that of the module."""
    names = {key: canonical(key).removeprefix(f"{name}.") for key in motion if not is_position(key)}
    config = MotionConfig(channels=(x.shape[1],))
    made = MotionModule(config).init(jax.random.key(0), jnp.zeros((1, 1, 1, 1, x.shape[1])))["params"]
    learned = {names[key]: motion[key] for key in names}
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), made)
    block = shapes["transformer_blocks_0"]
    places = {key: block.pop(key) for key in ("pos_encoder1", "pos_encoder2")}
    params = network_params(open_checkpoint(learned), shapes, "", "a motion module")
    params["transformer_blocks_0"] |= {key: made["transformer_blocks_0"][key] for key in places}
    out = MotionModule(config).apply({"params": params}, jnp.asarray(x).transpose(0, 2, 3, 4, 1))
    return np.asarray(out.transpose(0, 4, 1, 2, 3))


def motion_count(shapes):
    """Returns the number of learned parameters of a file with tensors of these shapes."""
    leaves = motion_leaves({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})
    return sum(math.prod(leaf.shape) for leaf in leaves.values())
