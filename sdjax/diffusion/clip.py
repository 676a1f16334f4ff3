"""Clips: the network sees the frames of an animation together, in overlapping windows if there are many.

Motion modules were trained on 16 frames and take at most 24 or 32. A longer clip is divided into windows, and the
predictions of a frame in several windows are averaged, so that only one window is in memory at a time. In a loop,
windows also lie over the end and the beginning.

Source: windows as in MultiDiffusion (`sdjax.diffusion.windows`), along time; shuffled noise: Qiu et al. 2023, FreeNoise
(arXiv 2310.15169), section 3.2.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.network import Network
from sdjax.diffusion.windows import starts
from sdjax.samplers.rule import Memory, Noisy
from sdjax.typing import Params, Timestep


@dataclasses.dataclass(frozen=True)
class FrameWindows:
    """Windows of `length` frames of a clip, neighbours sharing at least `overlap`. `loop`: the clip has no end."""

    frames: int
    length: int
    overlap: int
    loop: bool = False

    @property
    def size(self) -> int:
        """The number of frames in a window."""
        return min(self.frames, self.length)

    def places(self) -> Int[np.ndarray, "k n"]:
        """Returns the numbers of the frames in each window."""
        if self.loop and 1 < self.frames <= self.length:
            begins = np.array([0, self.frames // 2])  # the second has the end of the clip in its middle
        else:
            begins = starts(self.frames, self.size, self.overlap, self.loop)
        return (begins[:, None] + np.arange(self.size)) % self.frames


@dataclasses.dataclass(frozen=True)
class ClipNetwork:
    """A network for one clip: its batch holds the frames in order, with the branches of guidance of a frame together.

    The network is called once for each window, one window after the other. Raises ValueError for a network with memory
    and several windows. Each device of a `mesh` has its part of a window's frames.
    """

    network: Network
    windows: FrameWindows
    mesh: Mesh | None = None

    def init(self, params: Params, x: Noisy) -> Memory:
        """Returns the network's memory, if there is one window."""
        memory = self.network.init(params, x)
        if len(self.windows.places()) > 1 and jax.tree.leaves(memory):
            raise ValueError(
                "deep_cache and t_gate keep one set of features for each frame, and a clip in several windows has "
                "more: make a shorter clip, or leave them out"
            )
        return memory

    def __call__(
        self, params: Params, x: Noisy, t: Timestep, conditioning: Conditioning, memory: Memory
    ) -> tuple[Noisy, Memory]:
        """Returns the average of the windows' predictions."""
        frames, places = self.windows.frames, self.windows.places()
        k = x.shape[0] // frames
        if len(places) == 1:
            return self.network(params, x, t, conditioning, memory)
        entries = (places[..., None] * k + np.arange(k)).reshape(len(places), -1)  # of the batch

        def one(at: jax.Array) -> jax.Array:
            at_x, at_t, told = jax.tree.map(lambda a: self._spread(jnp.take(a, at, axis=0)), (x, t, conditioning))
            return self.network(params, at_x, at_t, told, memory)[0]

        made = jax.lax.map(one, entries)  # [windows, n k, h, w, c]
        count = np.bincount(entries.ravel(), minlength=frames * k).astype(np.float32)
        total = jnp.zeros((frames * k, *made.shape[2:])).at[entries].add(made)
        return total / count.reshape(-1, *[1] * (made.ndim - 2)), memory

    def _spread(self, a: jax.Array) -> jax.Array:
        if self.mesh is None:
            return a
        return jax.lax.with_sharding_constraint(a, NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0])))


def shuffled(frames: int, length: int, stride: int, seed: int) -> Int[np.ndarray, "n"]:
    """Returns for each frame the number of the frame whose noise it gets (FreeNoise).

    The first `length` frames have noise of their own. Every `stride` frames behind them get the noise of the `stride`
    frames that came `length` earlier, in another order.
    """
    out = np.arange(frames)
    order = np.random.default_rng(seed)
    for begin in range(length, frames, stride):
        source = order.permutation(out[begin - length : begin - length + stride])
        out[begin : begin + stride] = source[: len(out[begin : begin + stride])]
    return out
