"""The direction of a merge: the change D for which the mixture at every ratio r is A + r D."""

import os
from collections.abc import Sequence

import numpy as np

from sdjax.adapters.delta import Adapter, Difference
from sdjax.convert.bundle import Bundle
from sdjax.convert.merge.merging import merge_bundles
from sdjax.convert.merge.recipe import MERGED, Settings
from sdjax.convert.merge.table import LINEAR, METHODS
from sdjax.convert.model import load_model

PARTS = ("unet/", "text/")


def merge_direction(
    first: Bundle, others: Sequence[str | os.PathLike[str]], method: str = "weighted_sum", *,
    density: float | None = None, sign: str | None = None, seed: int | None = None, text_from: str = MERGED,
) -> Adapter:  # fmt: skip
    """Returns the direction of a merge of a model and the models of files, as an adapter: what it weighs is the ratio.

    So `sdjax merge` with this ratio gives the same UNet and text encoder, up to float32's rounding. The autoencoder is
    the first model's. With several models all have the same ratio. The other arguments are those of MergeSettings.

    Raises ValueError for a method whose mixtures are not on a line (slerp and the cosines) and for settings that do not
    fit, CheckpointError as `merge_models` does.
    """
    if method in METHODS and method not in LINEAR:
        raise ValueError(
            f"{method} does not move on a line from A, so its ratios cannot share a program; methods that do are "
            f"{', '.join(LINEAR)}"
        )
    count = 1 + len(others)
    ratios = (1.0,) * (count - 1 if method in METHODS and METHODS[method].per_model else 1)
    settings = Settings(method, ratios, density=density, sign=sign, seed=seed, text_from=text_from)
    settings.check_models(count)
    mixed = merge_bundles([first, *(load_model(path) for path in others)], settings)
    out = {}
    for path, leaf in first.leaves.items():
        if path.startswith(PARTS) and mixed.leaves[path] is not leaf:
            difference = np.asarray(mixed.leaves[path].read(), np.float32) - np.asarray(leaf.read(), np.float32)
            leaf.release()
            if difference.any():
                out[path] = Difference(difference)
    return out
