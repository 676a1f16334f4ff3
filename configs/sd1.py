"""Stable Diffusion v1.1 to v1.5. Source: CompVis/stable-diffusion, configs/stable-diffusion/v1-inference.yaml."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns v1's configuration, with every field written out."""
    config = ml_collections.ConfigDict()
    config.name = "sd1"
    config.image_size = 512
    config.guidance_scale = 7.5
    config.unet = {
        "in_channels": 4,
        "out_channels": 4,
        "channels": (320, 640, 1280, 1280),
        "num_res_blocks": 2,
        "heads": (8, 8, 8, 0),
        "mid_heads": 8,
        "transformer_depth": (1, 1, 1, 1),
        "self_attention": (True, True, True, True),
        "mid_self_attention": True,
        "context_dim": 768,
        "num_classes": ml_collections.config_dict.placeholder(int),
        "label_dim": ml_collections.config_dict.placeholder(int),
        "norm_groups": 32,
        "linear_projection": False,
    }
    config.vae = {
        "image_channels": 3,
        "latent_channels": 4,
        "channels": (128, 256, 512, 512),
        "num_res_blocks": 2,
        "scale_factor": 0.18215,
        "norm_groups": 32,
    }
    config.text = {  # CLIP ViT-L/14
        "vocab_size": 49408,
        "width": 768,
        "layers": 12,
        "heads": 12,
        "max_length": 77,
        "activation": "quick_gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
        "kind": "clip",
        "head_dim": ml_collections.config_dict.placeholder(int),
    }
    config.schedule = {
        "kind": "scaled_linear",
        "num_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "zero_terminal_snr": False,
        "prediction": "epsilon",
    }
    return config
