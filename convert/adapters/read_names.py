"""The names of low-rank factors in the files of other tools, as modules of the model and kinds of factors."""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from sdjax.config import ModelConfig
from sdjax.convert.names import naming, tables

# Endings of names, by the factor that they mean
_ENDINGS = {
    "down": ("lora_down.weight", "lora.down.weight", "lora_linear_layer.down.weight", "lora_A.weight",
             "lora_A.default.weight"),
    "up": ("lora_up.weight", "lora.up.weight", "lora_linear_layer.up.weight", "lora_B.weight",
           "lora_B.default.weight"),
    "mid": ("lora_mid.weight",),
    **{name: (name,) for name in ("alpha", "diff", "diff_b", "w_norm", "b_norm")},
}  # fmt: skip
_SUFFIXES = {ending: kind for kind, endings in _ENDINGS.items() for ending in endings}
_SUFFIX = re.compile(rf"(.+)\.({'|'.join(map(re.escape, _SUFFIXES))})")
_OLDEST = re.compile(r"(unet\..+\.attn\d)\.processor\.(to_[qkv]|to_out)_lora\.(down|up)\.weight")
_OLDEST_TEXT = re.compile(r"(text_encoder\..+\.self_attn)\.to_([qkv]|out)_lora\.(down|up)\.weight")


def canonical(name: str) -> tuple[str, str | None]:
    """Returns the module and the kind of factor that a name means; the kind is None if no tool has such a name."""
    if found := _OLDEST.fullmatch(name):
        return f"{found[1]}.{found[2]}{'.0' if found[2] == 'to_out' else ''}", found[3]
    if found := _OLDEST_TEXT.fullmatch(name):
        return f"{found[1]}.{found[2]}_proj", found[3]
    found = _SUFFIX.fullmatch(name)
    return (found[1], _SUFFIXES[found[2]]) if found else (name, None)


@functools.lru_cache(maxsize=8)
def module_paths(config: ModelConfig) -> Mapping[str, str]:
    """Returns the paths of the model's modules, "unet/conv_in", by all names that files have for them."""
    out: dict[str, str] = {}
    for part in ("unet", "text"):
        description = getattr(config, part)
        for parameter in tables.part_parameters(part, description):
            path = parameter.path.rpartition("/")[0]
            name = naming.diffusers_name(parameter.path).partition("/")[2].rpartition(".")[0]
            flat = name.replace(".", "_")
            spelled = [f"base_model.model.{name}"]
            if part == "text":
                spelled += [f"{head}{flat}" for head in ("lora_te_", "lora_te1_")]
                spelled += [f"text_encoder.{name}", f"base_model.model.{name.removeprefix('text_model.')}"]
                spelled += [f"text_encoders.{clip}.transformer.{name}" for clip in ("clip_l", "clip_h")]
            else:
                ldm = naming.ldm_name(parameter.path, description).removeprefix(naming.LDM_PREFIXES["unet"])
                ldm = ldm.rpartition(".")[0]
                spelled += [f"lora_unet_{flat}", f"lora_unet_{ldm.replace('.', '_')}", f"unet.{name}"]
                spelled += [f"diffusion_model.{ldm}", ldm]
            out |= dict.fromkeys(spelled, path)
    return out


def peft_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Returns the scale of a module by PEFT's description; 1 without one.

    The keys of `alpha_pattern` are whole names or their ends after a dot. Patterns are compared as text, never run.
    """
    alpha = config.get("lora_alpha")
    patterns = config.get("alpha_pattern")
    if isinstance(patterns, Mapping):
        for key, value in patterns.items():
            if f".{module}".endswith(f".{key.removeprefix('^')}"):
                alpha = value
                break
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        return 1.0
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") is True else rank)
