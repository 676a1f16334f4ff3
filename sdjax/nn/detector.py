"""YOLOv8, a detector of objects, in all its sizes: it finds faces, hands or persons, whatever it was trained for.

The network divides a picture into cells of 8, 16 and 32 pixels. Each cell says how likely every class of object is
there, and how far its box reaches to all four sides.

Names are those of the published files, `model.0.conv.weight` and so on. Source: ultralytics/cfg/models/v8/yolov8.yaml,
ultralytics/nn/modules.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.nn.layers.conv import POINT, Conv
from sdjax.nn.layers.norm import BatchNorm
from sdjax.typing import Image, Map

EPSILON = 1e-3  # of the norms
BINS = 16  # distances from a cell's centre to a side, in cells, that a distribution is over
STRIDES = (8, 16, 32)  # pixels of a cell, of the three levels
STEP = STRIDES[-1]  # a picture's sides are multiples of this


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """The widths of the backbone's five levels and of the head's four blocks, blocks of each stage, and classes."""

    widths: tuple[int, int, int, int, int]
    head: tuple[int, int, int, int]
    repeats: tuple[int, int, int, int, int, int, int, int]
    num_classes: int


class Block(nn.Module):
    """Convolution, norm, SiLU."""

    features: int
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "b h2 w2 d"]:
        around = ((1, 1), (1, 1)) if self.size == 3 else POINT
        strides = (self.stride, self.stride)
        x = Conv(self.features, (self.size, self.size), strides, around, use_bias=False, name="conv")(x)
        return jax.nn.silu(BatchNorm(EPSILON, name="bn")(x))


class Bottleneck(nn.Module):
    """Two convolutions; with `residual` their result is added to the input."""

    residual: bool

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "b h w c"]:
        y = Block(x.shape[-1], name="cv2")(Block(x.shape[-1], name="cv1")(x))
        return x + y if self.residual else y


class Stage(nn.Module):
    """Halves of a map, and what each of `repeats` bottlenecks makes of the last one, all put together ("C2f")."""

    features: int
    repeats: int
    residual: bool

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "b h w d"]:
        maps = jnp.split(Block(self.features // 2 * 2, 1, name="cv1")(x), 2, axis=-1)
        for i in range(self.repeats):
            maps.append(Bottleneck(self.residual, name=f"m_{i}")(maps[-1]))
        return Block(self.features, 1, name="cv2")(jnp.concatenate(maps, axis=-1))


class Pooling(nn.Module):
    """A map and its maxima over 5, 9 and 13 cells, put together ("SPPF")."""

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "b h w c"]:
        maps = [Block(x.shape[-1] // 2, 1, name="cv1")(x)]
        for _ in range(3):
            maps.append(nn.max_pool(maps[-1], (5, 5), padding=((2, 2), (2, 2))))
        return Block(x.shape[-1], 1, name="cv2")(jnp.concatenate(maps, axis=-1))


class Predictor(nn.Module):
    """Two blocks and a 1x1 convolution."""

    width: int
    features: int

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "b h w d"]:
        x = Block(self.width, name="1")(Block(self.width, name="0")(x))
        return Conv(self.features, (1, 1), padding=POINT, name="2")(x)


class Head(nn.Module):
    """Returns the boxes [b, n, 4] (left, top, right, bottom, in pixels) and classes' shares [b, n, k] of all cells."""

    num_classes: int

    @nn.compact
    def __call__(self, maps: list[Array]) -> tuple[Float[Array, "b n 4"], Float[Array, "b n k"]]:
        first = maps[0].shape[-1]
        narrow, wide = max(16, first // 4, 4 * BINS), max(first, min(self.num_classes, 100))
        boxes, shares = [], []
        for i, (x, stride) in enumerate(zip(maps, STRIDES)):
            b, h, w, _ = x.shape
            spread = Predictor(narrow, 4 * BINS, name=f"cv2_{i}")(x).reshape(b, h * w, 4, BINS)
            sides = jax.nn.softmax(spread) @ jnp.arange(BINS, dtype=jnp.float32)  # the mean distance, in cells
            centre = jnp.stack(jnp.meshgrid(jnp.arange(w) + 0.5, jnp.arange(h) + 0.5), axis=-1).reshape(1, h * w, 2)
            boxes.append(stride * jnp.concatenate([centre - sides[..., :2], centre + sides[..., 2:]], axis=-1))
            classes = Predictor(wide, self.num_classes, name=f"cv3_{i}")(x)
            shares.append(jax.nn.sigmoid(classes).reshape(b, h * w, self.num_classes))
        return jnp.concatenate(boxes, axis=1), jnp.concatenate(shares, axis=1)


class Detector(nn.Module):
    """Returns the boxes [b, n, 4], in pixels, and the classes' shares [b, n, k], from 0 to 1, of an image in [0, 1].

    The sides of the image are multiples of 32.
    """

    config: DetectorConfig

    @nn.compact
    def __call__(self, image: Image) -> tuple[Float[Array, "b n 4"], Float[Array, "b n k"]]:
        c = self.config
        head = iter(zip(c.head, c.repeats[4:]))
        x, maps = Block(c.widths[0], stride=2, name="0")(image), []
        for i in range(4):
            x = Block(c.widths[i + 1], stride=2, name=f"{2 * i + 1}")(x)
            x = Stage(c.widths[i + 1], c.repeats[i], residual=True, name=f"{2 * i + 2}")(x)
            maps.append(x)
        deepest = Pooling(name="9")(x)

        def merged(name: str, *parts: Array) -> Array:
            width, repeats = next(head)
            return Stage(width, repeats, residual=False, name=name)(jnp.concatenate(parts, axis=-1))

        middle = merged("12", _doubled(deepest), maps[2])
        fine = merged("15", _doubled(middle), maps[1])
        middle = merged("18", Block(c.head[1], stride=2, name="16")(fine), middle)
        deepest = merged("21", Block(c.head[2], stride=2, name="19")(middle), deepest)
        return Head(c.num_classes, name="22")([fine, middle, deepest])


def _doubled(x: Array) -> Array:
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
