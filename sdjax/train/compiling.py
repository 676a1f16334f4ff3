"""Reports compilation: the first batch of each size compiles a program."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jaxtyping import PyTree

from sdjax.train.outputs import duration


class Compiling:
    """Reports the compiled programs of a step to `say`. `total` is their number, None if it is not known."""

    def __init__(self, total: int | None, say: Callable[[str], None]):
        self.total, self.say = total, say
        self.seen: set[Any] = set()

    def is_new(self, batch: PyTree) -> bool:
        """Returns whether a batch is the first of its size."""
        return _shapes(batch) not in self.seen

    @contextlib.contextmanager
    def __call__(self, batch: PyTree) -> Iterator[None]:
        """Reports that the step is being compiled for a batch and, at the end, how long it took."""
        self.seen.add(_shapes(batch))
        number = len(self.seen)
        which = f"program {number} of {self.total}" if self.total is not None and self.total > 1 else "the program"
        self.say(
            f"compiling {which} of the training step{_size(batch)}: minutes for a large model, seconds if it "
            "was compiled before"
        )
        begin = time.monotonic()
        yield
        rest = 0 if self.total is None else self.total - number
        more = f"; {rest} more to come, each with the first batch of its size" if rest > 0 else ""
        self.say(f"compiled in {duration(time.monotonic() - begin)}{more}")


def _shapes(batch: PyTree) -> tuple[jax.tree_util.PyTreeDef, tuple]:
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)


def _size(batch: PyTree) -> str:
    for name, what in (("image", "pictures"), ("moments", "latents")):
        if isinstance(batch, dict) and name in batch:
            _, h, w, _ = batch[name].shape
            return f", for {what} of {w} x {h}"
    return ""
