"""The names of the files of networks that judge pictures, from transformers': OpenAI's of CLIP, and DINOv2's own.

Source: openai/CLIP, clip/model.py; facebookresearch/dinov2, dinov2/models/vision_transformer.py.
"""

import re

from sdjax.convert.names.naming import open_clip_name
from sdjax.convert.names.vision import PROJECTION, clip_name

TEXT_PROJECTION = "text_projection"
CLIP_BARE = (PROJECTION, TEXT_PROJECTION)  # matrices [width, projection]: x @ matrix


def openai_name(name: str) -> str:
    """Returns OpenAI's and OpenCLIP's name of a tensor of CLIP's two towers ("vision." and "text." before)."""
    tower, _, rest = name.partition(".")
    if tower == "vision":
        return clip_name(rest)
    if tower == "text":
        return TEXT_PROJECTION if rest.startswith("text_projection.") else open_clip_name(rest)
    return name


def clip_model_name(name: str) -> str:
    """Returns the name in transformers' CLIPModel of a tensor of CLIP's two towers."""
    return re.sub(r"^(vision|text)\.", "", name)


_DINOV2 = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.": "",
    "layernorm.": "norm.",
}
_DINOV2_LAYER = (
    (re.compile(r"attention\.attention\.(query|key|value)\."), "attn.qkv."),
    (re.compile(r"attention\.output\.dense\."), "attn.proj."),
    (re.compile(r"layer_scale(\d)\.lambda1"), r"ls\1.gamma"),
    (re.compile(r"mlp\.weights_in\."), "mlp.w12."),
    (re.compile(r"mlp\.weights_out\."), "mlp.w3."),
)


def dinov2_name(name: str) -> str:
    """Returns DINOv2's own name for transformers'. Query, key and value share one, `...attn.qkv.weight`."""
    if match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name):
        rest = match[2]
        for pattern, replacement in _DINOV2_LAYER:
            rest = pattern.sub(replacement, rest)
        return f"blocks.{match[1]}.{rest}"
    for ours, theirs in _DINOV2.items():
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    raise AssertionError(f"no rule for DINOv2's {name}")
