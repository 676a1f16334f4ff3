"""The order of a training set's records: which of them batch n holds, by arithmetic on seed and n alone.

An epoch shows every stream's records, shuffled, as often as its rate says. Batches hold one size of pictures each; what
is left of a size when its batches are full is dropped, something else in each epoch.
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

ROUNDS = 8
TABLE = 2**14  # records


class Stream(NamedTuple):
    """Records of one part and one size; an epoch shows ceil(rate * len(members)) of them, going round."""

    part: int
    size: tuple[int, ...]
    members: np.ndarray  # the records' numbers in the part
    rate: float = 1.0


class Row(NamedTuple):
    """A record in a batch: shown for the `visit`-th time (from 0)."""

    part: int
    index: int  # type: ignore[assignment]  # of the record; tuple's method is hidden
    size: tuple[int, ...]
    visit: int


class Order:
    """Batches of `batch_size` records of streams. Raises ValueError if there is not one batch of them."""

    def __init__(self, streams: Sequence[Stream], batch_size: int, seed: int):
        self.streams, self.batch_size, self.seed = list(streams), batch_size, seed
        sizes = list(dict.fromkeys(stream.size for stream in self.streams))
        self.groups = [[i for i, s in enumerate(self.streams) if s.size == size] for size in sizes]
        # a hair below, so that a rate made by dividing does not ask for one record more
        self.shown = [math.ceil(stream.rate * len(stream.members) - 1e-9) for stream in self.streams]
        self.slots = [sum(self.shown[i] for i in group) for group in self.groups]
        self.ends = np.cumsum([slots // batch_size for slots in self.slots])
        self.sizes = [size for size, slots in zip(sizes, self.slots) if slots >= batch_size]  # that batches come in
        self.batches_per_epoch = int(self.ends[-1]) if len(self.ends) else 0
        if not self.batches_per_epoch:
            several = f", in {len(sizes)} sizes" if len(sizes) > 1 else ""
            raise ValueError(
                f"a batch of {batch_size} cannot be filled: an epoch shows {sum(self.slots)} pictures{several}; repeat "
                "them, or take smaller batches"
            )

    def batch(self, n: int, first: int = 0, last: int | None = None) -> list[Row]:
        """Returns rows `first` to `last` of batch n, all of one size."""
        epoch, group, start = self._place(n)
        rows = np.arange(start + first, start + (self.batch_size if last is None else last))
        return self._rows(epoch, group, permuted(rows, self.slots[group], self.seed, "slots", epoch, group))

    def instead(self, n: int, row: int, attempt: int) -> Row:
        """Returns what stands in for row `row` of batch n when it cannot be shown, nor what stood in before."""
        epoch, group, _ = self._place(n)
        slot = _hash(self.seed, "instead", int(n), row, attempt) % self.slots[group]
        return self._rows(epoch, group, np.array([slot]))[0]

    def _place(self, n: int) -> tuple[int, int, int]:
        """Returns batch n's epoch, its group, and which of the epoch's slots in the group is its first."""
        epoch, place = divmod(int(n), self.batches_per_epoch)
        place = int(permuted([place], self.batches_per_epoch, self.seed, "batches", epoch)[0])
        group = int(np.searchsorted(self.ends, place, side="right"))
        return epoch, group, (place - (int(self.ends[group - 1]) if group else 0)) * self.batch_size

    def _rows(self, epoch: int, group: int, slots: np.ndarray) -> list[Row]:
        streams = self.groups[group]
        ends = np.cumsum([self.shown[i] for i in streams])
        which = np.searchsorted(ends, slots, side="right")
        rows: dict[int, Row] = {}
        for k in np.unique(which):
            stream, i = self.streams[streams[k]], streams[k]
            mine = np.flatnonzero(which == k)
            counted = epoch * self.shown[i] + slots[mine] - (ends[k] - self.shown[i])
            visits, places = np.divmod(counted, len(stream.members))
            for visit in np.unique(visits):
                same = visits == visit
                there = permuted(places[same], len(stream.members), self.seed, "members", i, int(visit))
                for row, index in zip(mine[same], stream.members[there]):
                    rows[int(row)] = Row(stream.part, int(index), stream.size, int(visit))
        return [rows[i] for i in range(len(slots))]


def permuted(places: Sequence[int] | np.ndarray, length: int, *key: Any) -> np.ndarray:
    """Returns where a permutation of 0 ... length - 1 that is drawn from the key takes these places.

    Up to TABLE it is a table, sorted by hashes. Above, a Feistel network over the next power of four, walked until it
    comes back below `length` (Black & Rogaway 2002, Ciphers with arbitrary finite domains), so that no table of a large
    set is ever made. Both give the same numbers everywhere, which NumPy does not promise of its generators.
    """
    if length <= TABLE:
        return _table(length, *key)[np.asarray(places)]
    half = math.ceil((length - 1).bit_length() / 2)
    mask, bits = np.uint64((1 << half) - 1), np.uint64(half)
    keys = _round_keys(*key)
    result = np.array(places, np.uint64)
    walking = np.ones(result.shape, bool)
    while walking.any():
        left, right = result[walking] >> bits, result[walking] & mask
        for k in keys:
            left, right = right, left ^ (_mixed(right + k) & mask)
        result[walking] = left << bits | right
        walking[walking] = result[walking] >= length
    return result.astype(np.int64)


@functools.lru_cache(maxsize=128)
def _table(length: int, *key: Any) -> np.ndarray:
    first, second, *_ = _round_keys(*key)
    hashes = _mixed(_mixed(np.arange(length, dtype=np.uint64) + first) + second)
    return np.argsort(hashes, kind="stable")


def _mixed(x: np.ndarray) -> np.ndarray:
    """Returns 64 bits that each depend on all of x's: the finaliser of SplitMix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=4096)
def _round_keys(*key: Any) -> np.ndarray:
    digest = hashlib.shake_256(repr(key).encode()).digest(8 * ROUNDS)
    return np.frombuffer(digest, "<u8").astype(np.uint64)


def _hash(*key: Any) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
