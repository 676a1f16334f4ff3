"""Pictures of any size enlarged by an upscaler of the ESRGAN family, in windows that leave no seams.

A network is run stage by stage, and each stage in windows of the map that it gets. A window has a margin as wide as the
stage sees, so that the numbers inside are those of the whole map; only they are kept. At the edges of the map a window
ends where the map ends, because there the network pads with zeros. All windows of a map have one shape, so a stage is
compiled once. RRDBNet's stages are its head, its blocks and its tail: a block sees 15 pixels far, the whole network
more than 300. The compact network is one stage.

Maps between stages are in the computer's memory, and in the device's only if they are one window.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax.checks.arguments import dtype_name, whole
from sdjax.convert.parts.esrgan import LoadedESRGAN
from sdjax.nn.esrgan import (
    BLOCK_MARGIN,
    RRDB,
    TAIL_MARGIN,
    CompactConfig,
    CompactNet,
    RRDBConfig,
    RRDBNet,
    pixel_unshuffle,
)
from sdjax.nn.jax_settings import pinned
from sdjax.typing import Params

TILE = 512  # pixels: the side of a window without its margin

Map = Float[np.ndarray | Array, "h w _"]
NewMap = Float[np.ndarray | Array, "h2 w2 c2"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a network. `margin`: how many pixels it sees. `times`: how much it enlarges."""

    config: RRDBConfig | CompactConfig
    dtype: str
    part: Literal["head", "block", "tail", "compact"]
    margin: int
    times: int = 1

    def __call__(self, params: Params, *maps: Array) -> Array:
        """Returns the map that the stage makes of maps [h, w, c]."""
        inputs, dtype = [one[None].astype(self.dtype) for one in maps], jnp.dtype(self.dtype)
        module: Any
        if isinstance(self.config, CompactConfig):
            module = CompactNet(self.config, dtype)
        elif self.part == "block":
            module = RRDB(self.config, dtype)
        else:
            module = RRDBNet(self.config, dtype)
        method = self.part if self.part in ("head", "tail") else "__call__"
        made: Array = module.apply({"params": params}, *inputs, method=method)
        return made[0]


_run = jax.jit(Stage.__call__, static_argnums=0)


@pinned()
def enlarge_image(
    loaded: LoadedESRGAN,
    image: Float[np.ndarray, "h w 3"],
    *,
    tile: int = TILE,
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "h2 w2 3"]:
    """Returns an image in [0, 1] as many times as high and wide as the upscaler makes it, float32, not clipped.

    `tile`: the side in pixels of a window without its margin; the result does not depend on it. `progress(done, total)`
    counts windows of all stages. A picture whose sides are no multiples of the network's squares is extended by its
    mirror image, and the extension is cut off.
    """
    tile, dtype = whole("tile", tile, 16, context=" (pixels)"), dtype_name(dtype)
    c, (h, w) = loaded.config, image.shape[:2]
    params = _on_device(loaded, dtype)
    first = x = np.asarray(image, np.float32)
    if isinstance(c, CompactConfig):
        stages = [(Stage(c, dtype, "compact", c.margin, c.times), params)]
    else:
        padded = np.pad(first, ((0, -h % c.unshuffle), (0, -w % c.unshuffle), (0, 0)), mode="reflect")
        first = x = np.asarray(pixel_unshuffle(padded[None], c.unshuffle)[0])
        block = Stage(c, dtype, "block", BLOCK_MARGIN)
        stages = [
            (Stage(c, dtype, "head", 1), params),
            *((block, params[f"body_{i}"]) for i in range(c.num_blocks)),
            (Stage(c, dtype, "tail", TAIL_MARGIN, c.factor**c.doublings), params),
        ]
    side = max(tile // (c.unshuffle if isinstance(c, RRDBConfig) else 1), 8)
    total = sum(len(list(windows(x.shape[:2], _core(stage, side), stage.margin))) for stage, _ in stages)
    done = itertools.count(1)

    def note() -> None:
        if progress is not None:
            progress(next(done), total)

    made: Any = x
    for stage, own in stages:
        maps = [made, first] if stage.part == "tail" else [made]
        made = in_windows(
            functools.partial(_run, stage, own), maps, _core(stage, side), stage.margin, stage.times, note
        )
        if stage.part == "head":
            first = made
    return np.asarray(made, np.float32)[: h * c.times, : w * c.times]


def _core(stage: Stage, side: int) -> int:
    """Returns the side of a stage's window without its margin. The tail's is half, because its maps are larger."""
    return side // 2 if stage.part == "tail" else side


@functools.lru_cache(maxsize=2)
def _on_device(loaded: LoadedESRGAN, dtype: str) -> Params:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), loaded.params)


@dataclasses.dataclass(frozen=True)
class Window:
    """A window of a map, [top, top + height) and so on, and its inner part, which is kept."""

    outer: tuple[slice, slice]
    inner: tuple[slice, slice]

    def within(self, times: int) -> tuple[slice, slice]:
        """Returns where the inner part is in what a stage makes of the window."""
        starts = ((outer.start, inner) for outer, inner in zip(self.outer, self.inner))
        return tuple(slice(times * (i.start - start), times * (i.stop - start)) for start, i in starts)  # type: ignore[return-value]


def windows(size: tuple[int, int], core: int, margin: int) -> Iterator[Window]:
    """Yields windows of one shape whose inner parts cover a map of this size, row by row.

    An inner part has the side `core`, or that of the map if the map is not larger than such a window.
    """
    sides = [list(_intervals(length, core, margin)) for length in size]
    for (top, own_top), (left, own_left) in itertools.product(*sides):
        yield Window((top, left), (own_top, own_left))


def _intervals(length: int, core: int, margin: int) -> Iterator[tuple[slice, slice]]:
    whole = core + 2 * margin
    if whole >= length:
        yield slice(0, length), slice(0, length)
        return
    for begin in range(0, length, core):
        own = min(begin, length - core)
        start = min(max(own - margin, 0), length - whole)
        yield slice(start, start + whole), slice(own, own + core)


def in_windows(
    function: Callable[..., Array], maps: Sequence[Map], core: int, margin: int, times: int = 1,
    note: Callable[[], None] = lambda: None,
) -> NewMap:  # fmt: skip
    """Returns `function` of maps of one size, computed in windows. Its result is `times` as high and wide.

    `margin` is how far the function sees. `note` is called after each window.
    """
    h, w = maps[0].shape[:2]
    places = list(windows((h, w), core, margin))
    if len(places) == 1:
        made_at_once = function(*maps)
        note()
        return made_at_once
    out: np.ndarray | None = None
    for place in places:
        made = np.asarray(function(*(one[place.outer] for one in maps)))
        if out is None:
            out = np.empty((h * times, w * times, made.shape[-1]), made.dtype)
        rows, columns = (slice(times * side.start, times * side.stop) for side in place.inner)
        out[rows, columns] = made[place.within(times)]
        note()
    assert out is not None
    return out
