"""The purpose of a model. It follows from the network's inputs besides the noisy latent and the prompt."""

from sdjax.config import ModelConfig

UPSCALER_LEVELS = 350  # highest noise level of the upscaler's input picture, as in Stability's demo; training is below
UNCLIP_LEVELS = 1000  # noise levels of unCLIP's embedding are 0 to 999: timesteps of a separate schedule

# The task for each kind of model
KINDS = {
    "text": "text to image",
    "inpainting": "inpainting (sdjax.inpaint, `sdjax inpaint`)",
    "depth": "depth to image",
    "edit": "editing by instructions (sdjax.edit, `sdjax edit`)",
    "upscaling": "upscaling",
    "unclip": "image variations",
    "unknown": "another task",
}


def kind_of(config: ModelConfig) -> str:
    """Returns the model's purpose, a key of KINDS."""
    unet, latent = config.unet, config.vae.latent_channels
    if unet.num_classes is not None:
        return "upscaling"
    if unet.label_dim is not None:
        return "unclip"
    kinds = {0: "text", 1 + latent: "inpainting", 1: "depth", latent: "edit"}
    return kinds.get(unet.in_channels - latent, "unknown")


def check_task(config: ModelConfig, task: str, *kinds: str) -> None:
    """Raises ValueError unless the model is of one of these kinds (default: a text-to-image model)."""
    kind, latent = kind_of(config), config.vae.latent_channels
    if kind in (kinds or ("text",)):
        return
    wanted = {"text": f"a latent of {latent} channels and a prompt"}
    wanted["inpainting"] = f"{1 + 2 * latent} channels (latent, mask, masked picture)"
    wanted["edit"] = f"{2 * latent} channels (latent, latent of a picture)"
    wanted["depth"] = f"{1 + latent} channels (latent, depth)"
    label = " and a label" if kind in ("upscaling", "unclip") else ""
    raise ValueError(
        f"{task} needs a model that takes {' or '.join(wanted.get(k, KINDS[k]) for k in kinds or ('text',))}; this one "
        f"({config.name}) takes {config.unet.in_channels} channels{label}: it is one for {KINDS[kind]}"
    )
