"""Limits of the work of one reading, over all files of a folder: several times what honest checkpoints need.

Other limits bound single values. These bound the sum, so that a folder of two hundred files costs no more than one
file. They keep a reading below 64 MB and a second.
"""

import dataclasses
import os

from sdjax.convert.containers.stored import MAX_TENSORS
from sdjax.convert.errors import CheckpointError

LIMITS = {
    "instructions of pickles": 300_000,  # a training checkpoint's 3,500 tensors with their optimizer's state: 100,000
    "bytes of safetensors headers": 4 * 2**20,  # a checkpoint's has 0.3 MB; other tools put training logs in it
    "bytes of GGUF headers": 32 * 2**20,  # a language model's vocabulary, which is passed over, has 8 MB
    "values of GGUF headers": 400_000,  # such a vocabulary has 150,000 words, and as many merges
    "bytes of JSON": 2**20,  # an index of shards has 0.1 MB
    "archive members": MAX_TENSORS + 1000,
    "tensors": MAX_TENSORS,
    "files": 200,
    "files in its folders": 10_000,
}


@dataclasses.dataclass(slots=True)
class Budget:
    """The remaining amount of each kind in LIMITS."""

    left: dict[str, int] = dataclasses.field(default_factory=LIMITS.copy)

    def spend(self, kind: str, amount: int, path: str | os.PathLike[str]) -> None:
        """Subtracts `amount`. Raises CheckpointError, naming `path`, if less is left."""
        if amount > self.left[kind]:
            raise CheckpointError(f"it has more than {LIMITS[kind]} {kind}; no checkpoint of these models has", path)
        self.left[kind] -= amount
