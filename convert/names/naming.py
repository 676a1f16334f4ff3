"""The names that one parameter has in Flax's tree, in diffusers' folders and in ldm's single files.

Flax's paths mirror diffusers' and transformers' names by one structural rule, so that their table is empty; ldm's and
OpenCLIP's are rules, kept as data, that the description of the model fills with block numbers. Source of ldm's names:
Stability-AI/stablediffusion, ldm/modules/diffusionmodules/{openaimodel,model}.py; of OpenCLIP's:
mlfoundations/open_clip, src/open_clip/transformer.py.
"""

import re
from typing import Any, Literal

from sdjax.config import TextConfig, UNetConfig, VAEConfig
from sdjax.convert.names.bert import x_transformer_name
from sdjax.convert.names.depth import midas_name
from sdjax.convert.names.vision import clip_name
from sdjax.nn.parts import PARTS

Layout = Literal["native", "ldm", "diffusers"]
LAYOUTS: tuple[Layout, ...] = ("native", "ldm", "diffusers")
COMPONENTS = {name: part.folder for name, part in PARTS.items()}  # our parts -> diffusers' folders
LDM_PREFIXES = {name: part.prefix for name, part in PARTS.items()}
EMA_PREFIX = "model_ema."

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_NUMBERED = re.compile(
    r"^(down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|transformer_blocks|to_out|net|layers"
    r"|stages|layer|readout_projects|convs|head|features|model\d?|conv_block|main|conv|body|blocks|controlnet_down_blocks"
    r"|m|cv2|cv3|motion_modules)(_\d+)+$"
)


def diffusers_name(path: str) -> str:
    """Returns "unet/down_blocks.0.resnets.1.conv1.weight" for "unet/down_blocks_0/resnets_1/conv1/kernel"."""
    part, _, rest = path.partition("/")
    return f"{COMPONENTS[part]}/{torch_name(rest)}"


def torch_name(path: str) -> str:
    """Returns "down_blocks.0.resnets.1.conv1.weight" for "down_blocks_0/resnets_1/conv1/kernel"."""
    *modules, leaf = path.split("/")
    names = [re.sub(r"_(?=\d)", ".", module) if _NUMBERED.match(module) else module for module in modules]
    return ".".join([*names, _LEAVES.get(leaf, leaf)])


def ema_name(name: str) -> str:
    """Returns the name of a UNet tensor's moving average: LitEma strips every dot below `model.`.

    It cannot be read backwards, so names are always generated in this direction.
    """
    return EMA_PREFIX + name.removeprefix("model.").replace(".", "")


_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET_FIXED = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "class_embedding.linear_1": "label_emb.0.0", "class_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_VAE_FIXED = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
FUSED = ("q_proj", "k_proj", "v_proj", "query", "key", "value")  # the order of rows: OpenCLIP's in_proj, MiDaS's qkv


def ldm_name(path: str, description: Any) -> str:
    """Returns the name in a single file. `description` is that of the network which the path begins with.

    OpenCLIP's query, key and value share one name, `...attn.in_proj_weight`. So do those of the depth network's
    transformer, `...attn.qkv.weight`.
    """
    part, _, name = diffusers_name(path).partition("/")
    if part == "unet":
        return LDM_PREFIXES["unet"] + _unet_name(name, description)
    if part == "vae":
        return LDM_PREFIXES["vae"] + _vae_name(name, description)
    if part == COMPONENTS["depth"]:
        return LDM_PREFIXES["depth"] + midas_name(name)
    if part == COMPONENTS["vision"]:
        return LDM_PREFIXES["vision"] + clip_name(name)
    if part == COMPONENTS["noise_stats"]:
        return f"{LDM_PREFIXES['noise_stats']}data_{name}"
    if description.kind == "bert":
        return f"{LDM_PREFIXES['text']}transformer.{x_transformer_name(name)}"
    if is_open_clip(description):
        return f"{LDM_PREFIXES['text']}model.{open_clip_name(name)}"
    return f"{LDM_PREFIXES['text']}transformer.{name}"


def is_open_clip(text: TextConfig) -> bool:
    """Returns whether single files hold the text encoder under OpenCLIP's names: its towers have the exact GELU."""
    return text.kind == "clip" and text.activation == "gelu"


def _replace(name: str, table: dict[str, str]) -> str:
    """Returns the name with the first of the table's beginnings that it has replaced; unchanged if it has none."""
    for ours, theirs in table.items():
        if name == ours or name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    return name


def _unet_name(name: str, unet: UNetConfig) -> str:
    match = re.match(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(resnets|attentions|\w+samplers)\.(\d+)\.(.*)", name)
    if not match:
        return _replace(name, _UNET_FIXED)
    side, level, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    per_level = unet.num_res_blocks + 1
    position = {"resnets": 0, "attentions": 1}.get(kind)
    if side == "mid":
        place = f"middle_block.{2 * index if kind == 'resnets' else 1}"
    elif side == "down":  # block 0 is the first convolution; a level's blocks end with its downsampler
        place = f"input_blocks.{level * per_level + (per_level if position is None else index + 1)}.{position or 0}"
    else:  # an upsampler stands in the block before it, behind its attention where it has one
        after = 2 if unet.heads[-1 - level] else 1
        block = level * per_level + (per_level - 1 if position is None else index)
        place = f"output_blocks.{block}.{after if position is None else position}"
    if kind == "resnets":
        rest = _replace(rest, _RESNET)
    elif kind == "downsamplers":
        rest = rest.replace("conv", "op")
    return f"{place}.{rest}"


def _vae_name(name: str, vae: VAEConfig) -> str:
    levels = len(vae.channels)
    if vae.kind == "tiny" or name.startswith(("quant_conv", "post_quant_conv")):
        return name
    side, _, name = name.partition(".")
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
    if match:
        direction, block, kind, index, rest = match[1], int(match[2]), match[3], match[4], match[5]
        level = block if direction == "down" else levels - 1 - block  # the decoder's blocks are stored finest first
        if kind == "resnets":
            rest = rest.replace("conv_shortcut", "nin_shortcut")
            return f"{side}.{direction}.{level}.block.{index}.{rest}"
        return f"{side}.{direction}.{level}.{kind.removesuffix('rs')}.{rest}"
    fixed = _replace(name, _VAE_FIXED)
    if fixed.startswith("mid.attn_1."):
        fixed = f"mid.attn_1.{_replace(fixed.removeprefix('mid.attn_1.'), _VAE_ATTENTION)}"
    return f"{side}.{fixed}"


def open_clip_name(name: str) -> str:
    """Returns OpenAI's and OpenCLIP's name for transformers' of a text tower's tensor."""
    name = name.removeprefix("text_model.")
    match = re.match(r"encoder\.layers\.(\d+)\.(.*)", name)
    if not match:
        return _replace(name, _OPEN_CLIP)
    head, rest = f"transformer.resblocks.{match[1]}", match[2]
    if projection := re.match(r"self_attn\.[qkv]_proj\.(weight|bias)", rest):
        return f"{head}.attn.in_proj_{projection[1]}"
    return f"{head}.{_replace(rest, _OPEN_CLIP_LAYER)}"
