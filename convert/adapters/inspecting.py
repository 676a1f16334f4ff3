"""Reports what an adapter's file holds, whichever of Stable Diffusion 1 and 2 it is for."""

import os
from collections.abc import Sequence

from sdjax import configs
from sdjax.convert.adapters.load import load_adapter
from sdjax.convert.errors import CheckpointError

FAMILIES = ("sd1", "sd2_base")  # descriptions of the models that adapters are for


def adapter_lines(path: str | os.PathLike[str]) -> Sequence[str]:
    """Returns the facts of an adapter as lines; why it fits no model, if it fits none."""
    problem = ""
    for family in FAMILIES:
        config = configs.get(family)
        try:
            loaded = load_adapter(path, config)
        except CheckpointError as error:
            problem = problem or str(error)
            continue
        words = [f"embedding of {word}: {len(vectors)} vectors" for word, vectors in loaded.embeddings.items()]
        return [f"for: {config.name}", *loaded.info.lines(), *words, *loaded.notices]
    return [problem]
