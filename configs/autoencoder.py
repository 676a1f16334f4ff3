"""Trains the autoencoder, or only its decoder, with LPIPS and a discriminator, like the released ones.

Source: CompVis/latent-diffusion, configs/autoencoder/autoencoder_kl_32x32x4.yaml.
"""

import ml_collections

from . import finetune


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration; `autoencoder.lpips` names VGG16's and LPIPS's files.

    With optim.rates = (("^vae/(encoder|quant_conv)/", 0.0),) the encoder does not change, so the new decoder fits every
    model that uses its latents.
    """
    config = finetune.get_config()
    config.train = ("vae",)
    config.data.update(side=256, buckets=False)
    config.batch_size = 12
    config.objective.dropout = 0.0  # belongs to the denoiser's objective and has no effect here
    config.autoencoder = {
        "kind": "autoencoder",
        "lpips": ("vgg16-397923af.pth", "vgg.pth"),
        "kl_weight": 1e-6,
        "perceptual_weight": 1.0,
        "pixel_loss": "l1",
        "edge_weight": 0.0,
        "logvar": 0.0,
        "disc_start": 50_001,
        "disc_weight": 0.5,
        "disc_factor": 1.0,
        "disc_loss": "hinge",
        "discriminator": None,
    }
    config.optim.update(
        steps=300_000,
        learning_rate=5.4e-5,
        warmup=0,
        beta1=0.5,
        beta2=0.9,
        weight_decay=0.0,
        decay_all=False,
        clip=None,
    )  # 12 times 4.5e-6: the reference's rate is times the batch
    return config
