"""CLIP's two towers from the files of OpenAI, OpenCLIP and transformers."""

from collections.abc import Mapping

from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.errors import shown
from sdjax.convert.names.judges import CLIP_BARE, clip_model_name, openai_name
from sdjax.convert.parts.networks import every_tensor, kind_given
from sdjax.nn.metrics.clip_pair import ClipConfig
from sdjax.nn.parts import NETWORKS
from sdjax.typing import Params

_OPENAI, _TRANSFORMERS = "visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"
# Numbers that OpenAI keeps beside, the causal mask, and positions' numbers
_UNUSED = r"input_resolution|context_length|vocab_size|attn_mask|(text|vision)_model\.embeddings\.position_ids"


def load_clip_pair(source: CheckpointLike, config: ClipConfig, what: str = "CLIP's two towers") -> Params:
    """Returns float32 parameters {"vision", "text", "logit_scale"} of CLIP's two towers of this description.

    The file is OpenAI's (ViT-L-14.pt, a TorchScript program, of which the tensors are read), OpenCLIP's
    (open_clip_pytorch_model.bin or .safetensors), or transformers' folder or model.safetensors of a CLIPModel. No file
    of tensors says which GELU a tower has, but a folder's config.json does. Raises CheckpointError, naming every
    missing, unknown and misshapen tensor of what should be `what`.
    """
    checkpoint = open_checkpoint(source)
    openai = _OPENAI in checkpoint.shapes
    if not openai and _TRANSFORMERS not in checkpoint.shapes:
        raise checkpoint.error(
            f"it was given for {what}{kind_given(checkpoint)}; expected OpenAI's or OpenCLIP's file, or transformers' "
            "folder of a CLIPModel or its model.safetensors"
        )
    _check_settings(checkpoint, config, what)
    shapes = NETWORKS["clip_pair"].shapes(config)
    if openai:
        return every_tensor(checkpoint, shapes, openai_name, what, bare=CLIP_BARE, unused=_UNUSED)
    return every_tensor(checkpoint, shapes, clip_model_name, what, unused=_UNUSED)


def _check_settings(checkpoint: Checkpoint, config: ClipConfig, what: str) -> None:
    """Raises CheckpointError where a folder's config.json contradicts what shapes do not show."""
    settings = checkpoint.configs.get("config.json", {})
    for tower, own in (("vision_config", config.vision), ("text_config", config.text)):
        inner = settings.get(tower)
        inner = inner if isinstance(inner, Mapping) else {}
        wanted = {"hidden_act": own.activation, "num_attention_heads": own.heads, "layer_norm_eps": 1e-5}
        for key, value in wanted.items():
            if inner.get(key, value) != value:
                found = shown(inner[key])
                raise checkpoint.error(f"{key} is {value} in {what}; {tower} of its config.json has {found}")
