"""Slow, obvious float64 geometry, one plane, cell and coefficient at a time. Imports nothing of ours."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Corners for a viewer who faces the plane: top-left, top-right, bottom-right, bottom-left; then the substitute.
FACES = {
    "front": [((13, 14, 6, 5), ((0, 0), (1, 0), (1, 1), (0, 1)), 10)],
    "back": [((15, 16, 18, 17), ((0, 0), (1, 0), (1, 1), (0, 1)), 19)],
    "side": [
        ((14, 15, 2, 1), ((0, 0), (1, 0), (1, 1), (0, 1)), None),
        ((13, 16, 4, 3), ((0, 0), (1, 0), (1, 1), (0, 1)), None),
    ],
    "top": [((16, 15, 14, 13), ((0, 0), (1, 0), (1, 1), (0, 1)), None)],
}
# The right side's points are listed from the vehicle's front to its back, which is anticlockwise on the image.
ANTICLOCKWISE = {(13, 16, 4, 3)}

Point = tuple[float, float]


def homography(targets: list[Point], sources: list[Point]) -> NDArray[np.float64]:
    """3x3 matrix that maps each target to its source: the null vector of the eight equations, by singular values."""
    rows = []
    for (u, v), (x, y) in zip(targets, sources, strict=True):
        rows.append([u, v, 1, 0, 0, 0, -u * x, -v * x, -x])
        rows.append([0, 0, 0, u, v, 1, -u * y, -v * y, -y])
    null_vector = np.linalg.svd(np.array(rows, dtype=np.float64))[2][-1]
    return null_vector.reshape(3, 3) / null_vector[-1]


def apply(matrix: NDArray[np.float64], u: float, v: float) -> Point:
    x, y, w = matrix @ np.array([u, v, 1.0])
    return float(x / w), float(y / w)


def area(points: list[Point]) -> float:
    """Signed area; positive when the corners run clockwise on the screen."""
    total = 0.0
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        total += x1 * y2 - x2 * y1
    return total / 2


def least_sine(points: list[Point]) -> float:
    sines = []
    for i in range(4):
        (x0, y0), (x1, y1), (x2, y2) = points[i - 1], points[i], points[(i + 1) % 4]
        ax, ay, bx, by = x1 - x0, y1 - y0, x2 - x1, y2 - y1
        lengths = math.hypot(ax, ay) * math.hypot(bx, by)
        sines.append((ax * by - ay * bx) / lengths if lengths > 0 else 0.0)
    return min(sines)


def find_plane(
    keypoints: NDArray[np.float64], name: str, height: int, width: int, min_area: float, min_sine: float
) -> tuple[list[Point], list[Point]] | None:
    """(corners, targets) of one plane of one image, corners in any order, or None when it is not visible."""
    best, best_area = None, 0.0
    for numbers, targets, substitute in FACES[name]:
        points: list[Point | None] = [
            (float(keypoints[n - 1, 0]), float(keypoints[n - 1, 1])) if keypoints[n - 1, 2] > 0 else None
            for n in numbers
        ]
        goals = [(float(u), float(v)) for u, v in targets]
        missing = [i for i, point in enumerate(points) if point is None]
        if missing in ([2], [3]) and substitute is not None and keypoints[substitute - 1, 2] > 0:
            points[missing[0]] = (float(keypoints[substitute - 1, 0]), float(keypoints[substitute - 1, 1]))
            goals[missing[0]] = (0.5, 1.0)
            missing = []
        if missing:
            continue
        corners = [point for point in points if point is not None]
        if numbers in ANTICLOCKWISE:
            corners, goals = corners[::-1], goals[::-1]
        size = area(corners)
        if size <= best_area or size < min_area * height * width or least_sine(corners) < max(min_sine, 1e-15):
            continue
        matrix = homography(goals, corners)
        scales = [float((matrix @ np.array([u, v, 1.0]))[2]) for u in (0.0, 1.0) for v in (0.0, 1.0)]
        if min(scales) > 0:
            best, best_area = (corners, goals), size
    return best


def warp(
    feature_map: NDArray[np.float64],
    matrix: NDArray[np.float64],
    height: int,
    width: int,
    rows: int,
    columns: int,
    *,
    transposed: bool = False,
) -> NDArray[np.float64]:
    """Bilinear warp of a (C, h, w) map to (C, rows, columns); `transposed` is a common mistake that must show."""
    _, map_height, map_width = feature_map.shape
    warped = np.zeros((feature_map.shape[0], rows, columns))
    for row in range(rows):
        for column in range(columns):
            u, v = (column + 0.5) / columns, (row + 0.5) / rows
            x, y = apply(matrix, v, u) if transposed else apply(matrix, u, v)
            map_x = min(max((x + 0.5) / (width / map_width) - 0.5, 0.0), map_width - 1.0)
            map_y = min(max((y + 0.5) / (height / map_height) - 0.5, 0.0), map_height - 1.0)
            left, top = math.floor(map_x), math.floor(map_y)
            right, bottom = min(left + 1, map_width - 1), min(top + 1, map_height - 1)
            across, down = map_x - left, map_y - top
            warped[:, row, column] = (
                (1 - across) * (1 - down) * feature_map[:, top, left]
                + across * (1 - down) * feature_map[:, top, right]
                + (1 - across) * down * feature_map[:, bottom, left]
                + across * down * feature_map[:, bottom, right]
            )
    return warped
