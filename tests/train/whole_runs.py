"""Settings of whole trainings of a small model on pictures of coloured squares, and their runs."""

import json

import jax

from sdjax.configs import finetune
from sdjax.description import build
from sdjax.train.config import TrainConfig
from sdjax.train.run import Run

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 60, 220), "grey": (128, 128, 128)}


def settings(pictures, model="tiny", **changes):
    """Returns a configuration for a model of the folder; names of changes have __ for a dot."""
    config = finetune.get_config().to_dict()
    config["model"]["path"] = str(pictures / model)
    config["data"] |= {"parts": [{"source": {"folder": str(pictures)}}], "buckets": False}
    config["optim"] |= {"steps": 6, "learning_rate": 1e-3, "warmup": 0}
    config |= {"batch_size": 8}
    config["log"] |= {"every": 1, "tensorboard": False}
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = config
        for key in outer:
            place = place[key]
        place[last] = value
    return build(TrainConfig, config)


def run(folder, config, devices=1, say=lambda text: None):
    """Trains on the first devices, and returns the state and the losses of all steps."""
    state = Run(config, folder, say, devices=jax.devices()[:devices]).train()
    return state, losses(folder)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}
