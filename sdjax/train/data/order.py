"""The order of a training set's records. The records of batch n are computed from the seed and n alone.

An epoch shows the records of every stream, shuffled, as often as the stream's rate. All pictures of a batch have one
size. Records of a size that do not fill a last batch are dropped; each epoch drops others.
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
    """Records of one part and one size. An epoch shows ceil(rate * len(members)) of them, in a cycle."""

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
    """Batches of `batch_size` records of the streams. Raises ValueError if the records do not fill one batch."""

    def __init__(self, streams: Sequence[Stream], batch_size: int, seed: int):
        self.streams, self.batch_size, self.seed = list(streams), batch_size, seed
        sizes = list(dict.fromkeys(stream.size for stream in self.streams))
        self.groups = [[i for i, s in enumerate(self.streams) if s.size == size] for size in sizes]
        # slightly less, so that rounding errors in a rate do not add a record
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
        """Returns the replacement number `attempt` for row `row` of batch n, which could not be used."""
        epoch, group, _ = self._place(n)
        slot = _hash(self.seed, "instead", int(n), row, attempt) % self.slots[group]
        return self._rows(epoch, group, np.array([slot]))[0]

    def _place(self, n: int) -> tuple[int, int, int]:
        """Returns batch n's epoch, its group, and its first slot among the group's slots in the epoch."""
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
    """Returns the images of `places` under a random permutation of 0 ... length - 1, drawn from the key.

    Up to TABLE the permutation is a table, sorted by hashes. Above, it is a Feistel network over the next power of
    four, applied until the result is below `length` (Black & Rogaway 2002, Ciphers with arbitrary finite domains). So
    a large set needs no table. Both give the same numbers on every platform; NumPy does not promise this for its
    generators.
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
