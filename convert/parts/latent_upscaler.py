"""Reads Stability's x2 latent upscaler from its folder of diffusers (StableDiffusionLatentUpscalePipeline)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from sdjax.config import ConfigError, TextConfig, VAEConfig
from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import float_type
from sdjax.convert.describe.diffusers_config import text_from_transformers
from sdjax.convert.describe.fields import channels_of, only
from sdjax.convert.describe.tokens import check_tokens
from sdjax.convert.describe.vae_config import vae_from_diffusers
from sdjax.convert.parts.lone import Place, part_leaves, read_whole
from sdjax.convert.parts.networks import network_params
from sdjax.nn.latent_upscaler import LEVEL_TOLD, LatentUpscalerConfig
from sdjax.nn.networks import NETWORKS
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.typing import Params

_ONLY = {
    "act_fn": ("gelu",), "conv_in_kernel": (1,), "conv_out_kernel": (1,), "flip_sin_to_cos": (True,),
    "mid_block_type": (None,), "norm_num_groups": (None,), "only_cross_attention": (False,),
    "resnet_time_scale_shift": ("scale_shift",), "time_embedding_type": ("fourier",), "timestep_post_act": ("gelu",),
}  # fmt: skip
_POSITIONS = r"(text_model\.)?embeddings\.position_ids"


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedLatentUpscaler:
    """A latent upscaler: descriptions and parameters {"unet", "vae", "text"} of its networks, and its tokenizer."""

    unet: LatentUpscalerConfig
    vae: VAEConfig
    text: TextConfig
    params: Mapping[str, Params]
    tokenizer: Tokenizer
    name: str = "latent upscaler"
    notices: tuple[str, ...] = ()


def is_latent_upscaler(checkpoint: Checkpoint) -> bool:
    """Returns whether a folder's files describe a latent upscaler."""
    return checkpoint.configs.get("unet/config.json", {}).get("time_embedding_type") == "fourier"


def load_latent_upscaler(source: CheckpointLike, dtype: DTypeLike | None = None) -> LoadedLatentUpscaler:
    """Returns the latent upscaler of a folder, such as stabilityai/sd-x2-latent-upscaler.

    Raises CheckpointError, naming every tensor that is missing or of another shape, and ValueError for an unknown
    dtype.
    """
    kind, checkpoint = float_type(dtype), open_checkpoint(source)
    if not is_latent_upscaler(checkpoint):
        raise checkpoint.error("it is no folder of the x2 latent upscaler (stabilityai/sd-x2-latent-upscaler)")
    try:
        text = text_from_transformers(
            _file(checkpoint, "text_encoder/config.json"), checkpoint.configs.get("tokenizer/tokenizer_config.json", {})
        )
        unet = _unet(_file(checkpoint, "unet/config.json"), text.width)
        vae = vae_from_diffusers(_file(checkpoint, "vae/config.json"))
    except ConfigError as error:
        raise checkpoint.error(str(error)) from error
    tokenizer = checkpoint.tokenizer or Tokenizer()
    check_tokens(tokenizer, text, checkpoint.error)
    tower = network_params(
        checkpoint, {"text_model": NETWORKS["pooled_text"].shapes(text)}, "text_encoder/", "a text tower", dtype=kind,
        canonical=lambda name: name if name.startswith("text_model.") else f"text_model.{name}", unused=_POSITIONS,
    )  # fmt: skip
    params = {
        "unet": _network(checkpoint, unet, kind),
        "vae": read_whole(part_leaves(checkpoint, Place("diffusers", ("vae/",)), "vae", vae, kind), kind, "vae"),
        "text": tower["text_model"],
    }
    name = "latent upscaler" if checkpoint.path is None else checkpoint.path.name
    return LoadedLatentUpscaler(unet, vae, text, params, tokenizer, name, checkpoint.notices)


def _network(checkpoint: Checkpoint, unet: LatentUpscalerConfig, dtype: np.dtype | None) -> Params:
    shapes = NETWORKS["latent_upscaler"].shapes(unet)
    return network_params(checkpoint, shapes, "unet/", "the UNet of a latent upscaler", dtype=dtype)


def _unet(config: Mapping[str, Any], pooled: int) -> LatentUpscalerConfig:
    """Returns the description of the UNet. Raises ConfigError for what the released one does not have."""
    what = "unet/config.json"
    only(config, _ONLY, what)
    channels = channels_of(config, what, [])
    levels = len(channels)
    only(
        config,
        {
            "down_block_types": (["KDownBlock2D", *["KCrossAttnDownBlock2D"] * (levels - 1)],),
            "up_block_types": ([*["KCrossAttnUpBlock2D"] * (levels - 1), "KUpBlock2D"],),
            "in_channels": (8,),
            "out_channels": (5,),
            "time_cond_proj_dim": (2 * LEVEL_TOLD + pooled,),
        },
        what,
    )
    return LatentUpscalerConfig(
        channels=tuple(channels),
        num_res_blocks=config.get("layers_per_block", 2),
        head_size=config.get("attention_head_dim", 8),
        context_dim=config.get("cross_attention_dim", 1280),
        pooled=pooled,
    )


def _file(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    if name not in checkpoint.configs:
        raise ConfigError(f"the folder has no {name}, which says how its networks are built")
    return checkpoint.configs[name]
