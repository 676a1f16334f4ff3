"""Names of ControlNets and T2I-Adapters in their files, as tables.

Source of the names: lllyasviel/ControlNet, cldm/cldm.py; huggingface/diffusers, models/controlnets/controlnet.py and
models/adapter.py; TencentARC/T2I-Adapter, ldm/modules/encoders/adapter.py.
"""

import re
from collections.abc import Callable

from sdjax.convert.names import axes, naming
from sdjax.convert.names.naming import Layout
from sdjax.convert.names.tables import PROJECTIONS, Entry, Parameter, Table, parameters_of
from sdjax.nn.controlnet import ControlNetConfig
from sdjax.nn.t2i import T2IConfig

# Tensors that say what a file is, and hold no parameters
MARKS = ("lora_controlnet", "difference")
POOLED = "global_pool_conditions"  # diffusers' word, in a config.json or a file's metadata
_UNET = naming.LDM_PREFIXES["unet"]


def controlnet_table(config: ControlNetConfig, layout: Layout, prefix: str) -> Table:
    """Returns the table of a ControlNet's file, "ldm" or "diffusers". `prefix` stands before the names in the file."""
    spelled: Callable[[str], str] = naming.torch_name if layout == "diffusers" else _ldm_spelling(config)
    from sdjax.nn.networks import NETWORKS  # all networks: pictures without a control do not need them

    entries = []
    for p in parameters_of("controlnet", NETWORKS["controlnet"].shapes(config)):
        pointwise = not config.unet.linear_projection and p.path.endswith(PROJECTIONS)
        entries.append(_entry(prefix + spelled(p.path.partition("/")[2]), p, pointwise))
    return Table(tuple(entries), ("controlnet",), beside=lambda name: name.removeprefix(prefix) in MARKS)


def _entry(name: str, parameter: Parameter, pointwise: bool = False) -> Entry:
    shape = axes.stored_shape(parameter.kind, parameter.shape, pointwise=pointwise)
    return Entry(name, shape, (parameter,), pointwise)


def _ldm_spelling(config: ControlNetConfig) -> Callable[[str], str]:
    last = 4 * (len(config.hint_widths) - 1) + 2
    hint = {"conv_in": "0", "conv_out": str(last)}

    def spell(path: str) -> str:
        name = naming.torch_name(path)
        first, _, rest = name.partition(".")
        if first == "controlnet_cond_embedding":
            layer, _, leaf = rest.rpartition(".")
            number = hint.get(layer) or str(2 * int(layer.rpartition(".")[2]) + 2)
            return f"input_hint_block.{number}.{leaf}"
        if first == "controlnet_down_blocks":
            return "zero_convs.{}.0.{}".format(*rest.split("."))
        if first == "controlnet_mid_block":
            return f"middle_block_out.0.{rest}"
        return naming.ldm_name(f"unet/{path}", config.unet).removeprefix(_UNET)

    return spell


def t2i_table(config: T2IConfig, layout: Layout, prefix: str) -> Table:
    """Returns the table of a T2I-Adapter's file: "ldm" is the original layout, "diffusers" the other."""
    from sdjax.nn.networks import NETWORKS

    entries = []
    for p in parameters_of("t2i", NETWORKS["t2i"].shapes(config)):
        name = naming.torch_name(p.path.partition("/")[2])
        entries.append(_entry(prefix + (name if layout == "diffusers" else _original_name(name, config)), p))
    return Table(tuple(entries), ("t2i",))


def _original_name(name: str, config: T2IConfig) -> str:
    found = re.match(r"body\.(\d+)\.(?:resnets\.(\d+)\.)?(.*)", name)
    if found is None:
        return name
    level, block, rest = int(found[1]), found[2], found[3]
    if config.light:
        return f"body.{level}.{rest}" if block is None else f"body.{level}.body.{block}.{rest}"
    return f"body.{level * config.num_res_blocks + int(block or 0)}.{rest}"
