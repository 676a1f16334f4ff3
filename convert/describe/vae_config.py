"""Descriptions of autoencoders from diffusers' config.json, and that file from a description.

Source of the fields: huggingface/diffusers, models/autoencoders/autoencoder_kl.py and autoencoder_tiny.py.
"""

from collections.abc import Mapping
from typing import Any

from sdjax.config import ConfigError, VAEConfig
from sdjax.convert.describe.fields import channels_of, only
from sdjax.convert.describe.other_kinds import kind_of_component
from sdjax.convert.errors import shown

CLASSES = {"kl": "AutoencoderKL", "tiny": "AutoencoderTiny"}  # diffusers' names of our kinds
_KL_ONLY = {
    "act_fn": ("silu", "swish"), "latents_mean": (None, [0.0] * 4), "latents_std": (None, [1.0] * 4),
    "mid_block_add_attention": (True,), "shift_factor": (None, 0.0),
    "use_post_quant_conv": (True,), "use_quant_conv": (True,),
}  # fmt: skip
_TINY_ONLY = {
    "act_fn": ("relu",), "num_encoder_blocks": ([1, 3, 3, 3],), "num_decoder_blocks": ([3, 3, 3, 1],),
    "scaling_factor": (1.0,), "shift_factor": (None, 0.0), "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
}  # fmt: skip


def vae_from_diffusers(config: Mapping[str, Any], what: str = "vae/config.json") -> VAEConfig:
    """Returns the autoencoder that an AutoencoderKL's or AutoencoderTiny's config.json describes.

    Raises ConfigError.
    """
    if kind := kind_of_component(config.get("_class_name"), tuple(CLASSES.values()), "autoencoder"):
        raise ConfigError(f"{what}: {kind}")
    if config.get("_class_name") == CLASSES["tiny"]:
        return _tiny(config, what)
    only(config, _KL_ONLY, what)
    for name, usual in ("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D"):
        blocks = config.get(name, [])
        if not isinstance(blocks, list) or any(block != usual for block in blocks):
            odd = next((one for one in blocks if one != usual), None) if isinstance(blocks, list) else blocks
            raise ConfigError(f"{what}: {name} are {usual} in Stable Diffusion v1 and v2; got {shown(odd)}")
    return VAEConfig(
        image_channels=config.get("in_channels", 3),
        latent_channels=config.get("latent_channels", 4),
        channels=tuple(channels_of(config, what, [64])),
        num_res_blocks=config.get("layers_per_block", 1),
        scale_factor=0.18215 if config.get("scaling_factor") is None else config["scaling_factor"],
        norm_groups=config.get("norm_num_groups", 32),
    )


def _tiny(config: Mapping[str, Any], what: str) -> VAEConfig:
    only(config, _TINY_ONLY, what)
    widths = config.get("encoder_block_out_channels", [64] * 4)
    only(config, {"decoder_block_out_channels": (widths,)}, what)
    return VAEConfig(
        image_channels=config.get("in_channels", 3),
        latent_channels=config.get("latent_channels", 4),
        channels=tuple(channels_of({"block_out_channels": widths}, what, [])),
        num_res_blocks=3,
        scale_factor=1.0,
        norm_groups=1,
        kind="tiny",
    )


def diffusers_file(vae: VAEConfig, image_size: int) -> dict[str, Any]:
    """Returns the config.json of an autoencoder's folder."""
    levels = len(vae.channels)
    shared = {
        "_class_name": CLASSES[vae.kind], "in_channels": vae.image_channels, "latent_channels": vae.latent_channels,
        "out_channels": vae.image_channels, "scaling_factor": vae.scale_factor,
    }  # fmt: skip
    if vae.kind == "tiny":
        blocks = [1] + [vae.num_res_blocks] * (levels - 1)
        return shared | {
            "act_fn": "relu", "decoder_block_out_channels": list(vae.channels),
            "encoder_block_out_channels": list(vae.channels), "force_upcast": False,
            "num_decoder_blocks": blocks[::-1], "num_encoder_blocks": blocks, "upsampling_scaling_factor": 2,
        }  # fmt: skip
    return shared | {
        "act_fn": "silu", "block_out_channels": list(vae.channels), "down_block_types": ["DownEncoderBlock2D"] * levels,
        "layers_per_block": vae.num_res_blocks, "norm_num_groups": vae.norm_groups, "sample_size": image_size,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }  # fmt: skip
