"""Poses, and how they are drawn for ControlNet: coloured limbs and joints of bodies and hands, white points of faces.

Source: controlnet_aux/open_pose/util.py.
"""

import colorsys
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from sdjax.pictures.geometry import Box
from sdjax.pictures.hints import drawing, people

Points = Float[np.ndarray, "n 2"]  # x and y

STICK = 4  # pixels: half the width of a limb, and the radius of a joint
DIM = 0.6  # of a limb's colour
LIMBS = people.LIMBS[:17]  # the last two are not drawn
COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)  # fmt: skip
FINGERS = tuple((0 if i == 0 else 4 * finger + i, 4 * finger + i + 1) for finger in range(5) for i in range(4))
FINGERTIP = (0, 0, 255)
FACE_RADIUS = 3
SMALLEST = 20  # pixels of a hand's or face's box; smaller ones are not looked at
RIGHT_ARM, LEFT_ARM = (2, 3, 4), (5, 6, 7)  # shoulder, elbow, wrist
NOSE = 0
BESIDE_NOSE = ((14, 3.0), (15, 3.0), (16, 1.5), (17, 1.5))  # eyes and ears, and their distances in half faces


@dataclasses.dataclass(frozen=True)
class Pose:
    """A person's joints [18, 2], hands [21, 2] each and face [n, 2]: (x, y) as shares of the picture's sides.

    NaN for joints that were not found; hands and faces have points below 0 for these. None if not looked for or found.
    """

    body: Points
    hands: tuple[Points, ...] = ()
    face: Points | None = None


def draw_poses(poses: Sequence[Pose], height: int, width: int, *, body: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """Returns people as a ControlNet for poses was trained on them, on black. `body` False leaves bodies out."""
    canvas = np.zeros([height, width, 3], np.uint8)
    for pose in poses:
        if body:
            _draw_body(canvas, pose.body)
        for hand in pose.hands:
            _draw_hand(canvas, hand)
        if pose.face is not None:
            _draw_face(canvas, pose.face)
    return canvas


def largest(bodies: Sequence[Points], most: int) -> set[int]:
    """Returns the numbers of the bodies that cover the largest boxes, `most` of them. NaN: joints not found."""
    areas = [float(np.prod(np.nanmax(body, axis=0) - np.nanmin(body, axis=0))) for body in bodies]
    return set(sorted(range(len(bodies)), key=lambda i: -areas[i])[:most])


def hand_boxes(body: Points, height: int, width: int) -> list[Box]:
    """Returns square boxes around the left and right hand of a body, whose joints are in pixels, where arms are seen.

    A hand is a third of the forearm beyond the wrist.
    """
    boxes = []
    for arm in (LEFT_ARM, RIGHT_ARM):
        shoulder, elbow, wrist = (body[joint] for joint in arm)
        if np.isnan([shoulder, elbow, wrist]).any():
            continue
        side = 1.5 * max(math.hypot(*(wrist - elbow)), 0.9 * math.hypot(*(elbow - shoulder)))
        x, y = np.maximum(wrist + 0.33 * (wrist - elbow) - side / 2, 0)
        side = min(width - x if x + side > width else side, height - y if y + side > height else side)
        if side >= SMALLEST:
            boxes.append(_square(x, y, side))
    return boxes


def face_box(body: Points, height: int, width: int) -> Box | None:
    """Returns a square box around the face of a body, whose joints are in pixels; None if too little of it is seen."""
    if np.isnan(body[NOSE]).any():
        return None
    distances = [np.abs(body[joint] - body[NOSE]).max() * scale for joint, scale in BESIDE_NOSE]
    half = np.nanmax([0.0, *distances])
    if np.isnan(distances).all():
        return None
    x, y = np.maximum(body[NOSE] - half, 0)
    side = min(width - x if x + half > width else 2 * half, height - y if y + half > height else 2 * half)
    box = _square(x, y, side)
    if side < SMALLEST or box.left >= width or box.top >= height:
        return None
    return Box(box.left, box.top, min(box.right, width), min(box.bottom, height))


def _square(x: float, y: float, side: float) -> Box:
    return Box(int(x), int(y), int(x) + int(side), int(y) + int(side))


def _draw_body(canvas: np.ndarray, joints: Points) -> None:
    height, width = canvas.shape[:2]
    for (a, b), colour in zip(LIMBS, COLOURS):
        if np.isnan(joints[[a, b]]).any():
            continue
        x, y = joints[[a, b], 0] * width, joints[[a, b], 1] * height
        length = math.sqrt((y[0] - y[1]) ** 2 + (x[0] - x[1]) ** 2)
        angle = int(math.degrees(math.atan2(y[0] - y[1], x[0] - x[1])))
        corners = drawing.ellipse(int(x.mean()), int(y.mean()), int(length / 2), STICK, angle)
        drawing.fill_convex(canvas, corners, [int(level * DIM) for level in colour])
    for (x, y), colour in zip(joints, COLOURS):
        if not np.isnan(x):
            drawing.draw_disc(canvas, int(x * width), int(y * height), STICK, colour)


def _draw_hand(canvas: np.ndarray, points: Points) -> None:
    pixels = _pixels(canvas, points)
    for i, (a, b) in enumerate(FINGERS):
        if min(*pixels[a], *pixels[b]) > 0:
            colour = [round(level * 255) for level in colorsys.hsv_to_rgb(i / len(FINGERS), 1, 1)]
            drawing.draw_thick_line(canvas, pixels[a], pixels[b], colour)
    for x, y in pixels:
        if min(x, y) > 0:
            drawing.draw_disc(canvas, x, y, STICK, FINGERTIP)


def _draw_face(canvas: np.ndarray, points: Points) -> None:
    for x, y in _pixels(canvas, points):
        if min(x, y) > 0:
            drawing.draw_disc(canvas, x, y, FACE_RADIUS, (255, 255, 255))


def _pixels(canvas: np.ndarray, points: Points) -> list[tuple[int, int]]:
    height, width = canvas.shape[:2]
    return [(int(x * width), int(y * height)) for x, y in points]
