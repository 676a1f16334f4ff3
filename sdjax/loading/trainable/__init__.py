"""Trainables: which parameters of a model a training changes, and how the whole model is assembled from them.

They are in `loading` because training and `sdjax.load` both need them: a training writes the learned parameters into
its folder, and `sdjax.load` makes a model from them. TRAINABLES is the table of kinds.
"""

from collections.abc import Mapping
from typing import Any

from sdjax.config import ConfigError
from sdjax.description import build
from sdjax.loading.trainable.parts import Leaves, Parts
from sdjax.loading.trainable.protocol import Addition, Trainable, attach, by_path, lay_over
from sdjax.loading.trainable.table import TRAINABLES

__all__ = ["TRAINABLES", "Addition", "Leaves", "Parts", "Trainable", "attach", "by_path", "lay_over", "trainable_of"]


def trainable_of(settings: Mapping[str, Any]) -> Trainable:
    """Returns the trainable of a run's settings (default: `Parts`). Raises ConfigError if they describe none."""
    kind = settings.get("kind", "parts")
    if kind not in TRAINABLES:
        raise ConfigError(f"trainable.kind is one of {', '.join(TRAINABLES)}; got {kind!r}")
    return build(TRAINABLES[kind], settings, "trainable")
