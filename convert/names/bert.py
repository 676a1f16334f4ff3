"""ldm's names of LAION-400M's text encoder, from diffusers' (LDMBertModel), as rules.

Source: CompVis/stable-diffusion, ldm/modules/x_transformer.py: its even layers are attentions, the odd ones linear.
"""

import re

_FIXED = {
    "model.embed_tokens.weight": "token_emb.weight",
    "model.embed_positions.weight": "pos_emb.emb.weight",
    "model.layer_norm.weight": "norm.weight",
    "model.layer_norm.bias": "norm.bias",
}
_LAYER = {  # ours -> which of a block's two layers, and the name in it
    "self_attn_layer_norm": (0, "0"), "self_attn.q_proj": (0, "1.to_q"), "self_attn.k_proj": (0, "1.to_k"),
    "self_attn.v_proj": (0, "1.to_v"), "self_attn.out_proj": (0, "1.to_out"), "final_layer_norm": (1, "0"),
    "fc1": (1, "1.net.0.0"), "fc2": (1, "1.net.2"),
}  # fmt: skip

UNUSED = ("to_logits.weight", "to_logits.bias")  # of its training as a language model


def x_transformer_name(name: str) -> str:
    """Returns ldm's name for diffusers', both without what stands before a whole network's names."""
    if name in _FIXED:
        return _FIXED[name]
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    assert match is not None, name
    which, inner = _LAYER[match[2]]
    return f"attn_layers.layers.{2 * int(match[1]) + which}.{inner}.{match[3]}"
