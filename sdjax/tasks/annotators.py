"""Hints from networks: soft edges, line drawings, depth, and poses of bodies, hands and faces.

Each function takes the loaded networks by kind (sdjax.preprocessors.ANNOTATORS) and a picture uint8 [h, w, 3], and
returns uint8 [h, w, 3] of the same size. Sources: controlnet_aux's hed, lineart, midas and open_pose.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from sdjax import pictures
from sdjax.convert.parts.annotators import LoadedAnnotator
from sdjax.nn.annotators.pose import STRIDE
from sdjax.nn.depth.dpt import STEP
from sdjax.nn.jax_settings import pinned
from sdjax.nn.layers.interpolation import interpolate
from sdjax.nn.networks import NETWORKS
from sdjax.pictures import ndimage
from sdjax.pictures.hints import edges, filters, people, poses
from sdjax.pictures.image import to_float
from sdjax.typing import Params

Annotators = Mapping[str, LoadedAnnotator]
Picture = UInt8[np.ndarray, "h w 3"]

SMALLEST = {"hed": 16, "lineart": 8}  # pixels of a side that the networks need
RIDGE = 127.0  # level of soft edges above which a scribble is drawn
SAFE_LEVELS = 2
BOX = 368  # pixels: the height at which OpenPose's networks were trained
HAND_SCALES, HAND_SIDE = (0.5, 1.0, 1.5, 2.0), 128
HAND_BLUR, HAND_SIGMA, HAND_PEAK = 0.8, 3.0, 0.05
FACE_SIDE, FACE_PEAK = 384, 0.05
MOST_CLOSE = 6  # people whose hands and faces are looked at, the largest ones: each network runs for seconds
FEWEST_MISSED = 1e-6  # of a coordinate in pixels: smaller ones mean that a point was not found


def softedge(networks: Annotators, pixels: Picture, *, safe: bool = False) -> Picture:
    """Returns the mean of HED's five maps, as probabilities. `safe` rounds them to three levels."""
    padded = _padded(pixels, 1, SMALLEST["hed"])
    maps = [np.asarray(one)[0, ..., 0] for one in _run("hed", networks["hed"], padded.astype(np.float32))]
    height, width = padded.shape[:2]
    mean = np.mean([filters.resize(one, height, width, "linear") for one in maps], axis=0)
    edge = 1 / (1 + np.exp(-mean.astype(np.float64)))
    if safe:
        edge = (edge.astype(np.float32) * (SAFE_LEVELS + 1)).astype(np.int32) / SAFE_LEVELS
    return _cut(edges.to_rgb((edge * 255).clip(0, 255).astype(np.uint8)), pixels)


def scribble(networks: Annotators, pixels: Picture) -> Picture:
    """Returns a scribble along HED's edges."""
    return edges.to_rgb(edges.scribble_of(softedge(networks, pixels)[..., 0], RIDGE))


def lineart(networks: Annotators, pixels: Picture) -> Picture:
    """Returns a line drawing, white on black."""
    padded = _padded(pixels, 4, SMALLEST["lineart"])
    line = np.asarray(_run("lineart", networks["lineart"], padded.astype(np.float32) / 255))[0, ..., 0]
    return _cut(edges.to_rgb(255 - (line * 255).clip(0, 255).astype(np.uint8)), pixels)


def depth(networks: Annotators, pixels: Picture) -> Picture:
    """Returns depth between the nearest point, white, and the farthest, black."""
    share = _from_0_to_1(_depth(networks, pixels))
    return edges.to_rgb((share * 255).clip(0, 255).astype(np.uint8))


def normal(networks: Annotators, pixels: Picture, *, background: float, strength: float) -> Picture:
    """Returns the direction of surfaces as colours: (x, y, z) from -1 to 1 in blue, green and red.

    x and y are the slopes of the depth, 0 where it is less than the share `background` of the largest, and z is
    `strength`.
    """
    values = _depth(networks, pixels)
    x, y = filters.sobel(values)
    far = _from_0_to_1(values) < background
    direction = np.stack([np.where(far, 0, x), np.where(far, 0, y), np.full_like(values, strength)], -1)
    direction /= np.sqrt(np.square(direction).sum(-1, keepdims=True))
    return (direction * 127.5 + 127.5).clip(0, 255).astype(np.uint8)[..., ::-1].copy()


def pose(networks: Annotators, pixels: Picture, *, body: bool = True) -> Picture:
    """Returns poses, drawn on black: hands and faces too if `networks` has those of them.

    At most `people.MOST_PEOPLE` people are drawn, and hands and faces of the MOST_CLOSE largest ones.
    """
    height, width = pixels.shape[:2]
    picture = pixels[..., ::-1]  # the networks were trained on BGR
    size = np.array([width, height], np.float64)
    found = []
    bodies = _bodies(networks["body"], picture)
    close = poses.largest(bodies, MOST_CLOSE)
    for number, joints in enumerate(bodies):
        hands, face = [], None
        if "hand" in networks and number in close:
            boxes = poses.hand_boxes(joints, height, width)
            hands = [_placed(_hand(networks["hand"], picture[box.slices]), box, picture.shape) for box in boxes]
        if "face" in networks and number in close and (box := poses.face_box(joints, height, width)) is not None:
            face = _placed(_face(networks["face"], picture[box.slices]), box, picture.shape)
        found.append(poses.Pose(joints / size, tuple(hands), face))
    return poses.draw_poses(found, height, width, body=body)


NETWORK_HINTS: Mapping[str, Callable[..., Picture]] = {
    "softedge_hed": softedge,
    "softedge_hedsafe": functools.partial(softedge, safe=True),
    "scribble_hed": scribble,
    "lineart_realistic": lineart,
    "depth_midas": depth,
    "normal_midas": normal,
    "openpose": pose,
    "openpose_hand": pose,
    "openpose_face": pose,
    "openpose_faceonly": functools.partial(pose, body=False),
    "openpose_full": pose,
}


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: nn.Module, params: Params, x: Float[jax.Array, "b h w c"]) -> Any:
    return module.apply({"params": params}, x)


def _run(network: str, loaded: LoadedAnnotator, picture: Float[np.ndarray, "h w c"]) -> Any:
    """Returns what a network of sdjax.nn.networks makes of one picture."""
    with pinned():
        return _apply(NETWORKS[network].build(loaded.config), loaded.params, jnp.asarray(picture[None]))


def _padded(pixels: Picture, multiple: int, least: int = 1) -> UInt8[np.ndarray, "h2 w2 3"]:
    return pictures.pad_to(pixels, multiple, least=least)


def _cut(hint: UInt8[np.ndarray, "h2 w2 3"], pixels: Picture) -> Picture:
    return hint[: pixels.shape[0], : pixels.shape[1]]


def _depth(networks: Annotators, pixels: Picture) -> Float[np.ndarray, "h w"]:
    values = _run("depth", networks["depth"], to_float(_padded(pixels, STEP)))
    return np.asarray(values)[0, : pixels.shape[0], : pixels.shape[1], 0]


def _from_0_to_1(values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Returns the values between their smallest, 0, and their largest, 1; a flat map is 0."""
    values = values - values.min()
    return values / (values.max() or 1)


def _smart_size(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns an array at another size: "area" if that is smaller, all in all, and else "lanczos"."""
    smaller = height + width < sum(picture.shape[:2])
    return filters.resize(picture, height, width, "area" if smaller else "lanczos")


def _bodies(network: LoadedAnnotator, picture: Picture) -> list[Float[np.ndarray, "18 2"]]:
    """Returns the joints of each person in pixels, from a picture in BGR."""
    height, width = picture.shape[:2]
    scale = 0.5 * BOX / height
    small = _smart_size(picture, max(int(height * scale), STRIDE), max(int(width * scale), STRIDE))
    rows, columns = small.shape[:2]
    padding = ((0, -rows % STRIDE), (0, -columns % STRIDE), (0, 0))
    padded = np.pad(small, padding, constant_values=128).astype(np.float32) / 256 - 0.5
    fields, joints = (np.asarray(maps)[0] for maps in _run("pose", network, padded))

    def full_size(maps: np.ndarray, channel: int) -> np.ndarray:
        one = maps[..., channel]
        fine = _smart_size(one, one.shape[0] * STRIDE, one.shape[1] * STRIDE)[:rows, :columns]
        return _smart_size(fine, height, width)

    return people.find_people(functools.partial(full_size, joints), functools.partial(full_size, fields))


def _hand(network: LoadedAnnotator, picture: Picture) -> Float[np.ndarray, "21 2"]:
    """Returns the points of a hand in pixels of a square picture of it in BGR; (0, 0) for those not found."""
    height, width = picture.shape[:2]
    blurred = filters.gaussian_blur(picture, HAND_BLUR)
    total = np.zeros([HAND_SIDE, HAND_SIDE, network.config.maps[0]])
    for scale in HAND_SCALES:
        side = int(scale * BOX)
        resized = _smart_size(blurred, side, side).astype(np.float32) / 256 - 0.5
        maps = np.asarray(_run("pose", network, resized)[0])[0]
        fine = _smart_size(maps, maps.shape[0] * STRIDE, maps.shape[1] * STRIDE)
        total += _smart_size(fine, HAND_SIDE, HAND_SIDE) / len(HAND_SCALES)
    points = np.zeros([total.shape[-1] - 1, 2])
    for i in range(len(points)):
        values = total[..., i]
        parts, count = ndimage.label(ndimage.gaussian_filter(values, HAND_SIGMA) > HAND_PEAK, np.ones((3, 3)))
        if not count:
            continue
        strongest = 1 + np.argmax(ndimage.sum_labels(values, parts, np.arange(1, count + 1)))
        y, x = np.unravel_index(np.argmax(np.where(parts == strongest, values, 0)), values.shape)
        points[i] = int(x * width / HAND_SIDE), int(y * height / HAND_SIDE)
    return points


def _face(network: LoadedAnnotator, picture: Picture) -> Float[np.ndarray, "n 2"]:
    """Returns the points of a face that are found, in pixels of a picture of it in BGR."""
    resized = _smart_size(picture, FACE_SIDE, FACE_SIDE).astype(np.float32) / 256 - 0.5
    maps = np.asarray(_run("pose", network, resized)[0])
    points = []
    for i in range(maps.shape[-1]):
        fine = interpolate(maps[..., i : i + 1], picture.shape[:2], method="bilinear", align_corners=True)[0, ..., 0]
        y, x = np.unravel_index(np.argmax(fine), fine.shape)
        if fine[y, x] > FACE_PEAK:
            points.append((x, y))
    return np.array(points, np.float64).reshape(-1, 2)


def _placed(points: np.ndarray, box: pictures.Box, shape: tuple[int, ...]) -> Float[np.ndarray, "n 2"]:
    """Returns points of a box as shares of the whole picture's size, float32; coordinates of 0 become negative."""
    points = points.astype(np.float32)
    moved = np.where(points < FEWEST_MISSED, -1, points + np.array([box.left, box.top], np.float32))
    return moved / np.array([shape[1], shape[0]], np.float32)
