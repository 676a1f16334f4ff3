"""Adapters behind the interface of the parity kit."""

import numpy as np
from flax.traverse_util import flatten_dict

from sdjax import convert
from sdjax.adapters import Strength, merge
from sdjax.convert.names import tables

from tests.parity_models import config_from_spec


def adapters_of(config, files):
    """Returns the adapters of the kit's files with their strengths."""
    return [
        (
            convert.load_adapter(
                file["tensors"], config, metadata=file["metadata"], peft_config=file["config"]
            ).adapter,
            Strength(file["unet"], file["text"], None if file["blocks"] is None else tuple(file["blocks"])),
        )
        for file in files
    ]


def lora_merge(spec, state_dict, files):
    """Returns the state dict with the files merged in."""
    config = config_from_spec(spec)
    bundle = convert.load_model(state_dict, config=config)
    adapters = adapters_of(bundle.config, files)
    merged = flatten_dict(merge(bundle.params, adapters), sep="/")
    touched = {path for adapter, _ in adapters for path in adapter}
    out = dict(state_dict)
    for entry in tables.entries(bundle.config, "ldm"):
        if any(parameter.path in touched for parameter in entry.parameters):
            out[entry.name] = entry.join([np.asarray(merged[parameter.path]) for parameter in entry.parameters])
    return out


def lora_apply(model, files):
    """Returns the model with the files applied."""
    return type(model)(model.config, merge(model.params, adapters_of(model.config, files)), model.bundle)
