"""Known tensors beside a model's parameters, and other spellings of parameters' names."""

import re
from collections.abc import Mapping
from typing import Any

from sdjax.convert.names import bert, depth, naming
from sdjax.convert.names.naming import Layout

# Names that older or other tools spell otherwise, and how these tables spell them
_ALIASES: dict[str, tuple[tuple[re.Pattern[str], str], ...]] = {
    "native": (),
    "ldm": (
        # Old files have no `text_model.` there, nor has transformers from 5.0 on
        (re.compile(r"^cond_stage_model\.transformer\.(?=embeddings\.|encoder\.|final_layer_norm\.)"),
         "cond_stage_model.transformer.text_model."),
    ),
    "diffusers": (
        (re.compile(r"^text_encoder/(?=embeddings\.|encoder\.|final_layer_norm\.)"), "text_encoder/text_model."),
        (re.compile(r"^(vae/.*\.attentions\.\d+)\.query\."), r"\1.to_q."),
        (re.compile(r"^(vae/.*\.attentions\.\d+)\.key\."), r"\1.to_k."),
        (re.compile(r"^(vae/.*\.attentions\.\d+)\.value\."), r"\1.to_v."),
        (re.compile(r"^(vae/.*\.attentions\.\d+)\.proj_attn\."), r"\1.to_out.0."),
    ),
}  # fmt: skip


def canonical(name: str, layout: Layout) -> str:
    """Returns the name as the layout's table spells it."""
    for pattern, replacement in _ALIASES[layout]:
        name = pattern.sub(replacement, name)
    return name


# The noise schedule's tables, which follow from a few numbers, and what else is computed and not learned
BUFFERS = re.compile(
    r"((low_scale_model|noise_augmentor)\.)?(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod"
    r"|sqrt_one_minus_alphas_cumprod|log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod"
    r"|sqrt_recipm1_alphas_cumprod|posterior_variance|posterior_log_variance_clipped|posterior_mean_coef[12]"
    r"|lvlb_weights|logvar|data_mean|data_std)"
    r"|(cond_stage_model\.transformer\.|text_encoder/)(text_model\.)?embeddings\.position_ids"
    r"|image_encoder/vision_model\.embeddings\.position_ids"
    r"|cond_stage_model\.model\.attn_mask|model_ema\.(decay|num_updates)|v_pred|ztsnr"
)
# Beside a model, for other tasks or for training: kept, not used
_OTHERS: dict[str, re.Pattern[str]] = {
    "native": re.compile(r"$^"),
    "ldm": re.compile(
        BUFFERS.pattern + r"|cond_stage_model\.(model\.)?(logit_scale|text_projection(\.weight)?)"
        r"|first_stage_model\.(loss|model_ema)\..*|embedder\..*|low_scale_model\..*|noise_augmentor\..*"
    ),
    "diffusers": re.compile(BUFFERS.pattern + r"|(safety_checker|image_encoder|image_normalizer|prior\w*)/.*"),
}


def is_known(name: str, layout: Layout, parts: Mapping[str, Any]) -> bool:
    """Returns whether a tensor that is not a parameter of these parts (name: configuration) is known to occur."""
    text = parts.get("text")
    if layout == "ldm" and text is not None and naming.is_open_clip(text):
        last = f"cond_stage_model.model.transformer.resblocks.{text.layers}."  # unused by v2, and in its files
        if name.startswith(last):
            return True
    if layout == "ldm" and text is not None and text.kind == "bert" and name in _BERT_UNUSED:
        return True
    if "vision" in parts and name.startswith(_TOWERS[layout]):
        return BUFFERS.fullmatch(name) is not None
    if is_depth_network(name, layout):
        return "depth" not in parts or name in _DEPTH_UNUSED[layout]  # not in: of a kind that is none of ours
    return _OTHERS[layout].fullmatch(name) is not None


_TOWERS = {
    "native": "vision/",
    "ldm": f"{naming.LDM_PREFIXES['vision']}visual.",
    "diffusers": f"{naming.COMPONENTS['vision']}/",
}


def is_depth_network(name: str, layout: Layout) -> bool:
    """Returns whether a tensor belongs to a depth network, of whatever kind."""
    return name.startswith({"native": "depth/", "ldm": "depth_model.", "diffusers": "depth_estimator/"}[layout])


_BERT_UNUSED = frozenset(f"{naming.LDM_PREFIXES['text']}transformer.{name}" for name in bert.UNUSED)
_DEPTH_UNUSED: dict[str, frozenset[str]] = {
    "native": frozenset(),
    "ldm": frozenset(
        naming.LDM_PREFIXES["depth"] + name for name in (*map(depth.midas_name, depth.UNUSED), *depth.CLASSIFIER)
    ),
    "diffusers": frozenset(f"{naming.COMPONENTS['depth']}/{name}" for name in depth.UNUSED),
}
