"""Filled shapes on a canvas uint8 [h, w, 3], pixel by pixel as OpenCV draws them: discs, ellipses, thick lines.

Anything outside the canvas is cut off. Source: cv2.circle, cv2.ellipse2Poly, cv2.fillConvexPoly and cv2.line with lines
of type 8.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

Canvas = UInt8[np.ndarray, "h w 3"]
Colour = Sequence[int]
Points = Int[np.ndarray, "n 2"]  # x and y

SHIFT = 16
ONE, HALF = 1 << SHIFT, 1 << SHIFT >> 1  # a pixel, and half of one, in fixed point
_SINES = np.round(np.sin(np.radians(np.arange(451))), 7)  # of whole degrees, with the decimals of OpenCV's table


def draw_disc(canvas: Canvas, x: int, y: int, radius: int, colour: Colour) -> None:
    """Fills a disc around the pixel (x, y)."""
    error, dx, dy, plus, minus = 0, radius, 0, 1, 2 * radius - 1
    while dx >= dy:
        for row, reach in ((y - dy, dx), (y + dy, dx), (y - dx, dy), (y + dx, dy)):
            _fill_row(canvas, row, x - reach, x + reach, colour)
        dy += 1
        error += plus
        plus += 2
        if error > 0:
            error -= minus
            dx -= 1
            minus -= 2


def ellipse(x: int, y: int, half_length: int, half_width: int, angle: int) -> Points:
    """Returns the corners of an ellipse around (x, y), one a degree, without repeated ones. `angle` in degrees."""
    angle %= 360
    cosine, sine = _SINES[450 - angle], _SINES[angle]
    degrees = np.arange(361)
    u, v = half_length * _SINES[450 - degrees], half_width * _SINES[degrees]
    corners = np.rint(np.stack([x + u * cosine - v * sine, y + u * sine + v * cosine], -1)).astype(np.int64)
    new = np.r_[True, (corners[1:] != corners[:-1]).any(-1)]
    return corners[new] if new.sum() > 1 else np.array([[x, y], [x, y]])


def fill_convex(canvas: Canvas, corners: Points, colour: Colour) -> None:
    """Fills a convex polygon, its outline included, whose corners are pixels."""
    for (x0, y0), (x1, y1) in zip(np.roll(corners, 1, 0).tolist(), corners.tolist()):
        _draw_line(canvas, x0, y0, x1, y1, colour)
    _fill_inside(canvas, corners.astype(np.int64) << SHIFT, colour)


def draw_thick_line(canvas: Canvas, start: tuple[int, int], end: tuple[int, int], colour: Colour) -> None:
    """Draws a line two pixels wide with round ends, from pixel (x, y) to pixel."""
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x0 - x1, y1 - y0)
    if length > 0:
        across = round((y1 - y0) * ONE / length), round((x0 - x1) * ONE / length)  # one pixel to the side
        fixed = [((x << SHIFT) + s * across[0], (y << SHIFT) + s * across[1])
                 for (x, y), s in ((start, 1), (start, -1), (end, -1), (end, 1))]  # fmt: skip
        for before, after in zip([fixed[-1], *fixed], fixed):
            _draw_fixed_line(canvas, before, after, colour)
        _fill_inside(canvas, np.array(fixed), colour)
    for x, y in (start, end):
        draw_disc(canvas, x, y, 1, colour)


def _fill_row(canvas: Canvas, row: int, first: int, last: int, colour: Colour) -> None:
    if 0 <= row < canvas.shape[0] and last >= 0:
        canvas[row, max(first, 0) : last + 1] = colour


def _put(canvas: Canvas, x: np.ndarray, y: np.ndarray, colour: Colour) -> None:
    inside = (x >= 0) & (y >= 0) & (x < canvas.shape[1]) & (y < canvas.shape[0])
    canvas[y[inside], x[inside]] = colour


def _draw_line(canvas: Canvas, x0: int, y0: int, x1: int, y1: int, colour: Colour) -> None:
    """Draws a line between pixels, from the left one on: Bresenham's algorithm, where a tie stays behind."""
    if x1 < x0:
        x0, y0, x1, y1 = x1, y1, x0, y0
    dx, dy = x1 - x0, abs(y1 - y0)
    steps = np.arange(max(dx, dy) + 1)
    if not steps[-1]:
        return _put(canvas, np.array([x0]), np.array([y0]), colour)
    aside = -((max(dx, dy) - 2 * min(dx, dy) * steps) // (2 * max(dx, dy)))
    along_x, along_y = (aside, steps) if dy > dx else (steps, aside)
    _put(canvas, x0 + along_x, y0 + (along_y if y1 >= y0 else -along_y), colour)


def _draw_fixed_line(canvas: Canvas, start: tuple[int, int], end: tuple[int, int], colour: Colour) -> None:
    """Draws a line between points in fixed point: one pixel for each step along its longer side."""
    longer = 0 if abs(end[0] - start[0]) > abs(end[1] - start[1]) else 1
    if end[longer] < start[longer]:
        start, end = end, start
    length = end[longer] - start[longer]
    steps = np.arange((length >> SHIFT) + 1)
    rise = end[1 - longer] - start[1 - longer]
    slope = int(rise * ONE / (length | 1))  # truncated towards 0
    places = [np.array([]), np.array([])]
    places[longer] = ((start[longer] + HALF) >> SHIFT) + steps
    places[1 - longer] = (start[1 - longer] + HALF + slope * steps) >> SHIFT
    _put(canvas, np.append(places[0], (end[0] + HALF) >> SHIFT), np.append(places[1], (end[1] + HALF) >> SHIFT), colour)


def _fill_inside(canvas: Canvas, corners: Points, colour: Colour) -> None:
    """Fills a convex polygon between its two chains of edges, row by row. Its corners are in fixed point."""
    x, y = corners[:, 0], (corners[:, 1] + HALF) >> SHIFT
    count, top = len(x), int(np.argmin(corners[:, 1]))
    if count < 3:
        return
    sides = []
    for step in (1, -1):  # the two chains from the top corner down
        rows: dict[int, int] = {}
        at = top
        for _ in range(count):
            to = (at + step) % count
            height = int(y[to] - y[at])
            if height > 0:
                slope = (2 * int(x[to] - x[at]) + height) // (2 * height)
                rows.update((int(y[at]) + i, int(x[at]) + slope * i) for i in range(height))
                rows[int(y[to])] = int(x[at]) + slope * height
            elif y[to] < y[at]:
                break
            at = to
        sides.append(rows)
    for row in sides[0].keys() & sides[1].keys():
        first, last = sorted((sides[0][row], sides[1][row]))
        _fill_row(canvas, row, (first + HALF) >> SHIFT, (last + HALF) >> SHIFT, colour)
