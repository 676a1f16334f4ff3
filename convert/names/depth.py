"""MiDaS's names of the depth network's tensors, from transformers', as rules.

Source: Stability-AI/stablediffusion, ldm/modules/midas/midas/{vit,dpt_depth,blocks}.py; timm's vision_transformer.
"""

import re

_FIXED = {
    "dpt.embeddings.cls_token": "pretrained.model.cls_token",
    "dpt.embeddings.position_embeddings": "pretrained.model.pos_embed",
    "dpt.embeddings.projection": "pretrained.model.patch_embed.proj",
    "dpt.embeddings.backbone.bit.embedder.convolution": "pretrained.model.patch_embed.backbone.stem.conv",
    "dpt.embeddings.backbone.bit.embedder.norm": "pretrained.model.patch_embed.backbone.stem.norm",
    "dpt.layernorm": "pretrained.model.norm",
    "head.head": "scratch.output_conv",
}
_BLOCK = {
    "attention.attention.query": "attn.qkv", "attention.attention.key": "attn.qkv",
    "attention.attention.value": "attn.qkv", "attention.output.dense": "attn.proj", "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2", "layernorm_before": "norm1", "layernorm_after": "norm2",
}  # fmt: skip
_FUSION = {"projection": "out_conv", "residual_layer1": "resConfUnit1", "residual_layer2": "resConfUnit2"}
_REASSEMBLED = {"projection": "3", "resize": "4"}

# transformers' names of what both files hold and nobody uses: the last norm, and the coarsest fusion's first unit
UNUSED = tuple(
    f"{module}.{leaf}"
    for module in ("dpt.layernorm", *(f"neck.fusion_stage.layers.0.residual_layer1.convolution{i}" for i in (1, 2)))
    for leaf in ("weight", "bias")
)
# MiDaS's names of its classifier of ImageNet's pictures, which transformers' files do not hold
CLASSIFIER = ("pretrained.model.head.weight", "pretrained.model.head.bias")


def midas_name(name: str) -> str:
    """Returns MiDaS's name for transformers', both without what stands before a whole network's names."""
    for ours, theirs in _FIXED.items():
        if name == ours or name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    if match := re.fullmatch(r"dpt\.embeddings\.backbone\.bit\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)", name):
        return "pretrained.model.patch_embed.backbone.stages.{}.blocks.{}.{}".format(*match.groups())
    if match := re.fullmatch(r"dpt\.encoder\.layer\.(\d+)\.(.+)\.(\w+)", name):
        return f"pretrained.model.blocks.{match[1]}.{_BLOCK[match[2]]}.{match[3]}"
    if match := re.fullmatch(r"neck\.reassemble_stage\.readout_projects\.(\d+)\.0\.(\w+)", name):
        return f"pretrained.act_postprocess{int(match[1]) + 1}.0.project.0.{match[2]}"
    if match := re.fullmatch(r"neck\.reassemble_stage\.layers\.(\d+)\.(\w+)\.(\w+)", name):
        return f"pretrained.act_postprocess{int(match[1]) + 1}.{_REASSEMBLED[match[2]]}.{match[3]}"
    if match := re.fullmatch(r"neck\.convs\.(\d+)\.(\w+)", name):
        return f"scratch.layer{int(match[1]) + 1}_rn.{match[2]}"
    if match := re.fullmatch(r"neck\.fusion_stage\.layers\.(\d+)\.(\w+)\.(?:convolution(\d)\.)?(\w+)", name):
        inner = f"conv{match[3]}." if match[3] else ""
        return f"scratch.refinenet{4 - int(match[1])}.{_FUSION[match[2]]}.{inner}{match[4]}"  # coarsest first, and last
    raise AssertionError(f"no rule for the depth network's {name}")
