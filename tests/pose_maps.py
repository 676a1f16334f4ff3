"""What ideal pose networks would see: maps of joints, limbs, hands and faces of people whose joints are given."""

import numpy as np

LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17), (2, 16), (5, 17),
)  # fmt: skip
FIELDS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)
STANDING = np.array([  # x and y as shares of a picture: nose, neck, arms, legs, eyes, ears
    [.30, .15], [.30, .27], [.22, .28], [.15, .40], [.12, .54], [.38, .28], [.45, .39], [.50, .30], [.25, .55],
    [.24, .72], [.23, .90], [.35, .55], [.37, .72], [.38, .90], [.28, .12], [.32, .12], [.25, .14], [.35, .14],
])  # fmt: skip
SEATED = STANDING * [0.8, 0.7] + [0.45, 0.25]
SEATED[[4, 10, 16]] = np.nan  # a hand, a foot and an ear are hidden
PEOPLE = (STANDING, SEATED)
MANY = np.random.default_rng(7).uniform(0.15, 0.85, [92, 2])  # points of a hand (21) and a face (71)


def _bell(points: np.ndarray, rows: int, columns: int, sigma: float) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns] + 0.5
    squared = (x - points[0] * columns) ** 2 + (y - points[1] * rows) ** 2
    return np.exp(-squared / (2 * sigma**2))


def body_maps(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the fields of limbs [rows, columns, 38] and the maps of joints [rows, columns, 19], float32."""
    fields, joints = np.zeros([rows, columns, 38]), np.zeros([rows, columns, 19])
    for person in PEOPLE:
        for i, point in enumerate(person):
            if not np.isnan(point[0]):
                joints[..., i] = np.maximum(joints[..., i], _bell(point, rows, columns, 0.9))
        for (a, b), channel in zip(LIMBS, FIELDS):
            ends = person[[a, b]] * [columns, rows]
            if np.isnan(ends).any():
                continue
            along = ends[1] - ends[0]
            length = max(np.hypot(*along), 1e-3)
            for share in np.linspace(0, 1, 20):
                near = _bell((ends[0] + share * along) / [columns, rows], rows, columns, 1.0)[..., None]
                before = fields[..., channel : channel + 2]
                stronger = near > np.hypot(before[..., :1], before[..., 1:])
                fields[..., channel : channel + 2] = np.where(stronger, near * along / length, before)
    return fields.astype(np.float32), joints.astype(np.float32)


def hand_maps(rows: int, columns: int) -> np.ndarray:
    """Returns [rows, columns, 22], float32. Point 20 is not seen."""
    maps = [_bell(point, rows, columns, rows / 16) for point in MANY[:20]]
    return np.stack([*maps, np.zeros([rows, columns]), np.ones([rows, columns])], -1).astype(np.float32)


def face_maps(rows: int, columns: int) -> np.ndarray:
    """Returns [rows, columns, 71], float32. Point 3 is not seen."""
    maps = [_bell(point, rows, columns, 1.5) for point in MANY[21:92]]
    maps[3] *= 0
    return np.stack(maps, -1).astype(np.float32)
