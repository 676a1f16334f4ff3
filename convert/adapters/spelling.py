"""The names of an adapter's tensors in every tool's spelling: which layer of a model, and which piece of its change."""

import dataclasses
import functools
import re
from collections.abc import Mapping

from sdjax.config import ModelConfig
from sdjax.convert.names import tables
from sdjax.convert.names.tables import Parameter

PARTS = ("unet", "text")  # the networks that adapters change


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A layer of the model: its network, its name in diffusers, and its parameters, "weight" and perhaps "bias"."""

    part: str
    name: str
    parameters: Mapping[str, Parameter]


# What stands before a layer's name, in the spellings with dots; the longest that fits is taken off
_PREFIXES = {
    "unet": ("base_model.model.unet.", "base_model.model.", "unet.", "model.diffusion_model.", "diffusion_model.", ""),
    "text": (
        "base_model.model.text_encoder.", "base_model.model.", "text_encoder.", "text_encoders.clip_l.transformer.",
        "text_encoders.clip_h.transformer.", "cond_stage_model.transformer.", "transformer.", "",
    ),
}  # fmt: skip
# The same in the spellings that have underscores for dots
_JOINED = {
    "unet": ("lora_unet_", "lycoris_unet_", "oft_unet_", "lora_transformer_unet_", "unet_"),
    "text": ("lora_te_", "lora_te1_", "lycoris_te_", "lycoris_te1_", "oft_te_", "lora_prior_te_", "text_encoder_"),
}

# The piece by the end of the name. A layer's name is what stands before
_PIECES: tuple[tuple[str, str], ...] = (
    (r"\.lora_down\.weight|\.lora\.down\.weight|\.lora_linear_layer\.down\.weight|_lora\.down\.weight", "down"),
    (r"\.lora_up\.weight|\.lora\.up\.weight|\.lora_linear_layer\.up\.weight|_lora\.up\.weight", "up"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.lora_A(\.\w+)?\.weight", "down"),
    (r"\.lora_B(\.\w+)?\.weight", "up"),
    (r"\.oft_R(\.\w+)?\.weight", "oft_vectors"),
    (r"\.lora_magnitude_vector(\.\w+)?(\.weight)?", "magnitudes"),
    (r"\.dora_scale", "dora_scale"),
    (r"\.alpha", "alpha"),
    (r"\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12]|lokr_w[12]_[ab]|lokr_t2)", ""),
    (r"\.(on_input|diff|diff_b|w_norm|b_norm|oft_blocks|rescale)", ""),
    (r"\.([ab][12])\.weight", ""),
    (r"\.weight", "factors"),
)
_PIECE = [(re.compile(f"({pattern})$"), name) for pattern, name in _PIECES]


def split_name(name: str) -> tuple[str, str] | None:
    """Returns the layer as the file spells it and the piece of its change; None for an unknown ending."""
    for pattern, piece in _PIECE:
        found = pattern.search(name)
        if found is not None:
            layer = name[: found.start()]
            return layer, piece or found[1].removesuffix(".weight").rpartition(".")[2]
    return None


@functools.lru_cache(maxsize=8)
def layers_by_name(config: ModelConfig) -> Mapping[str, Layer]:
    """Returns every layer of a model's UNet and text encoder by all names that files have for it."""
    index: dict[str, Layer] = {}
    for part in PARTS:
        for layer in _layers(part, config):
            older = layer.name.removeprefix("text_model.")  # which transformers has no more from version 5 on
            for name in {layer.name, _ldm_name(layer)} if part == "unet" else {layer.name, older}:
                for prefix in _PREFIXES[part]:
                    index.setdefault(prefix + name, layer)
                for prefix in _JOINED[part]:
                    index.setdefault(prefix + name.replace(".", "_"), layer)
    return index


def find_layer(layers: Mapping[str, Layer], name: str) -> Layer | None:
    """Returns the layer of a name as a file spells it (`split_name`), None if the model has none of that name."""
    name = name.removeprefix("module.").replace(".processor.", ".").removesuffix(".base_layer")
    for end, new in ("", ""), (".to_out", ".to_out.0"), *_OLD_TEXT.items():
        if name.endswith(end) and (name.removesuffix(end) + new) in layers:
            return layers[name.removesuffix(end) + new]
    return None


# Of diffusers' oldest files, which spell the text encoder's projections as the UNet's
_OLD_TEXT = {
    ".self_attn.to_q": ".self_attn.q_proj", ".self_attn.to_k": ".self_attn.k_proj",
    ".self_attn.to_v": ".self_attn.v_proj", ".self_attn.to_out": ".self_attn.out_proj",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class _Named(Layer):
    ldm: str = ""


def _ldm_name(layer: Layer) -> str:
    assert isinstance(layer, _Named)
    return layer.ldm


def _layers(part: str, config: ModelConfig) -> list[Layer]:
    description = getattr(config, part)
    ldm = {}
    if part == "unet":
        for entry in tables.part_entries(part, description, "ldm"):
            if len(entry.parameters) == 1:
                ldm[entry.parameters[0].path] = entry.name.removeprefix("model.diffusion_model.")
    found: dict[str, dict[str, Parameter]] = {}
    for entry in tables.part_entries(part, description, "diffusers"):
        name, _, leaf = entry.name.partition("/")[2].rpartition(".")
        found.setdefault(name, {})[leaf] = entry.parameters[0]
    return [
        _Named(part, name, leaves, ldm.get(leaves["weight"].path, name + ".weight").rpartition(".")[0])
        for name, leaves in found.items()
        if "weight" in leaves
    ]
