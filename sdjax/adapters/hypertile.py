"""HyperTile: self-attention in tiles of the map, in the levels with the largest maps.

Source: tfernd/HyperTile, from which other tools have it; the names of the settings are those of ComfyUI's node.
"""

import re
from dataclasses import dataclass

from jaxtyping import Array, Float

from sdjax.adapters.patch import Interceptor
from sdjax.adapters.self_attention import Attend, cut, joined, self_attention
from sdjax.adapters.spans import AsItIs, Inside, set_fields
from sdjax.checks.arguments import flag, whole
from sdjax.config import UNetConfig

FACTOR = 8  # pixels of a latent's entry
SMALLEST, LARGEST = 32, 8192  # tiles, in pixels
MOST_SWAPS = 128


@dataclass(frozen=True)
class HyperTile(AsItIs):
    """The settings of attention in tiles: in the first `levels` levels, each place attends to its own tile only.

    A tile's side is the smallest divisor of the map's side that has at least `tile_size` pixels at the first level.
    Deeper levels have tiles of as many places, which are twice as many pixels each time; with `scale_depth`, of twice
    as many places too. With `swap_size` above 1, layers take the smallest so many divisors in turn, so that the tiles'
    edges are not in one place everywhere. A tile as large as the map changes nothing. If a network has fewer levels,
    all of them are changed.

    Raises ValueError for values out of range.
    """

    tile_size: int = 256
    swap_size: int = 2
    levels: int = 1
    scale_depth: bool = False

    def __post_init__(self) -> None:
        wholes = {
            "tile_size": whole("tile_size", self.tile_size, SMALLEST, LARGEST, context=" (pixels)"),
            "swap_size": whole("swap_size", self.swap_size, 1, MOST_SWAPS),
            "levels": whole("levels", self.levels, 1),
        }
        set_fields(self, {**wholes, "scale_depth": flag("scale_depth", self.scale_depth)})

    def check(self, config: UNetConfig) -> None:
        """Does nothing: any network will do, as in other tools."""

    def intercept(self, shared: None = None, own: None = None) -> Interceptor:
        """Returns the interceptor of `.../attn1/attend`."""

        def changed(attend: Attend, qkv: tuple[Array, Array, Array], inside: Inside, path: str) -> Array:
            size = inside.sizes.around(path)
            least = self.tile_size // FACTOR * (2 ** inside.level(path) if self.scale_depth else 1)
            layer = sum(map(int, re.findall(r"\d+", path)))
            parts = tuple(tiles(side, least, self.swap_size, layer) for side in size)
            return attend(*qkv) if parts == (1, 1) else in_tiles(attend, qkv, size, parts)

        return self_attention(changed, self.levels)


def tiles(side: int, least: int, swap_size: int, number: int) -> int:
    """Returns into how many tiles a side is divided, of at least `least` places each. `number` chooses among several.

    The choices are the `swap_size` smallest divisors of the side.
    """
    divisors = [one for one in range(min(least, side), side + 1) if side % one == 0][:swap_size]
    return side // divisors[number % len(divisors)]


def in_tiles(
    attend: Attend, qkv: tuple[Array, ...], size: tuple[int, int], parts: tuple[int, ...]
) -> Float[Array, "b n h d"]:
    """Returns `attend` of queries, keys and values [b, n, h, d] of maps of this size, in parts[0] x parts[1] tiles."""
    heads, d = qkv[0].shape[-2:]
    tiles_of = [cut(a.reshape(len(a), *size, -1), parts) for a in qkv]
    out = attend(*(a.reshape(len(a), -1, heads, d) for a in tiles_of))
    return joined(out.reshape(tiles_of[0].shape), parts).reshape(qkv[0].shape)
