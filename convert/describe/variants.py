"""Finds UNets that are smaller than the released ones, or take a guidance scale, from a single file's tensors.

Examples are BK-SDM and tiny-sd (one residual block a level, perhaps without the middle block and the last level),
SDXS-512 (without attention in the first level), and latent consistency models.
"""

import dataclasses
import re
from collections.abc import Mapping

from sdjax.config import ConfigError, UNetConfig
from sdjax.convert.names import naming, tables

Shapes = Mapping[str, tuple[int, ...]]
_PREFIX = naming.LDM_PREFIXES["unet"]
_BLOCK = re.compile(re.escape(_PREFIX) + r"input_blocks\.(\d{1,2})\.(.*)")
_GUIDANCE = "time_embedding.cond_proj.weight", f"{_PREFIX}time_embed.cond_proj.weight"


def fitted(released: UNetConfig, shapes: Shapes) -> UNetConfig:
    """Returns the UNet of a single file, which is the released one or a smaller variant of it.

    It is a variant only if more of its tensors' names are in the file, so a damaged file of a released model is still
    taken for that model.
    """
    projection = next((shapes[name] for name in (_GUIDANCE[1], f"unet/{_GUIDANCE[0]}") if name in shapes), ())
    if len(projection) == 2 and projection[1] >= 4:
        released = dataclasses.replace(released, guidance_dim=projection[1])
    variant = _variant(released, shapes)
    if variant is None or _mismatches(variant, shapes) >= _mismatches(released, shapes):
        return released
    return variant


def _mismatches(unet: UNetConfig, shapes: Shapes) -> int:
    """Returns how many tensors of the file's UNet are missing or unknown, by their names."""
    wanted = {entry.name for entry in tables.part_entries("unet", unet, "ldm")}
    there = {name for name in shapes if name.startswith(_PREFIX)}
    return len(wanted ^ there)


def _variant(released: UNetConfig, shapes: Shapes) -> UNetConfig | None:
    """Returns the UNet that the numbering of the input blocks shows; None if it shows none."""
    blocks: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if match := _BLOCK.fullmatch(name):
            blocks.setdefault(int(match[1]), {})[match[2]] = shape
    downsamplers = sorted(number for number, names in blocks.items() if "0.op.weight" in names)
    if not downsamplers:
        return None
    each = downsamplers[0]
    levels = len(downsamplers) + 1
    if downsamplers != [each * (i + 1) for i in range(levels - 1)] or each < 2 or levels > len(released.channels):
        return None
    first = [blocks.get(each * level + 1, {}) for level in range(levels)]
    widths = [names.get("0.out_layers.3.weight", ()) for names in first]
    attends = [any(name.startswith("1.transformer_blocks.") for name in names) for names in first]
    if any(len(width) != 4 for width in widths):
        return None
    channels = tuple(width[0] for width in widths)
    try:
        return dataclasses.replace(
            released,
            channels=channels,
            num_res_blocks=each - 1,
            heads=tuple(heads if has else 0 for heads, has in zip(_heads(released, channels), attends)),
            mid_heads=_heads(released, channels)[-1],
            transformer_depth=released.transformer_depth[:levels],
            self_attention=released.self_attention[:levels],
            mid_block=any(name.startswith(f"{_PREFIX}middle_block.") for name in shapes),
        )
    except ConfigError:
        return None


def _heads(released: UNetConfig, channels: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the number of heads of each level: fixed as in v1, or of fixed size as in v2."""
    fixed = released.heads[0] == released.mid_heads
    size = released.channels[0] // released.heads[0]
    return tuple(released.mid_heads if fixed else width // size for width in channels)
