"""Fine-tunes a model on a folder of pictures with captions. The other training configurations start from this one.

Every value can be changed on the command line: --set model.path=v1-5-pruned.safetensors. sdjax/train/config.py and
docs/training.md explain the values.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration. Its optimiser is the reference's, its learning rate a tenth of the reference's."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        "path": None,
        "scratch": None,
        "prediction": None,
        "ema": "auto",
        "vae": None,
        "depth": None,
        "vision": None,
        "noise_stats": None,
        "changes": {},
        "fresh": (),
        "tokenizer": None,
        "copy": True,
    }
    config.train = ("unet",)
    config.trainable = {"kind": "parts"}
    config.data = {
        "parts": ({"source": {"folder": "pictures"}},),
        "cached": (),
        "captions": {
            "prefix": "",
            "suffix": "",
            "shuffle": False,
            "tag_dropout": 0.0,
            "keep": 0,
            "keep_separator": None,
            "separator": ",",
            "second_separator": None,
        },
        "side": None,
        "buckets": True,
        "bucket_step": None,
        "bucket_sides": None,
        "enlarge": True,
        "crop": "random",
        "flip": 0.5,
        "resample": "lanczos",
        "masks": False,
        "hints": None,
        "hint_options": {},
        "threads": None,
        "workers": 0,
        "bad_limit": 0.01,
    }
    config.batch_size = 4
    config.accumulate = 1
    config.objective = {
        "kind": "denoising",
        "loss": "l2",
        "huber_delta": 0.1,
        "huber_schedule": "constant",
        "gamma": None,
        "floor": 0.0,
        "debiased": False,
        "like_epsilon": False,
        "v_like": 0.0,
        "timesteps": None,
        "offset_noise": 0.0,
        "offset_random": False,
        "offset_adaptive": 0.0,
        "multires_noise": 0,
        "multires_discount": 0.3,
        "perturbation": 0.0,
        "perturbation_random": False,
        "dropout": 0.1,
        "label_dropout": 0.0,
        "masked": False,
        "unmasked": 0.0,
        "holes": "random",
        "whole_holes": 0.25,
    }
    config.autoencoder = None
    config.optim = {
        "name": "adamw",
        "steps": 10_000,
        "epochs": None,
        "learning_rate": 1e-5,
        "warmup": None,
        "warmup_most": 500,
        "warmup_from": 1e-6,
        "decay": "constant",
        "cooldown": 0,
        "final": 0.0,
        "cycles": 1,
        "power": 1.0,
        "beta1": None,
        "beta2": None,
        "weight_decay": 0.01,
        "decay_all": True,
        "clip": 1.0,
        "rates": (),
        "part_rates": {},
        "up_rate": 1.0,
    }
    config.dtype = None
    config.frozen_dtype = None
    config.remat = "none"
    config.ema = {"decay": 0.9999, "host": False}
    config.guard = {"spike": None, "after": 100, "limit": 10}
    config.parallel = {
        "mode": "jit", "data": -1, "fsdp": 1, "tensor": 1, "rules": None, "whole": 4096, "overlap": True,
    }  # fmt: skip
    config.checkpoint = {"steps": None, "minutes": 15.0, "keep": 2, "keep_every": None}
    config.validation = {"data": None, "every": 1000, "examples": 64, "timesteps": 4, "best": False}
    config.validation.metrics = {
        "measures": (),
        "captions": None,
        "count": None,
        "reference": None,
        "files": {},
        "every": 5000,
        "settings": {},
        "batch": 8,
        "seed": 0,
        "resamples": 0,
        "best": None,
    }
    config.samples = {
        "prompts": (),
        "every": 1000,
        "first": False,
        "num_steps": 25,
        "guidance_scale": None,
        "seed": 0,
        "image": None,
        "mask": None,
        "options": {},
    }
    config.log = {"every": 20, "tensorboard": True, "peak_flops": None, "progress": None}
    config.patience = 1800.0
    config.mlperf = None
    return config
