"""HED: soft edges at five scales. Names are those of ControlNetHED.pth.

Source: Xie and Tu 2015 (arXiv 1504.06375), and ControlNetHED_Apache2 in controlnet_aux/hed.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.nn.layers.conv import POINT, Conv
from sdjax.typing import Map, NewMap

LAYERS = (2, 2, 3, 3, 3)  # convolutions of each block


@dataclasses.dataclass(frozen=True)
class HEDConfig:
    """The channels of the five blocks. The defaults are those of the released file."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)


class EdgeBlock(nn.Module):
    """Returns features, and one map of edges from them."""

    width: int
    layers: int

    @nn.compact
    def __call__(self, x: Map) -> tuple[NewMap, Float[Array, "b h2 w2 1"]]:
        for i in range(self.layers):
            x = jax.nn.relu(Conv(self.width, name=f"convs_{i}")(x))
        return x, Conv(1, (1, 1), padding=POINT, name="projection")(x)


class HED(nn.Module):
    """Returns five maps of edges [b, h/2^i, w/2^i, 1] of pictures [b, h, w, 3] with levels 0 to 255, as logits.

    Sides are at least 16 pixels.
    """

    config: HEDConfig

    @nn.compact
    def __call__(self, picture: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ 1"]]:
        mean = self.param("norm", nn.initializers.zeros, (1, 3, 1, 1))
        x: Array = picture - jnp.transpose(mean, (0, 2, 3, 1))
        maps = []
        for i, (width, layers) in enumerate(zip(self.config.widths, LAYERS), start=1):
            if i > 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
            x, edges = EdgeBlock(width, layers, name=f"block{i}")(x)
            maps.append(edges)
        return maps
