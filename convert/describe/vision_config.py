"""An image tower's description from transformers' JSON files, and those files from a description.

Source of the fields: huggingface/transformers, models/clip/configuration_clip.py and image_processing_clip.py.
"""

from collections.abc import Mapping
from typing import Any

from sdjax.config import ConfigError, VisionConfig
from sdjax.convert.errors import shown

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def vision_from_transformers(config: Mapping[str, Any], what: str = "image_encoder/config.json") -> VisionConfig:
    """Returns the tower that a config.json describes, CLIPVisionModelWithProjection's or a whole CLIPModel's.

    Raises ConfigError, naming file and field, for what CLIP's towers do not have.
    """
    outer = config
    config = config.get("vision_config", config)
    if not isinstance(config, Mapping):
        raise ConfigError(f"{what}: vision_config is a mapping of names to values; got {shown(config)}")
    width = config.get("hidden_size", 768)
    for name, wanted, default in (
        ("layer_norm_eps", 1e-5, 1e-5), ("num_channels", 3, 3),
    ):  # fmt: skip
        if config.get(name, default) != wanted:
            raise ConfigError(f"{what}: {name} is {wanted} in CLIP's image towers; got {shown(config.get(name))}")
    return VisionConfig(
        image_size=config.get("image_size", 224),
        patch_size=config.get("patch_size", 32),
        width=width,
        layers=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 12),
        mlp_width=mlp_width(config, width, 3072),
        # A whole CLIPModel's file says beside the tower's description what both towers project to
        projection=config.get("projection_dim", 512) if outer is config else outer.get("projection_dim", 512),
        activation=config.get("hidden_act", "quick_gelu"),
    )


def mlp_width(config: Mapping[str, Any], width: Any, default: int) -> Any:
    """Returns the width of a CLIP tower's MLPs where it is another than four times the tower's, else None."""
    size = config.get("intermediate_size", default)
    return None if isinstance(width, int) and size == 4 * width else size


def transformers_file(vision: VisionConfig) -> dict[str, Any]:
    """Returns the config.json of a CLIPVisionModelWithProjection folder."""
    return {
        "architectures": ["CLIPVisionModelWithProjection"], "attention_dropout": 0.0, "dropout": 0.0,
        "hidden_act": vision.activation, "hidden_size": vision.width, "image_size": vision.image_size,
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": vision.mlp_width or 4 * vision.width,
        "layer_norm_eps": 1e-5, "model_type": "clip_vision_model", "num_attention_heads": vision.heads,
        "num_channels": 3, "num_hidden_layers": vision.layers, "patch_size": vision.patch_size,
        "projection_dim": vision.projection,
    }  # fmt: skip


def preprocessor_file(vision: VisionConfig) -> dict[str, Any]:
    """Returns the preprocessor_config.json that goes with it."""
    side = vision.image_size
    return {
        "crop_size": {"height": side, "width": side}, "do_center_crop": True, "do_convert_rgb": True,
        "do_normalize": True, "do_rescale": True, "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": MEAN, "image_processor_type": "CLIPImageProcessor", "image_std": STD, "resample": 3,
        "rescale_factor": 1 / 255, "size": {"shortest_edge": side},
    }  # fmt: skip
