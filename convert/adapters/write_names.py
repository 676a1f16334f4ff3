"""The layouts that adapters are written in: their tensors' names, and PEFT's description of ranks and alphas.

kohya           lora_unet_down_blocks_0_..._to_q.lora_down.weight   every kind of change
diffusers       unet.down_blocks.0.....to_q.lora_A.weight           LoRA and DoRA; alphas are in the header
diffusers-old   unet.down_blocks.0.....to_q.lora.down.weight        LoRA; alphas are multiplied into `up`
peft            base_model.model.down_blocks.0.....lora_A.weight    LoRA and DoRA; a folder with adapter_config.json
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdjax.convert.adapters.write_tensors import Module
from sdjax.convert.errors import CheckpointError, listed

LAYOUTS = ("kohya", "diffusers", "diffusers-old", "peft")
FOLDERS = {"unet": "unet", "text": "text_encoder"}  # diffusers' names of the networks
_OLDER = "text_model."  # what transformers before version 5 puts before the names of a text encoder's layers
HEADER = "lora_adapter_metadata"  # the key of a header under which diffusers keeps PEFT's description

_KOHYA = {"unet": "lora_unet_", "text": "lora_te_"}
_PEFT = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight", "dora_scale": "lora_magnitude_vector"}
_OLD = {
    "unet": {"lora_down.weight": "lora.down.weight", "lora_up.weight": "lora.up.weight"},
    "text": {
        "lora_down.weight": "lora_linear_layer.down.weight", "lora_up.weight": "lora_linear_layer.up.weight",
    },
}  # fmt: skip


def kohya_tensors(modules: Sequence[Module]) -> dict[str, np.ndarray]:
    """Returns the tensors of a file in kohya's names, with LyCORIS' suffixes for its kinds."""
    tensors: dict[str, np.ndarray] = {}
    for module in modules:
        name = _KOHYA[module.part] + module.name.replace(".", "_")
        tensors |= {f"{name}.{suffix}": array for suffix, array in module.tensors.items()}
        if module.alpha is not None:
            tensors[f"{name}.alpha"] = _alpha(module)
    return tensors


def _alpha(module: Module) -> np.ndarray:
    """Returns alpha in the type of the factors if that is exact, else in float32."""
    alpha = np.float32(module.alpha)
    own = alpha.astype(next(iter(module.tensors.values())).dtype)
    return np.asarray(own if np.float32(own) == alpha else alpha)


def diffusers_tensors(modules: Sequence[Module]) -> dict[str, np.ndarray]:
    """Returns the tensors of a file in the names that diffusers and PEFT write today. Raises CheckpointError."""
    return _peft_tensors(modules, "diffusers", lambda module: f"{FOLDERS[module.part]}.{module.name}")


def peft_tensors(modules: Sequence[Module]) -> dict[str, np.ndarray]:
    """Returns the tensors of PEFT's adapter_model.safetensors of one network. Raises CheckpointError.

    The names of a text encoder's layers are those of transformers from version 5 on.
    """
    return _peft_tensors(modules, "peft", lambda module: f"base_model.model.{module.name.removeprefix(_OLDER)}")


def _peft_tensors(modules: Sequence[Module], layout: str, name: Any) -> dict[str, np.ndarray]:
    _check_low_rank(modules, layout, dora=True)
    return {
        f"{name(module)}.{_PEFT[suffix]}": _magnitude(array) if suffix == "dora_scale" else array
        for module in modules
        for suffix, array in module.tensors.items()
    }


def _magnitude(scale: np.ndarray) -> np.ndarray:
    """Returns DoRA's magnitudes [d, 1] or [d, 1, 1, 1] in PEFT's shape, [d] or [1, d, 1, 1]."""
    return scale.reshape(-1) if scale.ndim == 2 else scale.reshape(1, -1, 1, 1)


def old_diffusers_tensors(modules: Sequence[Module]) -> dict[str, np.ndarray]:
    """Returns the tensors of a file in diffusers' names before PEFT. They have no alpha: it is in `up`.

    Scales that are powers of two change no digits; others are rounded once. Raises CheckpointError.
    """
    _check_low_rank(modules, "diffusers-old", dora=False)
    tensors = {}
    for module in modules:
        name, suffixes = f"{FOLDERS[module.part]}.{module.name}", _OLD[module.part]
        for suffix, array in module.tensors.items():
            if suffix == "lora_up.weight":
                array = (array.astype(np.float32) * np.float32(scale_of(module))).astype(array.dtype)
            tensors[f"{name}.{suffixes[suffix]}"] = array
    return tensors


def scale_of(module: Module) -> float:
    """Returns alpha divided by the rank, 1 for a module without alpha."""
    return 1.0 if module.alpha is None or module.rank is None else module.alpha / module.rank


def _check_low_rank(modules: Sequence[Module], layout: str, *, dora: bool) -> None:
    """Raises CheckpointError, naming the modules, unless a layout for LoRA alone can hold all of them."""
    problems = []
    for module in modules:
        scale = module.tensors.get("dora_scale")
        if not module.is_low_rank:
            problems.append(f"{module.part} {module.name} ({', '.join(module.tensors)})")
        elif scale is not None and not dora:
            problems.append(f"{module.part} {module.name} (DoRA)")
        elif scale is not None and scale.shape[0] == 1 < scale.size:
            problems.append(f"{module.part} {module.name} (DoRA with a magnitude for each input)")
    if problems:
        raise CheckpointError(
            f"{layout} files have no names for the changes of {listed(problems, ', ')}; write kohya files instead"
        )


def peft_config(modules: Sequence[Module]) -> dict[str, Any]:
    """Returns PEFT's description (adapter_config.json) of one network's LoRA or DoRA.

    The most frequent rank and alpha are the defaults. Layers with others are listed by their names. PEFT also finds
    names by their ends, so those without the older prefix are right for every version of transformers.
    """
    ranks = {module.name.removeprefix(_OLDER): module.rank for module in modules}
    alphas = {module.name.removeprefix(_OLDER): scale_of(module) * (module.rank or 1) for module in modules}
    rank, alpha = _most_frequent(ranks), _most_frequent(alphas)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {name: _whole(own) for name, own in alphas.items() if own != alpha},
        "target_modules": sorted(ranks),
        "use_rslora": False,
        "use_dora": any("dora_scale" in module.tensors for module in modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "base_model_name_or_path": None,
        "task_type": None,
    }


def diffusers_header(modules: Sequence[Module]) -> dict[str, str]:
    """Returns the header entry that gives diffusers the ranks and alphas of each network."""
    described = {
        f"{folder}.{key}": value
        for part, folder in FOLDERS.items()
        if (own := [module for module in modules if module.part == part])
        for key, value in peft_config(own).items()
    }
    return {HEADER: json.dumps(described, indent=2, sort_keys=True)}


def _most_frequent(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _whole(alpha: float) -> float | int:
    return int(alpha) if float(alpha).is_integer() else alpha
