"""Depth to image: pictures with the shapes of another picture. The network is conditioned on a depth map.

Depth is MiDaS's: it has no unit, and nearer things have larger numbers. Source: Stability-AI/stablediffusion,
scripts/gradio/depth2img.py, ldm/data/util.py (AddMiDaS), ldm/modules/midas/midas/transforms.py.
"""

from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sdjax import pictures
from sdjax.checks.hints import explains_arguments
from sdjax.config import DepthConfig
from sdjax.nn import DepthEstimator
from sdjax.nn.depth.dpt import network_size
from sdjax.nn.jax_settings import pinned
from sdjax.nn.layers.interpolation import interpolate
from sdjax.pictures.image import to_float
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline
from sdjax.purpose import check_task
from sdjax.tasks import inputs
from sdjax.tasks.batch import Batch
from sdjax.tasks.control_arrays import Seen
from sdjax.tasks.inputs import Pictures
from sdjax.tasks.make_batch import make_batch
from sdjax.tasks.request import Each, Options
from sdjax.tasks.resolve import SIDES
from sdjax.tasks.session import Making, Session, task
from sdjax.typing import Image, Params

CONSTANT = 4e-6  # up to this relative spread a map is flat: resizing a flat map in float32 makes such a spread

Depth = Float[np.ndarray, "h w"]


@task()
def depth_to_image(
    pipe: Pipeline,
    image: Pictures,
    prompt: str | Sequence[str] = "",
    *,
    depth_map: Pictures | None = None,
    strength: Each[float] = 0.9,
    **options: Unpack[Options],
) -> Session:
    """Returns pictures with the depth of the given ones: uint8 [b, h, w, 3], or a list of [h, w, 3] if sizes differ.

    `image`, `strength` and `options` are as for `sdjax.image_to_image`. Strength 1 keeps only the depth of a
    picture. Each result has its picture's size. Pictures are not resized: they are padded to multiples of 64 (at least
    128) by repeating their right and bottom edges, and the result is cropped. Pictures of one padded size form one
    batch.

    `depth_map` None estimates the depth. Otherwise give a path, bytes, Pillow image or real array [h, w], or a sequence
    of them, one for all pictures or one for each. Larger values are nearer, in any unit. A map must have its picture's
    aspect ratio.

    Raises ValueError if the model takes no depth, if a map is missing and the model has no depth network, for a map of
    another aspect ratio, if an input is not a picture or map, and whatever `sdjax.text_to_image` raises.
    """
    check_task(pipe.config, "depth_to_image", "depth")
    given = inputs.open_pictures(image)
    sizes = [picture.shape[:2] for picture in given]
    for size in sizes:
        check_workable(size)
    maps = None if depth_map is None else open_maps(depth_map, sizes)
    if maps is None and pipe.config.depth is None:
        raise ValueError(f"{WITHOUT}; give depth_map")
    padded = [inputs.pad(picture) for picture in given]
    inner = [picture.shape[:2] for picture in padded]
    seen = [Seen(pixels, whole=size, place=inputs.pad) for pixels, size in zip(padded, sizes)]
    batch = make_batch(pipe, prompt, options, sizes=inner, strength=strength).seeing(seen)
    inputs.check_seamless(batch.requests, [sizes[i] for i in batch.inputs], [inner[i] for i in batch.inputs])
    if maps is None:
        maps = _estimated(pipe, padded, batch.how.mesh, batch.how.parallel)
    else:
        maps = [inputs.pad(interpolate(m[None, ..., None], size, method="bicubic")[0]) for m, size in zip(maps, sizes)]

    def make(part: Batch) -> Making:
        height, width = part.size
        factor = pipe.config.vae.factor
        concat = part.spread(
            [prepare_depth(maps[i][None], (height // factor, width // factor))[0] for i in part.inputs]
        )
        # If sampling starts from pure noise, the picture need not be encoded
        x0 = part.encode([padded[i] for i in part.inputs]) if part.needs_x0 else None
        return part.finish((yield from part.sample(x0, part.noise(), part.conditionings(concat=concat))))

    def finish(i: int, made: np.ndarray) -> np.ndarray:
        height, width = sizes[batch.inputs[i]]
        return made[:height, :width]

    return Session(batch, make, finish)


WITHOUT = "this model has no depth network"


@explains_arguments()
@pinned()
def estimate_depth(
    pipe: Pipeline,
    image: Pictures,
    *,
    parallel: placement.Parallel = "jit",
    devices: Sequence[jax.Device] | None = None,
) -> list[Depth]:
    """Returns the depth of pictures, float32 [h, w] each, in the pictures' sizes. Values are >= 0; larger is nearer.

    `image` is as for `sdjax.image_to_image`. Raises ValueError if the model has no depth network, or if an input is not
    a picture.
    """
    if pipe.config.depth is None:
        raise ValueError(f"{WITHOUT}; load one from another file with sdjax.load(..., depth=PATH)")
    given = inputs.open_pictures(image)
    padded = [inputs.pad(picture) for picture in given]
    out = []
    for picture, whole, depth in zip(
        given, padded, _estimated(pipe, padded, placement.make_mesh(devices), parallel), strict=True
    ):
        height, width = picture.shape[:2]
        depth = interpolate(depth[None], whole.shape[:2], method="bicubic")[0, :height, :width, 0]
        out.append(np.maximum(depth, 0))  # the kernel overshoots
    return out


def prepare_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns depth [b, h, w, 1] as the UNet's input: resized to `size` (bicubic), then scaled to -1 ... 1 per picture.

    The formula is 2 (d - min) / (max - min) - 1. A flat map gives -1 everywhere. This is the result of the training
    formula, which adds 0.001 to the denominator; the reference's sampling divides 0 by 0.
    """
    depth = interpolate(np.asarray(depth, np.float32), size, method="bicubic")
    return 2 * _from_0_to_1(depth) - 1


def to_grey(depth: Depth) -> np.ndarray:
    """Returns a map as 16-bit grey, uint16 [h, w]: black is the farthest point, white the nearest."""
    return np.rint(_from_0_to_1(depth[None, ..., None])[0, ..., 0] * 65535).astype(np.uint16)


def _from_0_to_1(depth: np.ndarray) -> np.ndarray:
    low, high = depth.min((1, 2, 3), keepdims=True), depth.max((1, 2, 3), keepdims=True)
    spread = high - low
    flat = spread <= CONSTANT * np.maximum(np.abs(low), np.abs(high))
    return np.where(flat, np.float32(0), (depth - low) / np.where(flat, 1, spread)).astype(np.float32)


def open_maps(depth_map: Pictures, sizes: Sequence[tuple[int, int]]) -> list[Depth]:
    """Returns one map per picture. `sizes` are the pictures' (height, width); `depth_map` is one for all or one each.

    Raises ValueError if numbers or aspect ratios do not match, or if an input is not a map (`sdjax.pictures.open_map`).
    """
    opened = [pictures.open_map(one).values for one in inputs.several(depth_map, 2)]
    opened = inputs.one_each("depth map", opened, len(sizes))
    for one, size in zip(opened, sizes):
        check_aspect(one.shape, size)
    return opened


def check_aspect(depth: tuple[int, int], picture: tuple[int, int]) -> None:
    """Raises ValueError unless a map and a picture of these (height, width) have the same aspect ratio, to a pixel."""
    (h, w), (height, width) = depth, picture
    if abs(h * width - w * height) > max(h + w, height + width):  # more than rounding to whole pixels
        raise ValueError(
            f"a depth map must have its picture's aspect ratio; got a map of {w} x {h} for a picture of {width} x "
            f"{height}"
        )


def check_workable(size: tuple[int, int]) -> None:
    """Raises ValueError for a (height, width) that is too large."""
    if max(size) > SIDES[1]:
        raise ValueError(
            f"depth to image takes pictures of at most {SIDES[1]} x {SIDES[1]} pixels; got {size[1]} x {size[0]}: "
            "shrink it"
        )


def _estimated(
    pipe: Pipeline, padded: Sequence[np.ndarray], mesh: jax.sharding.Mesh, parallel: placement.Parallel
) -> list[np.ndarray]:
    """Returns the depth [h, w, 1] of pictures, in the sizes that the network works at."""
    config = pipe.config.depth
    assert config is not None
    groups: dict[tuple[int, int], list[int]] = {}
    for i, picture in enumerate(padded):
        groups.setdefault(network_size(config, picture.shape[:2]), []).append(i)
    run = placement.compiled(_estimate, (config, pipe.dtype), mesh, (False, True), parallel)
    maps: list[Any] = [None] * len(padded)
    for size, which in groups.items():
        filled = placement.fill(which, placement.parts(mesh))
        seen = np.concatenate([interpolate(to_float(padded[i])[None], size, method="bicubic") for i in filled])
        for i, depth in zip(which, np.asarray(run(pipe.on(mesh)["depth"], placement.split(seen, mesh)))):
            maps[i] = depth
    return maps


def _estimate(static: tuple[DepthConfig, str], params: Params, image: Image) -> jax.Array:
    config, dtype = static
    network = DepthEstimator(config, jnp.dtype(dtype))
    one = lambda image: network.apply({"params": params}, image[None])[0]  # noqa: E731
    return jax.lax.map(one, image)  # one at a time: half a gigabyte of maps each
