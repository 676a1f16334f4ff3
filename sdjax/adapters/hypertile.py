"""HyperTile: self-attention in tiles of the map, in the levels with the largest maps.

Source: tfernd/HyperTile, from which other tools have it; the names of the settings are those of ComfyUI's node.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float

from sdjax.adapters.patch import Context, Interceptor
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
        inside = Inside()

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = inside.see(args, context)
            layer, _, name = path.rpartition("/")
            chosen = name == "attend" and inside.attends_to_itself(layer) and inside.at_level(path, self.levels)
            if not chosen:
                return method(*args, **kwargs)
            size = inside.sizes.around(path)
            least = self.tile_size // FACTOR * (2 ** inside.level(path) if self.scale_depth else 1)
            number_of_layer = sum(map(int, re.findall(r"\d+", layer)))
            parts = tuple(tiles(side, least, self.swap_size, number_of_layer) for side in size)
            return method(*args, **kwargs) if parts == (1, 1) else in_tiles(method, args[:3], size, parts)

        return intercept


def tiles(side: int, least: int, swap_size: int, number: int) -> int:
    """Returns into how many tiles a side is divided, of at least `least` places each. `number` chooses among several.

    The choices are the `swap_size` smallest divisors of the side.
    """
    divisors = [one for one in range(min(least, side), side + 1) if side % one == 0][:swap_size]
    return side // divisors[number % len(divisors)]


def in_tiles(
    attend: Callable[..., Array], qkv: tuple[Array, ...], size: tuple[int, int], parts: tuple[int, ...]
) -> Float[Array, "b n h d"]:
    """Returns `attend` of queries, keys and values [b, n, h, d] of maps of this size, in parts[0] x parts[1] tiles."""
    (height, width), (down, across) = size, parts
    b, n, heads, d = qkv[0].shape
    inner = (height // down, width // across)
    cut = [
        a.reshape(b, down, inner[0], across, inner[1], -1).swapaxes(2, 3).reshape(b * down * across, -1, heads, d)
        for a in qkv
    ]
    out = attend(*cut).reshape(b, down, across, *inner, -1).swapaxes(2, 3)
    return out.reshape(b, n, heads, d)
