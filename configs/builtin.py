"""The built-in model: a small Stable Diffusion of emoji, and how it is trained (`make train-builtin`)."""

import ml_collections

from sdjax.config import ScheduleConfig

VOCAB_SIZE = 1536
LATENT_CHANNELS = 16  # with the 4 of the full-size models, such a small decoder paints only soft outlines


def get_config() -> ml_collections.ConfigDict:
    """Returns the model's configuration (`model`) and the settings of its training. The model has 15 MB in float16.

    The autoencoder's scale factor is measured when it is trained; until then it is 1.
    """
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        "name": "builtin",
        "image_size": 64,
        "guidance_scale": 4.0,
        "unet": {
            "in_channels": LATENT_CHANNELS,
            "out_channels": LATENT_CHANNELS,
            "channels": (96, 128),
            "num_res_blocks": 1,
            "heads": (4, 4),
            "mid_heads": 4,
            "transformer_depth": (1, 1),
            "self_attention": (True, True),
            "context_dim": 128,
            "norm_groups": 16,
        },
        "vae": {
            "latent_channels": LATENT_CHANNELS,
            "channels": (16, 32, 64, 96),
            "num_res_blocks": 1,
            "scale_factor": 1.0,
            "norm_groups": 4,
        },
        "text": {
            "vocab_size": VOCAB_SIZE,
            "width": 128,
            "layers": 2,
            "heads": 4,
            "max_length": 32,
            "bos_token_id": VOCAB_SIZE - 2,
            "eos_token_id": VOCAB_SIZE - 1,
            "pad_token_id": VOCAB_SIZE - 1,
        },
        # A background's colour is in the latent's mean, which the usual schedule never hides completely
        "schedule": {**ScheduleConfig().to_dict(), "zero_terminal_snr": True, "prediction": "v"},
    }
    config.vocabulary = {"captions": 20_000}
    config.autoencoder = {
        "batch_size": 16,
        "collages": 0.5,  # share of a batch that shows four subjects at once
        "kl_weight": 5e-4,
        "edge_weight": 0.5,
        "ema_decay": 0.999,
        "optim": {
            "name": "muon",
            "steps": 4_000,
            "learning_rate": 2e-3,
            "warmup": 100,
            "cooldown": 1_400,
            "beta2": 0.99,
        },
    }
    config.latents = {"count": 131_072, "shard": 4_096}
    config.diffusion = {
        "batch_size": 64,
        "gamma": 5.0,
        "floor": 1.0,
        "dropout": 0.1,
        "offset_noise": 0.0,
        "ema_decay": 0.998,
        "optim": {
            "name": "muon",
            "steps": 9_300,
            "learning_rate": 2e-3,
            "warmup": 300,
            "cooldown": 2_400,
            "beta2": 0.99,
        },
    }
    config.inpainting = {
        # The UNet's first half; the other half is shared with the base, so that little more must be stored
        "changed": ("conv_in", "time_embedding", "down_blocks_0", "down_blocks_1", "mid_block"),
        "batch_size": 32,
        "gamma": 5.0,
        "floor": 1.0,
        "dropout": 0.1,
        "whole_holes": 0.25,
        "ema_decay": 0.99,
        "optim": {
            "name": "muon",
            "steps": 500,
            "learning_rate": 1e-3,
            "warmup": 30,
            "cooldown": 300,
            "beta2": 0.99,
        },
    }
    config.save_every = 240.0  # seconds
    config.log_every = 20  # steps
    return config
