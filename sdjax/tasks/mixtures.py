"""Mixtures of models that are made while sampling: A + ratio D, so that pictures of many ratios share one program."""

import dataclasses
import os
from typing import Any

from sdjax.adapters.delta import Adapter, Strength
from sdjax.checks.arguments import number, shown
from sdjax.convert.bundle import bundle_of_params
from sdjax.pipeline.model import Pipeline
from sdjax.tasks.adapters import AdapterUse

NEEDS_DIRECTION = "merge is the ratio of two models: give the other one too, by merge_with"


@dataclasses.dataclass(frozen=True, eq=False)
class MergeDirection:
    """The direction from a model to others: at the ratio r the model is A + r D. `change` is D, by the leaves' paths.

    `name` is for messages.
    """

    change: Adapter
    name: str = "merge"

    def __repr__(self) -> str:
        return f"<MergeDirection {self.name}: {len(self.change)} parameters>"

    def at(self, ratio: float) -> AdapterUse:
        """Returns the change at a ratio, as an adapter of a picture."""
        return AdapterUse(self.change, Strength(ratio), self.name)


def merge_direction(
    pipe: Pipeline, *others: str | os.PathLike[str], method: str = "weighted_sum", density: float | None = None,
    sign: str | None = None, seed: int | None = None,
) -> MergeDirection:  # fmt: skip
    """Returns the direction in which a model merges with others, for `Request.merge_with`.

        direction = sdjax.merge_direction(pipe, "other.safetensors")
        sdjax.sweep(pipe, sdjax.Request("a cat", merge_with=direction), {"merge": [0, 0.25, 0.5, 0.75, 1]})

    The pictures are those of the models that `sdjax merge` writes with the same method and ratio, in float32 within a
    level; the autoencoder is the first model's. Both models' UNets are held once, whatever the number of ratios. A call
    of the network costs about two.

    Args:
        pipe: model A. others: files or folders of the models B, C, ...
        method: one of `sdjax merge`'s methods that are linear in the ratio, all but slerp and the cosines.
        density, sign, seed: of the task methods, as `sdjax merge` has them.

    Raises ValueError for other methods and settings that do not fit, CheckpointError for files that cannot be read and
    models of different kinds.
    """
    from sdjax.convert.merge.direction import merge_direction as direction_of  # few pictures need it

    first = bundle_of_params(pipe.config, pipe.params, pipe.tokenizer, pipe.bundle)
    change = direction_of(first, others, method, density=density, sign=sign, seed=seed)
    return MergeDirection(change, " and ".join(os.path.basename(os.fspath(path)) for path in others))


def check_merge(ratio: Any, direction: Any) -> float | None:
    """Returns the ratio of a request. Raises ValueError for anything but a number and a direction."""
    if direction is not None and not isinstance(direction, MergeDirection):
        raise ValueError(f"merge_with is what sdjax.merge_direction returns; got {shown(direction)}")
    return None if ratio is None else number("merge", ratio)


def merge_uses(ratio: float | None, direction: MergeDirection | None) -> tuple[AdapterUse, ...]:
    """Returns the change of a picture's mixture, none without a ratio. Raises ValueError without a direction."""
    if ratio is None:
        return ()
    if direction is None:
        raise ValueError(NEEDS_DIRECTION)
    return (direction.at(ratio),)
