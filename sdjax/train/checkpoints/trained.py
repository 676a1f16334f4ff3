"""The model that a training has made so far, put together from its folder."""

import json
import pathlib

import jax
import numpy as np

from sdjax.loading.run_layout import CHECKPOINTS, SETTINGS, workdir
from sdjax.loading.trainable import trainable_of
from sdjax.storage.files import doing
from sdjax.train.checkpoints.checkpoint import read_parts
from sdjax.train.start_model import Base, start_model


def trained(folder: str | pathlib.Path, *, ema: str = "auto", step: int | None = None) -> tuple[int, Base]:
    """Returns the number of steps and the model: what it started from, with the parts that were trained replaced.

    `ema`: "yes" takes the moving average, "no" the parameters themselves, "auto" the average if there is one. `step`
    chooses a checkpoint instead of the newest that is intact. Raises ValueError where there is none such.
    """
    folder = workdir(folder)
    with doing("reading the settings", folder / SETTINGS):
        settings = json.loads((folder / SETTINGS).read_text())
    has_average = settings["ema"]["decay"] is not None
    if ema == "yes" and not has_average:
        raise ValueError(f"{folder} was trained without a moving average: ask for the parameters themselves, ema = no")
    part = "ema_params" if has_average and ema != "no" else "params"
    found = read_parts(folder / CHECKPOINTS, part, step=step)
    if found is None:
        raise ValueError(f"{folder} holds no checkpoint yet")
    number, parts = found
    base = start_model(folder)
    trainable = trainable_of(settings.get("trainable", {}))
    params = trainable.assemble(jax.tree.map(np.asarray, parts[part]), base.params)
    params = {name: params[name] for name in base.params}  # a discriminator is no part of the model
    return number, Base(base.config, params, base.tokenizer, origin=base.origin)
