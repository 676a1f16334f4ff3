"""CLIP's two towers, or the image tower alone, from the files of OpenAI, OpenCLIP and transformers."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from sdjax.config import TextConfig, VisionConfig
from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.errors import shown
from sdjax.convert.names.judges import CLIP_BARE, clip_model_name, openai_name
from sdjax.convert.parts.networks import every_tensor, kind_given
from sdjax.nn.metrics.clip_pair import ClipConfig
from sdjax.nn.networks import NETWORKS
from sdjax.typing import Params

_OPENAI, _TRANSFORMERS = "visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"
# Numbers that OpenAI keeps beside, the causal mask, and positions' numbers
_UNUSED = r"input_resolution|context_length|vocab_size|attn_mask|(text|vision)_model\.embeddings\.position_ids"
_VISION = ("visual.", "vision_model.", "visual_projection.")


def load_clip_pair(source: CheckpointLike, config: ClipConfig, what: str = "CLIP's two towers") -> Params:
    """Returns float32 parameters {"vision", "text", "logit_scale"} of CLIP's two towers of this description.

    The file is OpenAI's (ViT-L-14.pt, a TorchScript program, of which the tensors are read), OpenCLIP's
    (open_clip_pytorch_model.bin or .safetensors), or transformers' folder or model.safetensors of a CLIPModel. No file
    of tensors says which GELU a tower has, but a folder's config.json does. Raises CheckpointError, naming every
    missing, unknown and misshapen tensor of what should be `what`.
    """
    return _towers(open_checkpoint(source), NETWORKS["clip_pair"].shapes(config), config.vision, config.text, what)


def load_clip_vision(source: CheckpointLike, config: VisionConfig, what: str = "CLIP's image tower") -> Params:
    """Returns float32 parameters of CLIP's image tower of this description.

    The file is any that `load_clip_pair` takes, or one without the text tower. Raises CheckpointError as it does.
    """
    return _towers(open_checkpoint(source), {"vision": NETWORKS["vision"].shapes(config)}, config, None, what)["vision"]


def _towers(
    checkpoint: Checkpoint, shapes: Params, vision: VisionConfig, text: TextConfig | None, what: str
) -> Params:  # fmt: skip
    openai = _OPENAI in checkpoint.shapes
    if not openai and _TRANSFORMERS not in checkpoint.shapes:
        raise checkpoint.error(
            f"it was given for {what}{kind_given(checkpoint)}; expected OpenAI's or OpenCLIP's file, or transformers' "
            "folder of a CLIPModel or its model.safetensors"
        )
    _check_sizes(checkpoint, _OPENAI_SIZES if openai else _TRANSFORMERS_SIZES, vision, text, what)
    _check_settings(checkpoint, vision, text, what)
    return every_tensor(
        checkpoint, shapes, openai_name if openai else clip_model_name, what, bare=CLIP_BARE if openai else (),
        prefix=_VISION if text is None else "", unused=_UNUSED,
    )  # fmt: skip


class _Sizes(NamedTuple):
    """What shows the sizes of a layout's towers: patches, positions, tokens, and the numbers of blocks."""

    patches: str
    positions: str
    tokens: str
    vision_block: str
    text_block: str


_OPENAI_SIZES = _Sizes(
    _OPENAI, "visual.positional_embedding", "token_embedding.weight",
    r"visual\.transformer\.resblocks\.(\d+)\.ln_1\.weight", r"transformer\.resblocks\.(\d+)\.ln_1\.weight",
)  # fmt: skip
_TRANSFORMERS_SIZES = _Sizes(
    _TRANSFORMERS, "vision_model.embeddings.position_embedding.weight", "text_model.embeddings.token_embedding.weight",
    r"vision_model\.encoder\.layers\.(\d+)\.layer_norm1\.weight",
    r"text_model\.encoder\.layers\.(\d+)\.layer_norm1\.weight",
)  # fmt: skip


def _check_sizes(
    checkpoint: Checkpoint, names: _Sizes, vision: VisionConfig, text: TextConfig | None, what: str
) -> None:
    """Raises CheckpointError if the file holds another CLIP, saying which in place of naming hundreds of tensors."""

    def axis(name: str, number: int) -> int:
        shape = checkpoint.shapes.get(name, ())
        return shape[number] if -len(shape) <= number < len(shape) else 0

    def blocks(pattern: str) -> int:
        return sum(re.fullmatch(pattern, name) is not None for name in checkpoint.shapes)

    patch = axis(names.patches, -1)
    side = patch * math.isqrt(max(axis(names.positions, 0) - 1, 0))
    found: list[tuple[int, ...]] = [(axis(names.patches, 0), blocks(names.vision_block), patch, side)]
    wanted: list[tuple[int, ...]] = [(vision.width, vision.layers, vision.patch_size, vision.image_size)]
    if text is not None:
        found.append((axis(names.tokens, 1), blocks(names.text_block)))
        wanted.append((text.width, text.layers))
    if found != wanted:
        raise checkpoint.error(f"it is another CLIP: {_in_words(found)}; {what} has {_in_words(wanted)}")


def _in_words(towers: list[tuple[int, ...]]) -> str:
    width, layers, patch, side = towers[0]
    words = f"an image tower of width {width} with {layers} blocks, patches of {patch} and pictures of {side} pixels"
    if len(towers) == 1:
        return words
    return f"{words}, and a text tower of width {towers[1][0]} with {towers[1][1]} blocks"


def _check_settings(checkpoint: Checkpoint, vision: VisionConfig, text: TextConfig | None, what: str) -> None:
    """Raises CheckpointError where a folder's config.json contradicts what shapes do not show."""
    settings = checkpoint.configs.get("config.json", {})
    for tower, own in (("vision_config", vision), ("text_config", text)):
        if own is None:
            continue
        # A folder of an image tower alone describes it at the top
        inner = settings.get(tower, settings if tower == "vision_config" else {})
        inner = inner if isinstance(inner, Mapping) else {}
        wanted = {"hidden_act": own.activation, "num_attention_heads": own.heads, "layer_norm_eps": 1e-5}
        for key, value in wanted.items():
            if inner.get(key, value) != value:
                found = shown(inner[key])
                raise checkpoint.error(f"{key} is {value} in {what}; {tower} of its config.json has {found}")
