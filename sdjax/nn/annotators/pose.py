"""OpenPose's networks: convolutional pose machines that find the joints of bodies, hands and faces.

Names are those of body_pose_model.pth, hand_pose_model.pth and facenet.pth. Source: Cao et al. 2017 (arXiv 1611.08050),
Simon et al. 2017 (arXiv 1704.07809), and controlnet_aux/open_pose (model.py, face.py).
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.nn.layers.conv import POINT, Conv, Padding
from sdjax.typing import Map, NewMap

STRIDE = 8  # pixels of the picture for each position of the maps
STAGES = 6
WIDE: Padding = ((3, 3), (3, 3))  # padding of 7x7 kernels


@dataclasses.dataclass(frozen=True)
class PoseConfig:
    """`maps`: the channels of each branch's result. A body has two branches: limbs, as vectors, and joints.

    `widths` are the channels of the four levels before the stages, `features` those that the stages work with, `hidden`
    those in the first stage. The defaults are those of the released files.
    """

    maps: tuple[int, ...] = (38, 19)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    features: int = 128
    hidden: int = 512

    @property
    def is_body(self) -> bool:
        """Whether it is the network of bodies, whose branches have names of their own."""
        return len(self.maps) == 2


class PoseNetwork(nn.Module):
    """Returns each branch's maps [b, h/8, w/8, maps] of pictures [b, h, w, 3] in BGR, p / 256 - 0.5.

    The last maps of a body's joints are rectified, as in the released code. Sides are at least 8 pixels.
    """

    config: PoseConfig

    @nn.compact
    def __call__(self, picture: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b _ _ _"], ...]:
        c = self.config
        x = picture
        for layer in _feature_layers(c):
            x = nn.max_pool(x, (2, 2), (2, 2)) if layer is None else jax.nn.relu(Conv(layer[1], name=layer[0])(x))
        features = x  # [b, h/8, w/8, features]
        maps: tuple[Map, ...] = ()
        for stage in range(1, STAGES + 1):
            maps = tuple(_branch(c, x, stage, branch) for branch in range(len(c.maps)))
            x = jnp.concatenate([*maps, features], axis=-1)
        return (maps[0], jax.nn.relu(maps[1])) if c.is_body else maps


def _feature_layers(c: PoseConfig) -> Sequence[tuple[str, int] | None]:
    """Returns names and widths of the convolutions before the stages, in their order; None is a pooling."""
    layers: list[tuple[str, int] | None] = []
    for level, (width, count) in enumerate(zip(c.widths, (2, 2, 4)), start=1):
        layers += [(f"conv{level}_{i}", width) for i in range(1, count + 1)]
        layers.append(None)
    middle, coarse = c.widths[2:]
    if c.is_body:
        rest = [("conv4_1", coarse), ("conv4_2", coarse), ("conv4_3_CPM", middle), ("conv4_4_CPM", c.features)]
    else:
        names = ("conv4_1", "conv4_2", "conv4_3", "conv4_4", "conv5_1", "conv5_2")
        rest = [*((name, coarse) for name in names), ("conv5_3_CPM", c.features)]
    return [*layers, *rest]


def _branch(c: PoseConfig, x: Map, stage: int, branch: int) -> NewMap:
    """Returns one branch's maps of a stage, from what all stages see and the maps of the stage before."""
    ending = f"_L{branch + 1}" if c.is_body else ""
    if stage > 1:
        prefix, ending, small = "Mconv", f"_stage{stage}{ending}", 5
        widths, size, padding = [c.features] * 6, (7, 7), WIDE
    else:
        prefix, ending, small = ("conv5_", f"_CPM{ending}", 3) if c.is_body else ("conv6_", "_CPM", 0)
        widths, size, padding = [c.features] * small + [c.hidden], (3, 3), ((1, 1), (1, 1))
    for i, width in enumerate(widths, start=1):
        kernel, around = (size, padding) if i <= small else ((1, 1), POINT)
        x = jax.nn.relu(Conv(width, kernel, padding=around, name=f"{prefix}{i}{ending}")(x))
    return Conv(c.maps[branch], (1, 1), padding=POINT, name=f"{prefix}{len(widths) + 1}{ending}")(x)
