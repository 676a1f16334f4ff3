"""Sampling in windows: the network sees overlapping parts of a large latent, and their predictions are averaged.

So a network draws pictures of any size, such as wide panoramas, in the size it was trained on. Plain averages are
MultiDiffusion. Averages with weights that fall off towards a window's border are mixture of diffusers. (MultiDiffusion
averages the latents after a step. For a step that is linear in the prediction this is the same.)

Source: Bar-Tal et al. 2023, "MultiDiffusion" (arXiv 2302.08113), eq. 5; Barbero Jimenez 2023, "Mixture of Diffusers"
(arXiv 2302.02412), section 3.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from sdjax.adapters.patch import Patch, Placed
from sdjax.checks.arguments import whole
from sdjax.config import UNetConfig
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.network import Network, UNetNetwork
from sdjax.samplers.rule import Memory, Noisy
from sdjax.samplers.sampler import choose
from sdjax.typing import Params, Timestep

SMALLEST_WINDOW = 64  # pixels
BLENDS = ("mean", "gaussian")
VARIANCE = 0.01  # of the bell curve, where a window's side is 1: the weight is e^-12.5 at the border


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of `side` x `side` entries of a latent, neighbours sharing at least `overlap`; `blend`: one of BLENDS."""

    side: int
    overlap: int
    blend: str = "mean"

    def split(self, height: int, width: int) -> tuple[bool, bool]:
        """Returns whether a latent is larger than a window, along y and along x."""
        return height > self.side, width > self.side


def make_network(
    unet: UNetConfig, dtype: str, patches: Sequence[Patch], size: tuple[int, int], windows: Windows | None,
    seamless: str | None,
) -> Network:  # fmt: skip
    """Returns the network for latents of `size` (height, width), in windows if they are given.

    A latent that is `seamless` along an axis continues over its edges: in the windows if that axis is divided, else in
    the network's convolutions.
    """
    divided = (False, False) if windows is None else windows.split(*size)
    wrap = "".join(axis for axis, several in zip("yx", divided) if several and axis in (seamless or ""))
    rest = "".join(axis for axis in "xy" if axis in (seamless or "") and axis not in wrap)
    network = UNetNetwork(unet, dtype, tuple(patches), rest)
    return network if windows is None else WindowedNetwork(network, windows, wrap, tuple(patches))


@dataclasses.dataclass(frozen=True)
class WindowedNetwork:
    """A network that is called once for each window, one window after the other.

    `wrap` are the axes ("", "x", "y", "xy") along which windows continue over the edge of the latent. `patches` are
    the network's: those that are `Placed` get the arrays of the window. A network with memory has one for each window.
    """

    network: Network
    windows: Windows
    wrap: str = ""
    patches: tuple[Patch, ...] = ()

    def init(self, params: Params, x: Noisy) -> Memory:
        """Returns the network's memory for each window, with the axes [b, windows, ...]."""
        rows, columns = self._places(x.shape)
        of_one = self.network.init(params, x[:, : rows.shape[1], : columns.shape[1]])
        return jax.tree.map(lambda a: jnp.repeat(a[:, None], len(rows), axis=1), of_one)

    def _places(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows [k, side] and the columns [k, side] of each window of a latent [b, h, w, c]."""
        _, h, w, _ = shape
        sides = [min(side, self.windows.side) for side in (h, w)]
        tops, lefts = (
            starts(length, side, self.windows.overlap, axis in self.wrap)
            for length, side, axis in zip((h, w), sides, "yx")
        )
        rows = (tops[:, None] + np.arange(sides[0])) % h  # [m, side]
        columns = (lefts[:, None] + np.arange(sides[1])) % w
        pairs = np.stack(np.meshgrid(np.arange(len(rows)), np.arange(len(columns)), indexing="ij"), -1).reshape(-1, 2)
        return rows[pairs[:, 0]], columns[pairs[:, 1]]

    def __call__(
        self, params: Params, x: Noisy, t: Timestep, conditioning: Conditioning, memory: Memory
    ) -> tuple[Noisy, Memory]:
        """Returns the average of the windows' predictions."""
        _, h, w, _ = x.shape
        places = self._places(x.shape)

        def one(place: tuple[jax.Array, jax.Array, Memory]) -> tuple[jax.Array, Memory]:
            rows, columns, own = place
            cut = functools.partial(_cut, rows, columns)
            part = conditioning
            if part.concat is not None:
                part = dataclasses.replace(part, concat=cut(part.concat))
            if part.patches:
                arrays = zip(self.patches, part.patches, strict=True)
                part = dataclasses.replace(part, patches=tuple(_cut_arrays(*pair, rows, columns) for pair in arrays))
            return self.network(params, cut(x), t, part, own)

        swapped = jax.tree.map(lambda a: a.swapaxes(0, 1), memory)
        made, kept = jax.lax.map(one, (*places, swapped))  # [k, b, side, side, c]
        weight = weights(places[0].shape[1], places[1].shape[1], self.windows.blend)
        at = (places[0][:, :, None], places[1][:, None, :])
        total = np.zeros((h, w), np.float32)
        np.add.at(total, at, weight)
        shape = (h, w, made.shape[1], made.shape[-1])
        summed = jnp.zeros(shape).at[at].add(jnp.moveaxis(made, 1, 3) * weight[:, :, None, None])
        out = jnp.moveaxis(summed / total[:, :, None, None], 2, 0)
        return out, jax.tree.map(lambda a: a.swapaxes(0, 1), kept)


def starts(length: int, side: int, overlap: int, wrap: bool) -> np.ndarray:
    """Returns where windows of `side` begin along an axis, int [m], evenly spread; neighbours share `overlap`."""
    if side >= length:
        return np.zeros(1, int)
    step = side - overlap
    if wrap:
        count = math.ceil(length / step)
        return np.arange(count) * length // count
    count = math.ceil((length - side) / step) + 1
    return np.round(np.linspace(0, length - side, count)).astype(int)


def weights(height: int, width: int, blend: str) -> np.ndarray:
    """Returns a window's weights, float32 [height, width], at most 1."""
    if blend == "mean":
        return np.ones((height, width), np.float32)
    across = [np.exp(-np.square((np.arange(n) + 0.5) / n - 0.5) / (2 * VARIANCE)) for n in (height, width)]
    return np.asarray(np.outer(*across), np.float32)


def _cut_arrays(patch: Patch, own: PyTree, rows: jax.Array, columns: jax.Array) -> PyTree:
    return patch.cut(own, rows, columns) if isinstance(patch, Placed) else own


def _cut(rows: jax.Array, columns: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.take(jnp.take(x, rows, axis=1), columns, axis=2)


def check_windows(window: int | None, overlap: int | None, blend: str) -> dict[str, Any]:
    """Returns the three fields. Raises ValueError for values out of range, and for an overlap without a window."""
    choose("window_blend", blend, BLENDS)
    if window is None:
        if overlap is not None:
            raise ValueError("window_overlap has no effect without window: give window too, or leave it out")
        return {}
    window = whole("window", window, SMALLEST_WINDOW, context=" (pixels)")
    if overlap is not None:
        overlap = whole("window_overlap", overlap, 0, window - 1, context=" (pixels, less than window)")
    return {"window": window, "window_overlap": overlap}
