"""Holes for training an inpainting model: unions of rectangles and brush strokes, drawn by each example's key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from sdjax.train.objectives.draws import HOLES
from sdjax.typing import Key, Keys

SHAPES = 4  # at most, of each kind
POINTS = 4  # of a stroke
SIDES = (0.1, 0.6)  # of a rectangle, as shares of the picture's
WIDTHS = (0.04, 0.16)  # of a stroke, as shares of the picture's shorter side


def random_holes(keys: Keys, height: int, width: int, whole: float) -> Bool[Array, "b h w"]:
    """Returns one hole an example, true where the picture is hidden.

    With probability `whole` the hole is the whole picture, so that the inpainting model also learns text to image
    (Stable Diffusion used a quarter). Otherwise it is 0 to 4 rectangles and 0 to 4 strokes, at least one in all, at
    random places.
    """
    y = (jnp.arange(height) + 0.5)[:, None]
    x = (jnp.arange(width) + 0.5)[None]
    size = jnp.array([height, width], jnp.float32)

    def one(key: Key) -> Array:
        counts, all_of_it, corners, sides, paths, widths = jax.random.split(jax.random.fold_in(key, HOLES), 6)
        total = jax.random.randint(counts, (), 1, (SHAPES + 1) ** 2)  # 0 would mean no shape at all
        boxes, strokes = total // (SHAPES + 1), total % (SHAPES + 1)
        extent = size * jax.random.uniform(sides, (SHAPES, 2), minval=SIDES[0], maxval=SIDES[1])
        start = jax.random.uniform(corners, (SHAPES, 2)) * size - extent / 2  # its middle lies in the picture
        points = size * jax.random.uniform(paths, (SHAPES, POINTS, 2))
        radius = 0.5 * min(height, width) * jax.random.uniform(widths, (SHAPES,), minval=WIDTHS[0], maxval=WIDTHS[1])

        def add(i: jax.Array, hole: Array) -> Array:
            (top, left), (tall, wide) = start[i], extent[i]
            box = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
            near = [_distance(y, x, points[i, j], points[i, j + 1]) <= radius[i] for j in range(POINTS - 1)]
            return hole | (box & (i < boxes)) | (jnp.stack(near).any(0) & (i < strokes))

        hole = jax.lax.fori_loop(0, SHAPES, add, jnp.zeros([height, width], bool))
        return hole | (jax.random.uniform(all_of_it) < whole)

    return jax.vmap(one)(keys)


def _distance(y: Array, x: Array, start: Array, end: Array) -> Array:
    """Returns how far points lie from the segment between two others."""
    dy, dx = end - start
    along = ((y - start[0]) * dy + (x - start[1]) * dx) / jnp.maximum(dy**2 + dx**2, 1e-6)
    along = jnp.clip(along, 0, 1)
    return jnp.hypot(y - start[0] - along * dy, x - start[1] - along * dx)
