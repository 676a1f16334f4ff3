"""Batches made before they are needed."""

import sys
from collections.abc import Callable, Generator
from typing import Any, TypeVar

Item = TypeVar("Item")


def ahead(
    make: Callable[[int], Item], first: int = 0, last: int | None = None, *, threads: int = 1, depth: int = 4,
    workers: Any = None,
) -> Generator[Item, None, None]:  # fmt: skip
    """Yields make(first), ..., make(last - 1); never ends by default. Threads make up to `depth` items ahead.

    `workers(dataset)` may move the work to processes. An error in `make` is raised in place of its item.
    """
    import grain

    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(depth, threads))
    stop = sys.maxsize if last is None else last
    if stop <= first:
        return
    dataset = grain.MapDataset.range(first, stop).map(make).to_iter_dataset(read)
    made = iter(dataset if workers is None else workers(dataset))
    try:
        yield from made
    finally:
        close = getattr(made, "close", None)
        if close is not None:
            close()
