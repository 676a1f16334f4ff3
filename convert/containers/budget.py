"""What one reading may cost: several times what honest checkpoints need, all files of a folder together.

The limits that lie elsewhere bound one value each; these bound their sum, so that a folder of two hundred files costs
no more than one file does. They keep a reading below 64 MB and a second.
"""

import dataclasses
import os

from sdjax.convert.containers.stored import MAX_TENSORS
from sdjax.convert.errors import CheckpointError

LIMITS = {
    "instructions of pickles": 300_000,  # a training checkpoint's 3,500 tensors with their optimizer's state: 100,000
    "bytes of safetensors headers": 4 * 2**20,  # a checkpoint's has 0.3 MB; other tools put training logs in it
    "bytes of JSON": 2**20,  # an index of shards has 0.1 MB
    "archive members": MAX_TENSORS + 1000,
    "tensors": MAX_TENSORS,
    "files": 200,
    "files in its folders": 10_000,
}


@dataclasses.dataclass(slots=True)
class Budget:
    """What is left to spend of each kind in LIMITS."""

    left: dict[str, int] = dataclasses.field(default_factory=LIMITS.copy)

    def spend(self, kind: str, amount: int, path: str | os.PathLike[str]) -> None:
        """Raises CheckpointError, in the name of `path`, where more is needed than there is."""
        if amount > self.left[kind]:
            raise CheckpointError(f"it has more than {LIMITS[kind]} {kind}; no checkpoint of these models has", path)
        self.left[kind] -= amount
