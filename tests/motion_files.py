"""Small motion modules for the tests, and their files in AnimateDiff's and diffusers' names."""

import functools

import numpy as np

from sdjax.convert import LoadedMotion
from sdjax.convert.names.naming import torch_name
from sdjax.convert.names.tables import parameters_of
from sdjax.nn.motion import MotionConfig, sinusoid
from sdjax.nn.networks import NETWORKS

import models

V1 = MotionConfig(channels=(32,), layers=1, positions=24)
V2 = MotionConfig(channels=(32,), layers=1, middle=True)
V3 = MotionConfig(channels=(32,), layers=1)


@functools.cache
def modules(config: MotionConfig = V3) -> LoadedMotion:
    """Returns motion modules for `models.TINY` with random weights, positions included."""
    params = models.fill_tree(NETWORKS["motion"].shapes(config))
    places = sinusoid(config.positions, 32)
    for _, block in sorted(params.items()):
        for module in block.values():
            module["transformer_blocks_0"] |= {"pos_encoder1": places, "pos_encoder2": places}
    return LoadedMotion(config, params, "tiny")


def tensors(config: MotionConfig = V3, *, names: str = "animatediff") -> dict[str, np.ndarray]:
    """Returns the tensors of a file. `names`: "animatediff", "module" (the same behind `module.`) or "diffusers"."""
    out = {}
    for parameter in parameters_of("motion", modules(config).params):
        leaf = modules(config).params
        for part in parameter.path.split("/")[1:]:
            leaf = leaf[part]
        name = torch_name(parameter.path.removeprefix("motion/"))
        if "pos_encoder" in name:
            if names == "diffusers":
                continue
            name = name[:-1].replace("pos_encoder", f"attn{name[-1]}.pos_encoder.pe")
        if names != "diffusers":
            name = _in_animatediff(name)
        out[("module." if names == "module" else "") + name] = leaf.T if parameter.kind == "matrix" else leaf
    return out


def lora(config: MotionConfig = V3, rank: int = 2) -> dict[str, np.ndarray]:
    """Returns the tensors of a motion LoRA for the queries of the first module."""
    block = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    layer = f"{block}.attention_blocks.0.processor.to_q_lora"
    draw = np.random.default_rng(0).standard_normal
    return {
        f"{layer}.down.weight": draw((rank, 32)).astype(np.float32),
        f"{layer}.up.weight": draw((32, rank)).astype(np.float32),
    }


def _in_animatediff(name: str) -> str:
    block, _, rest = name.partition(".motion_modules.")
    number, _, rest = rest.partition(".")
    for i in (1, 2):
        rest = rest.replace(f".attn{i}.", f".attention_blocks.{i - 1}.").replace(f".norm{i}.", f".norms.{i - 1}.")
    return f"{block}.motion_modules.{number}.temporal_transformer.{rest.replace('.norm3.', '.ff_norm.')}"
