"""The depth network's description from transformers' JSON files, and those files from a description.

Source of the fields: huggingface/transformers, models/dpt/configuration_dpt.py, models/bit/configuration_bit.py and
models/dpt/image_processing_dpt.py; the values are those of Intel's dpt-hybrid-midas.
"""

from collections.abc import Mapping
from typing import Any

from sdjax.config import ConfigError, DepthConfig

# Fields under whose values alone the network is DPT-Hybrid, and their defaults in transformers
_ONLY: dict[str, tuple[Any, Any]] = {
    "model_type": ("dpt", "dpt"), "is_hybrid": (True, False), "patch_size": (16, 16), "num_channels": (3, 3),
    "hidden_act": ("gelu", "gelu"), "qkv_bias": (True, True), "readout_type": ("project", "project"),
    "head_in_index": (-1, -1), "add_projection": (False, False), "use_batch_norm_in_fusion_residual": (False, False),
    "neck_ignore_stages": ([0, 1], [0, 1]),
}  # fmt: skip
_BACKBONE_ONLY = {
    "global_padding": "same", "layer_type": "bottleneck", "embedding_dynamic_padding": True, "num_channels": 3,
    "hidden_act": "relu", "width_factor": 1, "out_features": ["stage1", "stage2", "stage3"],
}  # fmt: skip


def depth_from_transformers(config: Mapping[str, Any]) -> DepthConfig | None:
    """Returns the network that a depth_estimator/config.json describes; None for any but DPT-Hybrid's kind."""
    backbone = config.get("backbone_config") or {}  # not written where it is the default
    if not isinstance(backbone, Mapping):
        return None
    wrong = [name for name, (wanted, default) in _ONLY.items() if config.get(name, default) != wanted]
    wrong += [name for name, wanted in _BACKBONE_ONLY.items() if backbone.get(name, wanted) != wanted]
    if wrong:
        return None
    width = config.get("hidden_size", 768)
    neck = config.get("neck_hidden_sizes", [96, 192, 384, 768])
    taps = config.get("backbone_out_indices", [2, 5, 8, 11])
    widths = backbone.get("hidden_sizes", [256, 512, 1024, 2048])
    depths = backbone.get("depths", [3, 4, 9])
    factors = config.get("reassemble_factors", [4, 2, 1, 0.5])  # the first two are of maps that go through as they are
    if any(not isinstance(value, list) for value in (neck, taps, widths, depths, factors)):
        return None
    if config.get("intermediate_size", 3072) != 4 * width or neck[:2] != widths[:2] or factors[2:] != [1, 0.5]:
        return None
    try:
        return DepthConfig(
            image_size=config.get("image_size", 384),
            stem_width=backbone.get("embedding_size", 64),
            stage_widths=tuple(widths[:3]),
            stage_depths=tuple(depths[:3]),
            norm_groups=backbone.get("num_groups", 32),
            width=width,
            layers=config.get("num_hidden_layers", 12),
            heads=config.get("num_attention_heads", 12),
            taps=tuple(taps[2:]),
            neck_widths=tuple(neck[2:]),
            features=config.get("fusion_hidden_size", 256),
            norm_epsilon=config.get("layer_norm_eps", 1e-12),
        )
    except ConfigError:
        return None


def transformers_file(depth: DepthConfig) -> dict[str, Any]:
    """Returns the config.json of a DPTForDepthEstimation folder."""
    return {
        "add_projection": False, "architectures": ["DPTForDepthEstimation"], "attention_probs_dropout_prob": 0.0,
        "auxiliary_loss_weight": 0.4,
        "backbone_config": {
            "depths": list(depth.stage_depths), "embedding_dynamic_padding": True, "embedding_size": depth.stem_width,
            "global_padding": "same", "hidden_sizes": [*depth.stage_widths, 2 * depth.stage_widths[-1]],
            "layer_type": "bottleneck", "model_type": "bit", "num_groups": depth.norm_groups,
            "out_features": ["stage1", "stage2", "stage3"],
        },
        "backbone_featmap_shape": [1, depth.stage_widths[-1], depth.grid, depth.grid],
        "backbone_out_indices": [2, 5, *depth.taps], "fusion_hidden_size": depth.features, "head_in_index": -1,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": depth.width, "image_size": depth.image_size,
        "initializer_range": 0.02, "intermediate_size": 4 * depth.width, "is_hybrid": True,
        "layer_norm_eps": depth.norm_epsilon, "model_type": "dpt",
        "neck_hidden_sizes": [*depth.stage_widths[:2], *depth.neck_widths], "neck_ignore_stages": [0, 1],
        "num_attention_heads": depth.heads, "num_channels": 3, "num_hidden_layers": depth.layers, "patch_size": 16,
        "qkv_bias": True, "readout_type": "project", "reassemble_factors": [1, 1, 1, 0.5],
        "use_auxiliary_head": False, "use_batch_norm_in_fusion_residual": False,
    }  # fmt: skip


def preprocessor_file(depth: DepthConfig) -> dict[str, Any]:
    """Returns the preprocessor_config.json that goes with it: a resized picture in [-1, 1]."""
    side = depth.image_size
    return {
        "do_normalize": True, "do_rescale": True, "do_resize": True, "ensure_multiple_of": 1,
        "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "DPTImageProcessor", "image_std": [0.5, 0.5, 0.5],
        "keep_aspect_ratio": False, "resample": 2, "rescale_factor": 1 / 255, "size": {"height": side, "width": side},
    }  # fmt: skip
