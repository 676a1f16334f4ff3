"""Inception v3 as FID uses it: TensorFlow's network of 2015-12-05, which differs from the published and torchvision's.

Its average poolings leave the padding out, and its last block has a max pooling instead. Names are torchvision's, as
in pytorch-fid's file. Source: Szegedy et al. 2015 (arXiv 1512.00567); mseitzer/pytorch-fid, inception.py.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.nn.layers.conv import Conv
from sdjax.nn.layers.norm import BatchNorm
from sdjax.typing import Embedding, Image, Map, NewMap

SIZE = 299  # pixels of a side
SMALLEST = 75  # of a side that leaves a pixel
EPSILON = 1e-3


@dataclasses.dataclass(frozen=True)
class InceptionConfig:
    """The published network has `divisor` 1: all widths are divided by it, which makes small networks for tests."""

    num_classes: int = 1008
    divisor: int = 1


class Step(NamedTuple):
    """A convolution: the end of its name, its width (of the published network), kernel, stride, and whether padded."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


_ACROSS, _DOWN = (1, 7), (7, 1)
_STEM = (
    (Step("Conv2d_1a_3x3", 32, (3, 3), 2, False), Step("Conv2d_2a_3x3", 32, (3, 3), 1, False),
     Step("Conv2d_2b_3x3", 64, (3, 3))),
    (Step("Conv2d_3b_1x1", 80), Step("Conv2d_4a_3x3", 192, (3, 3), 1, False)),
)  # fmt: skip


class Convolution(nn.Module):
    """Convolution without bias, norm, ReLU."""

    step: Step
    divisor: int

    @nn.compact
    def __call__(self, x: Map) -> NewMap:
        step = self.step
        around = tuple((side // 2, side // 2) if step.padded else (0, 0) for side in step.kernel)
        width = step.width // self.divisor
        strides = (step.stride, step.stride)
        x = Conv(width, step.kernel, strides, (around[0], around[1]), use_bias=False, name="conv")(x)
        return jax.nn.relu(BatchNorm(EPSILON, name="bn")(x))


class Branches(nn.Module):
    """Runs branches of convolutions and a pooling beside each other. Returns their channels one after the other.

    The steps of a branch follow each other; the last ones may be a tuple, which run beside each other again. `pool` is
    "average" or "max", of the same size and followed by a convolution to `pooled` channels, or "shrink", a max pooling
    that halves.
    """

    branches: tuple[tuple[Step | tuple[Step, ...], ...], ...]
    pool: str
    pooled: int
    divisor: int

    @nn.compact
    def __call__(self, x: Map) -> NewMap:
        out = []
        for branch in self.branches:
            y = x
            for step in branch:
                steps = (step,) if isinstance(step, Step) else step
                y = jnp.concatenate([Convolution(one, self.divisor, name=one.name)(y) for one in steps], -1)
            out.append(y)
        if self.pool == "shrink":
            return jnp.concatenate([*out, nn.max_pool(x, (3, 3), (2, 2))], -1)
        y = average(x) if self.pool == "average" else nn.max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)))
        return jnp.concatenate([*out, Convolution(Step("", self.pooled), self.divisor, name="branch_pool")(y)], -1)


def average(x: Map) -> Map:
    """Returns the mean of every position and its neighbours, of those inside the map."""
    return nn.avg_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)), count_include_pad=False)


def _wide(pooled: int, divisor: int, name: str) -> Branches:
    return Branches((
        (Step("branch1x1", 64),),
        (Step("branch5x5_1", 48), Step("branch5x5_2", 64, (5, 5))),
        (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3))),
    ), "average", pooled, divisor, name=name)  # fmt: skip


def _long(width: int, divisor: int, name: str) -> Branches:
    return Branches((
        (Step("branch1x1", 192),),
        (Step("branch7x7_1", width), Step("branch7x7_2", width, _ACROSS), Step("branch7x7_3", 192, _DOWN)),
        (Step("branch7x7dbl_1", width), Step("branch7x7dbl_2", width, _DOWN), Step("branch7x7dbl_3", width, _ACROSS),
         Step("branch7x7dbl_4", width, _DOWN), Step("branch7x7dbl_5", 192, _ACROSS)),
    ), "average", 192, divisor, name=name)  # fmt: skip


def _split(pool: str, divisor: int, name: str) -> Branches:
    def ends(before: str) -> tuple[Step, Step]:
        return Step(f"{before}a", 384, (1, 3)), Step(f"{before}b", 384, (3, 1))

    return Branches((
        (Step("branch1x1", 320),),
        (Step("branch3x3_1", 384), ends("branch3x3_2")),
        (Step("branch3x3dbl_1", 448), Step("branch3x3dbl_2", 384, (3, 3)), ends("branch3x3dbl_3")),
    ), pool, 192, divisor, name=name)  # fmt: skip


def _first_shrink(divisor: int, name: str) -> Branches:
    return Branches((
        (Step("branch3x3", 384, (3, 3), 2, False),),
        (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)),
         Step("branch3x3dbl_3", 96, (3, 3), 2, False)),
    ), "shrink", 0, divisor, name=name)  # fmt: skip


def _second_shrink(divisor: int, name: str) -> Branches:
    return Branches((
        (Step("branch3x3_1", 192), Step("branch3x3_2", 320, (3, 3), 2, False)),
        (Step("branch7x7x3_1", 192), Step("branch7x7x3_2", 192, _ACROSS), Step("branch7x7x3_3", 192, _DOWN),
         Step("branch7x7x3_4", 192, (3, 3), 2, False)),
    ), "shrink", 0, divisor, name=name)  # fmt: skip


class Inception(nn.Module):
    """Returns the pooled features [b, 2048] and the logits [b, 1008], float32, of images in [-1, 1].

    The logits have no bias, as the inception score takes them (openai/improved-gan, inception_score/model.py); the
    bias is a parameter all the same. Images have `SIZE` pixels a side. Raises ValueError below `SMALLEST`.
    """

    config: InceptionConfig

    @nn.compact
    def __call__(self, image: Image) -> tuple[Embedding, Float[Array, "b k"]]:
        if min(image.shape[1:3]) < SMALLEST:
            raise ValueError(f"Inception takes at least {SMALLEST} pixels a side; got {image.shape[1:3]}")
        d, x = self.config.divisor, image
        for group in _STEM:
            for step in group:
                x = Convolution(step, d, name=step.name)(x)
            x = nn.max_pool(x, (3, 3), (2, 2))
        for letter, pooled in zip("bcd", (32, 64, 64)):
            x = _wide(pooled, d, f"Mixed_5{letter}")(x)
        x = _first_shrink(d, "Mixed_6a")(x)
        for letter, width in zip("bcde", (128, 160, 160, 192)):
            x = _long(width, d, f"Mixed_6{letter}")(x)
        x = _second_shrink(d, "Mixed_7a")(x)
        for letter, pool in zip("bc", ("average", "max")):
            x = _split(pool, d, f"Mixed_7{letter}")(x)
        features = x.mean((1, 2))
        return features, Classifier(self.config.num_classes, name="fc")(features)


class Classifier(nn.Module):
    """Returns the logits without the bias, which is read but not used."""

    classes: int

    @nn.compact
    def __call__(self, x: Embedding) -> Float[Array, "b k"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.classes))
        self.param("bias", nn.initializers.zeros, (self.classes,))
        return x @ kernel
