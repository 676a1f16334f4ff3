"""Batches of a training set. Batch n does not depend on the number of processes, workers, threads or devices."""

import collections
import contextlib
import itertools
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sdjax.train.data.ahead import ahead
from sdjax.train.data.order import Order, Row, Stream
from sdjax.train.data.pictures import BadPicture

ATTEMPTS = 25  # to find a replacement for a bad record
NAMED = 20  # bad records that are reported one by one
FORGIVEN = 10  # bad records before their share is looked at

Batch = dict[str, Any]  # arrays [b, ...] and lists of b texts, by name
Tokens = Callable[[Sequence[str]], np.ndarray]


class Examples(Protocol):
    """The source of a loader's batches: records by stream, and `load`, which returns the arrays and texts of one.

    `load` is called from several threads and raises BadPicture for a record that cannot be used. The object is pickled
    into worker processes. `place` returns the place of a record, for messages. See `Pictures` and `Cached`.
    """

    streams: list[Stream]
    left_out: Counter[str]
    notices: list[str]

    def load(self, part: int, index: int, size: Any, visit: int, seed: int) -> dict[str, Any]: ...

    def place(self, part: int, index: int) -> str: ...


class TooManyBadPictures(ValueError):
    """More records than the limit allows could not be used."""


def check_bad(bad: Counter[str], drawn: int, limit: float, of: str, last: str = "") -> None:
    """Raises TooManyBadPictures if the share of bad records among `drawn` exceeds `limit`; 10 are always allowed."""
    number = sum(bad.values())
    if number > max(FORGIVEN, limit * drawn):
        reasons = "; ".join(f"{count} x {reason}" for reason, count in bad.most_common(5))
        raise TooManyBadPictures(
            f"{number} of {of} could not be used, more than {limit:.2%} ({reasons}){last}; mend or remove them, or "
            "raise the limit"
        )


class Made(NamedTuple):
    """A new batch, and the (key, reason) of every record that was replaced by another."""

    batch: Batch
    bad: list[tuple[str, str]]


class Loader:
    """Batches of examples for one of several processes; see `batch`, `iterate` and `on_devices`.

    Args:
            batch_size: records in a batch, over all processes.
            tokens: maps captions to token ids, int [b, n], for a batch's `ids`; it must be picklable for worker
            processes. process: (p, P): this process's number and the number of processes, by default JAX's. P must
                divide the batch size B. Process p holds rows p B / P to (p + 1) B / P, unless `sharding` is given.
            sharding: the sharding of batches. This process then holds the rows of its devices, which on a TPU slice
                need not be consecutive.
            threads: how many batches are made at the same time. Pillow and array_record release Python's lock.
            workers: processes, each with its threads, if threads alone are too slow. They are spawned, so a script must
                do its work under `if __name__ == "__main__"`.
            bad_limit: the share of bad records above which TooManyBadPictures is raised; 10 are always allowed.

        `bad` counts this process's replaced records by reason; `drawn` counts all records that were read. `say` gets
        one line for each replaced record, at most NAMED.
        Raises ValueError if the records do not fill one batch.
    """

    def __init__(
        self, examples: Examples, *, batch_size: int, seed: int, tokens: Tokens | None = None,
        process: tuple[int, int] | None = None, sharding: Any = None, threads: int | None = None, workers: int = 0,
        bad_limit: float = 0.01,
    ):  # fmt: skip
        if process is None:
            import jax

            process = jax.process_index(), jax.process_count()
        number, count = process
        if not 0 <= number < count or batch_size % count:
            raise ValueError(
                f"process {number} of {count} cannot take its share of a batch of {batch_size}: processes count from "
                "0, and their number divides the batch size"
            )
        self.examples, self.batch_size, self.bad_limit = examples, batch_size, bad_limit
        self.order = Order(examples.streams, batch_size, seed)
        self.rows: tuple[tuple[int, int], ...] = ((batch_size // count * number, batch_size // count * (number + 1)),)
        if sharding is not None:
            self.rows = rows_of(sharding, batch_size)
        self.make = _Make(examples, self.order, self.rows, tokens)
        self.threads = max(1, min(8, os.cpu_count() or 1)) if threads is None else threads
        self.workers = workers
        self.bad: Counter[str] = Counter()
        self.drawn = 0
        self.say: Callable[[str], None] = lambda text: None
        self.told: set[str] = set()

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches in an epoch; batch n belongs to epoch n // batches_per_epoch."""
        return self.order.batches_per_epoch

    def batch(self, n: int) -> Batch:
        """Makes and returns this process's rows of batch n. Bad records are not counted."""
        return self.make(n).batch

    def iterate(self, first: int = 0, last: int | None = None) -> Generator[Batch, None, None]:
        """Yields this process's rows of batches `first` to `last` (endless by default), made ahead.

        Raises TooManyBadPictures.
        """
        with contextlib.closing(
            ahead(
                self.make, first, last, threads=self.threads, depth=max(2, self.threads),
                workers=self._in_processes if self.workers else None,
            )
        ) as made:  # fmt: skip
            for one in made:
                self._count(one)
                yield one.batch

    def _in_processes(self, dataset: Any) -> Any:
        import grain

        _parse_absl_flags()
        options = grain.multiprocessing.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=2)
        return dataset.mp_prefetch(options, worker_init_fn=_leave_signals_to_the_main_process)

    def on_devices(
        self, sharding: Any, first: int = 0, last: int | None = None, depth: int = 2
    ) -> Generator[Batch, None, None]:
        """Yields whole batches with their arrays on the devices of a sharding, `depth` batches ahead of their use.

        The sharding must split only the first axis, so that this process holds the rows of its devices. Texts stay
        lists, with this process's rows only.
        """
        ready: collections.deque[Batch] = collections.deque()
        with contextlib.closing(self.iterate(first, last)) as batches:
            for batch in batches:
                ready.append(self.put(batch, sharding))
                if len(ready) > depth:
                    yield ready.popleft()
        yield from ready

    def put(self, batch: Batch, sharding: Any) -> Batch:
        """Returns the batch with global arrays, of which this process holds its rows."""
        import jax

        held = np.concatenate([np.arange(*rows) for rows in self.rows])

        def whole(value: np.ndarray) -> jax.Array:
            def part(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None
                first, end, _ = index[0].indices(self.batch_size)
                return value[np.searchsorted(held, first) : np.searchsorted(held, end)]

            return jax.make_array_from_callback((self.batch_size, *value.shape[1:]), sharding, part)

        return {name: whole(value) if isinstance(value, np.ndarray) else value for name, value in batch.items()}

    def summary(self) -> list[str]:
        """Returns lines that describe the batches and the records that are left out."""
        sizes = Counter[tuple[int, ...]]()
        for stream in self.examples.streams:
            sizes[stream.size] += len(stream.members)
        listed = ", ".join(f"{' x '.join(map(str, size))}: {n}" for size, n in sorted(sizes.items()))
        lines = [
            f"{sum(sizes.values())} records, {self.batches_per_epoch} batches of {self.batch_size} an epoch ({listed})"
        ]
        lines += [f"{number} records left out: {reason}" for reason, number in self.examples.left_out.items()]
        return lines + list(self.examples.notices)

    def _count(self, made: Made) -> None:
        self.drawn += len(made.batch["key"]) + len(made.bad)
        self.bad.update(re.sub(r"\d+", "N", reason) for _, reason in made.bad)
        for place, reason in made.bad:
            if place not in self.told and len(self.told) < NAMED:
                self.told.add(place)
                more = ", and further ones are only counted" if len(self.told) == NAMED else ""
                self.say(f"passed over: {place}: {reason}{more}")
        last = f", the last of them {made.bad[-1][0]}: {made.bad[-1][1]}" if made.bad else ""
        check_bad(self.bad, self.drawn, self.bad_limit, f"{self.drawn} records", last)


class _Make:
    """Makes a process's rows of batch n. It is pickled into worker processes."""

    def __init__(
        self, examples: Examples, order: Order, rows: tuple[tuple[int, int], ...], tokens: Tokens | None
    ):  # fmt: skip
        self.examples, self.order, self.rows, self.tokens = examples, order, rows, tokens

    def __call__(self, n: int) -> Made:
        bad: list[tuple[str, str]] = []
        loaded = [
            self._load(n, at, bad)
            for rows in self.rows
            for at in zip(itertools.count(rows[0]), self.order.batch(n, *rows))
        ]
        batch: Batch = {}
        for name in loaded[0]:
            values = [example[name] for example in loaded]
            batch[name] = np.stack(values) if isinstance(values[0], np.ndarray) else values
        if self.tokens is not None:
            batch["ids"] = np.asarray(self.tokens(batch["caption"]))
        return Made(batch, bad)

    def _load(self, n: int, at: tuple[int, Row], bad: list[tuple[str, str]]) -> dict[str, Any]:
        number, row = at
        for attempt in range(ATTEMPTS):
            try:
                return self.examples.load(row.part, row.index, row.size, row.visit, self.order.seed)
            except BadPicture as error:
                bad.append((self.examples.place(row.part, row.index), str(error)))
                row = self.order.instead(n, number, attempt)
        raise TooManyBadPictures(
            f"{ATTEMPTS} records in a row could not be used, the last of them {bad[-1][0]}: {bad[-1][1]}"
        )


def _leave_signals_to_the_main_process(worker: int, count: int) -> None:
    """Ignores Ctrl-C and SIGTERM, which reach the whole group: the main process needs batches until it has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def rows_of(sharding: Any, batch_size: int) -> tuple[tuple[int, int], ...]:
    """Returns which rows of a batch this process's devices hold, as ranges (first, end) in order."""
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    ranges = sorted({rows.indices(batch_size)[:2] for (rows,) in held})
    joined: list[tuple[int, int]] = []
    for first, end in ranges:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((first, end))
    return tuple(joined)


def _parse_absl_flags() -> None:
    """Parses absl's flags, which grain's worker processes read, if absl did not start the program."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
