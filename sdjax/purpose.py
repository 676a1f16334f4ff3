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
    "relighting": "relighting (sdjax.relight, `sdjax relight`)",
    "upscaling": "upscaling",
    "unclip": "image variations",
    "given": "channels that you give (sdjax.text_to_image with concat)",
}
GIVEN = "given"


def kind_of(config: ModelConfig) -> str:
    """Returns the model's purpose, a key of KINDS."""
    unet, latent = config.unet, config.vae.latent_channels
    if unet.num_classes is not None:
        return "upscaling"
    if unet.label_dim is not None:
        return "unclip"
    if config.beside is not None:
        return GIVEN if config.beside == GIVEN else "relighting"
    kinds = {0: "text", 1 + latent: "inpainting", 1: "depth", latent: "edit"}
    return kinds.get(unet.in_channels - latent, GIVEN)


def check_task(config: ModelConfig, task: str, *kinds: str, concat: bool = False) -> None:
    """Raises ValueError unless the model is of one of these kinds (default: a text-to-image model).

    `concat` says that the user gives the channels that the network takes beside the latent.
    """
    kind, latent = kind_of(config), config.vae.latent_channels
    if kind in (kinds or ("text",)) or (concat and kind == GIVEN and not kinds):
        return
    wanted = {"text": f"a latent of {latent} channels and a prompt"}
    wanted["inpainting"] = f"{1 + 2 * latent} channels (latent, mask, masked picture)"
    wanted["edit"] = f"{2 * latent} channels (latent, latent of a picture)"
    wanted["depth"] = f"{1 + latent} channels (latent, depth)"
    wanted["relighting"] = (
        f"{2 * latent} or {3 * latent} channels (latent, latent of a foreground, of a background), as "
    )
    wanted["relighting"] += "widen=IC-Light's file makes it of a Stable Diffusion 1.5 model"
    label = " and a label" if kind in ("upscaling", "unclip") else ""
    raise ValueError(
        f"{task} needs a model that takes {' or '.join(wanted.get(k, KINDS[k]) for k in kinds or ('text',))}; this one "
        f"({config.name}) takes {config.unet.in_channels} channels{label}: it is one for {KINDS[kind]}"
    )
