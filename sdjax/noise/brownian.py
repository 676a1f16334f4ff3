"""A Brownian path W(sigma) on a binary tree, with the numbers of torchsde's BrownianTree.

The path is fixed by its seed and its two ends. So W at a noise level does not depend on the steps that a sampler makes,
nor on their order. Between the ends, W at the middle of an interval is drawn from its distribution given both ends
(a Brownian bridge), again and again, until the middle is the wanted level. Levels are rounded to 6 decimals.

Source: Kidger et al. 2021 (arXiv 2105.13493), Brownian interval; k-diffusion's BrownianTreeNoiseSampler.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

DECIMALS = 6  # of the levels that the tree can tell apart
POOL = 24  # words in numpy's SeedSequence


@dataclasses.dataclass(frozen=True)
class BrownianTree:
    """The path of one picture from `low` to `high`. `randn(seed, shape)` returns unit normal numbers, float32.

    Levels are rounded to float32 first, as the tools that use such a path have them.
    """

    seed: int
    shape: tuple[int, ...]
    low: float
    high: float
    randn: Callable[[int, tuple[int, ...]], np.ndarray]

    def __call__(self, pairs: Sequence[tuple[float, float]]) -> np.ndarray:
        """Returns unit noise for each pair of levels (from, to), float32 [n, *shape].

        It is (W(to) - W(from)) / sqrt(|to - from|). Levels outside the path are moved to its nearer end. A pair of
        equal levels gives zeros.
        """
        pairs = [(float(np.float32(start)), float(np.float32(stop))) for start, stop in pairs]
        ends = [tuple(self._rounded(level) for level in pair) for pair in pairs]
        path = self._path({level for pair in ends for level in pair})
        out = np.zeros((len(ends), *self.shape), np.float32)
        for i, ((start, stop), pair) in enumerate(zip(ends, pairs, strict=True)):
            if pair[0] != pair[1]:
                out[i] = (path[stop] - path[start]) / math.sqrt(abs(pair[1] - pair[0]))
        return out

    def _rounded(self, level: float) -> float:
        low, high = self._ends
        return round(min(max(level, low), high), DECIMALS)

    @property
    def _ends(self) -> tuple[float, float]:
        return float(np.float32(self.low)), float(np.float32(self.high))

    def _path(self, levels: set[float]) -> dict[float, np.ndarray]:
        """Returns W at the levels, float64; W(low) is 0."""
        low, high = self._ends
        (word,) = np.random.SeedSequence(self.seed, pool_size=POOL).generate_state(1)
        whole = self.randn(int(word), self.shape).astype(np.float64) * math.sqrt(high - low)
        known = {round(low, DECIMALS): np.zeros(self.shape), round(high, DECIMALS): whole}
        self._split(round(low, DECIMALS), round(high, DECIMALS), 0, 0, levels - known.keys(), known)
        return known

    def _split(
        self, low: float, high: float, place: int, depth: int, levels: set[float], known: dict[float, np.ndarray]
    ) -> None:
        """Adds W at the `levels` between `low` and `high`, whose W are known. `place` counts intervals of a depth."""
        if not levels:
            return
        middle = round(0.5 * (high + low), DECIMALS)
        seeds = np.random.SeedSequence(self.seed, spawn_key=(place, depth), pool_size=POOL)
        noise = self.randn(int(seeds.generate_state(1)[0]), self.shape).astype(np.float64)
        share = (middle - low) / (high - low)
        mean = (1 - share) * known[low] + share * known[high]
        known[middle] = mean + math.sqrt((middle - low) * (high - middle) / (high - low)) * noise
        self._split(low, middle, 2 * place, depth + 1, {level for level in levels if level < middle}, known)
        self._split(middle, high, 2 * place + 1, depth + 1, {level for level in levels if level > middle}, known)
        if middle not in levels:
            del known[middle]  # a path of a large picture has thousands of such points
