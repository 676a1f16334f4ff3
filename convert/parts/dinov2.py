"""DINOv2 from its own files, and from transformers' folders and files."""

import math
import re
from collections.abc import Callable

from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.errors import shown
from sdjax.convert.names.judges import dinov2_name
from sdjax.convert.parts.networks import every_tensor, kind_given, prefix_of
from sdjax.nn.metrics.dinov2 import EPSILON, DINOv2Config
from sdjax.nn.networks import NETWORKS
from sdjax.typing import Params

HEAD = 64  # width of a head in all released sizes
MAX_LAYERS, MAX_REGISTERS = 64, 64
_PREFIXES = ("", "dinov2.", "dinov2_with_registers.")  # before transformers' names: of a model with a classifier
_UNUSED = r"(embeddings\.)?mask_token"  # of training
_SETTINGS = {"layer_norm_eps": EPSILON, "hidden_act": "gelu", "qkv_bias": True, "num_channels": 3}


def load_dinov2(source: CheckpointLike) -> tuple[DINOv2Config, Params]:
    """Returns a DINOv2 of any size, with or without registers, description and float32 parameters.

    The file is facebookresearch's dinov2_vitl14_pretrain.pth and so on, or transformers' folder or model.safetensors
    (facebook/dinov2-large and so on). The description comes from the tensors' shapes; heads are 64 wide. Raises
    CheckpointError, naming every missing, unknown and misshapen tensor.
    """
    checkpoint = open_checkpoint(source)
    own = "pos_embed" in checkpoint.shapes and "blocks.0.ls1.gamma" in checkpoint.shapes
    prefix = "" if own else prefix_of(checkpoint, *((one, "encoder.layer.0.layer_scale1.lambda1") for one in _PREFIXES))
    if prefix is None or (not own and f"{prefix}embeddings.position_embeddings" not in checkpoint.shapes):
        raise checkpoint.error(
            f"it was given for DINOv2{kind_given(checkpoint)}; expected dinov2_vitl14_pretrain.pth of "
            "facebookresearch/dinov2, or transformers' folder facebook/dinov2-large or its model.safetensors"
        )
    name: Callable[[str], str] = dinov2_name if own else lambda path: prefix + path
    config = _described(checkpoint, name, own, prefix)
    return config, every_tensor(
        checkpoint, NETWORKS["dinov2"].shapes(config), name, f"a DINOv2 of width {config.width}",
        prefix=prefix, unused=re.escape(prefix) + _UNUSED,
    )  # fmt: skip


def _described(checkpoint: Checkpoint, name: Callable[[str], str], own: bool, prefix: str) -> DINOv2Config:
    """Returns the description that the tensors' shapes give. Raises CheckpointError for impossible ones."""

    def shape(path: str, rank: int) -> tuple[int, ...]:
        found = checkpoint.shapes.get(name(path), ())
        if len(found) != rank or 0 in found:
            raise checkpoint.error(f"its tensor {name(path)} is missing or not of {rank} axes")
        return found

    block = "encoder.layer.0."
    width, _, patch, _ = shape("embeddings.patch_embeddings.projection.weight", 4)
    grid = math.isqrt(shape("embeddings.position_embeddings", 3)[1] - 1)
    gated = name(f"{block}mlp.weights_in.weight") in checkpoint.shapes
    hidden = shape(f"{block}mlp.{'weights_in' if gated else 'fc1'}.weight", 2)[0] // (2 if gated else 1)
    begin = r"blocks\.(\d{1,3})\." if own else rf"{re.escape(prefix)}encoder\.layer\.(\d{{1,3}})\."
    layers = 1 + max(int(found[1]) for found in map(re.compile(begin).match, checkpoint.shapes) if found)
    registers = name("embeddings.register_tokens")
    number = shape("embeddings.register_tokens", 3)[1] if registers in checkpoint.shapes else 0
    heads, settings = width // HEAD, checkpoint.configs.get("config.json", {})
    if width % HEAD or layers > MAX_LAYERS or number > MAX_REGISTERS or grid < 1 or not hidden:
        raise checkpoint.error(
            f"a DINOv2 has a width that is a multiple of {HEAD}, and at most {MAX_LAYERS} layers and {MAX_REGISTERS} "
            f"registers; these are {width}, {layers} and {number}"
        )
    for key, value in (_SETTINGS | {"num_attention_heads": heads}).items():
        if settings.get(key, value) != value:
            raise checkpoint.error(f"{key} is {value} in DINOv2; its config.json has {shown(settings[key])}")
    return DINOv2Config(width, layers, heads, patch, grid, hidden, gated, number)
