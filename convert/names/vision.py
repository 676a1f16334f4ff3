"""OpenAI's and OpenCLIP's names of an image tower's tensors, from transformers', as rules.

Source: openai/CLIP, clip/model.py (VisionTransformer); the names of mlfoundations/open_clip are the same
(src/open_clip/transformer.py).
"""

import re

PROJECTION = "visual.proj"  # a bare matrix, [width, projection]: x @ proj
_FIXED = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "visual_projection.weight": PROJECTION,
}
_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def clip_name(name: str) -> str:
    """Returns OpenAI's name for transformers'. Query, key and value share one, `...attn.in_proj_weight`."""
    if match := re.fullmatch(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(\w+)", name):
        head, module, leaf = match.groups()
        if module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            return f"visual.transformer.resblocks.{head}.attn.in_proj_{leaf}"
        return f"visual.transformer.resblocks.{head}.{_LAYER[module]}.{leaf}"
    for ours, theirs in _FIXED.items():
        if name == ours or name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    raise AssertionError(f"no rule for the image tower's {name}")
