"""What a model is for. This follows from its network's inputs besides the noisy latent and a prompt."""

from sdjax.config import ModelConfig

UPSCALER_LEVELS = 350  # the highest noise level of an upscaler's picture, as in Stability's demo; training stays below
UNCLIP_LEVELS = 1000  # noise levels of unCLIP's embedding are below this: timesteps of a schedule of their own

# And which task is for it
KINDS = {
    "text": "text to image",
    "inpainting": "inpainting (sdjax.inpaint, `sdjax inpaint`)",
    "depth": "depth to image",
    "upscaling": "upscaling",
    "unclip": "image variations",
    "unknown": "another task",
}


def kind_of(config: ModelConfig) -> str:
    """Returns what the model is for, a key of KINDS, by what its network takes."""
    unet, latent = config.unet, config.vae.latent_channels
    if unet.num_classes is not None:
        return "upscaling"
    if unet.label_dim is not None:
        return "unclip"
    return {0: "text", 1 + latent: "inpainting", 1: "depth"}.get(unet.in_channels - latent, "unknown")


def check_task(config: ModelConfig, task: str, *kinds: str) -> None:
    """Raises ValueError unless the model is of one of these kinds; without any, it takes a latent and a prompt only."""
    kind, latent = kind_of(config), config.vae.latent_channels
    if kind in (kinds or ("text",)):
        return
    wanted = {"text": f"a latent of {latent} channels and a prompt"}
    wanted["inpainting"] = f"{1 + 2 * latent} channels (latent, mask, masked picture)"
    wanted["depth"] = f"{1 + latent} channels (latent, depth)"
    label = " and a label" if kind in ("upscaling", "unclip") else ""
    raise ValueError(
        f"{task} needs a model that takes {' or '.join(wanted.get(k, KINDS[k]) for k in kinds or ('text',))}; this one "
        f"({config.name}) takes {config.unet.in_channels} channels{label}: it is one for {KINDS[kind]}"
    )
