"""The models of the parity kit: descriptions in the reference's words, read as an ldm YAML's are."""

from sdjax.config import ModelConfig, TextConfig
from sdjax.convert.describe.ldm_config import schedule_from_ldm, unet_from_ldm, vae_from_ldm


def config_from_spec(spec: dict) -> ModelConfig:
    """Returns the model of a kit specification; OpenCLIP's towers run all but their last layer."""
    open_clip = spec["text"] == "open_clip"
    return ModelConfig(
        name="custom",
        unet=unet_from_ldm(spec["unet"]),
        vae=vae_from_ldm(spec["vae"], spec["vae"]["z_channels"], spec["scale_factor"]),
        text=TextConfig(
            width=spec["context_dim"],
            heads=spec["text_heads"],
            layers=spec["text_layers"] - open_clip,
            activation="gelu" if open_clip else "quick_gelu",
            pad_token_id=0 if open_clip else 49407,
        ),
        schedule=schedule_from_ldm(spec),
    )
