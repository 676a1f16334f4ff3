"""Merging of checkpoints behind the interface of the parity kit."""

import functools

import numpy as np

from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.merge.ratios import Ratios
from sdjax.convert.merge.table import METHODS
from sdjax.convert.merge.tensors import merged


def models_merged(method, models, options):
    """Returns the tensors that a method makes of the kit's models, in the first one's types."""
    lazy = [
        {n: LazyTensor(np.shape(a), np.asarray(a).dtype, functools.partial(np.asarray, a)) for n, a in model.items()}
        for model in models.values()
    ]
    names = list(models)[1:]

    def mask(model, name, shape):
        return np.asarray(options[f"mask/{names[model]}/{name}"], bool)

    ratios = options.get("weights", (options.get("alpha", options.get("t")),))
    blocks = None
    if method == "block_weighted":
        method, ratios, blocks = "weighted_sum", (options["base_alpha"],), tuple(options["weights"])
    out = merged(
        METHODS[method], lazy, Ratios(tuple(ratios), blocks), density=options.get("density", 1.0),
        sign=options.get("sign", "total"), mask=mask,
    )  # fmt: skip
    first = next(iter(models.values()))
    return {name: tensor.cast(np.asarray(first[name]).dtype).read() for name, tensor in out.items()}
