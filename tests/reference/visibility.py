"""Which points of a triangle mesh a pinhole camera sees: projected one triangle at a time, compared by depth.

Another way than shooting rays in space: every triangle is projected into the image, a point is hidden when its pixel
lies inside the projected triangle and the triangle is nearer there. Plain Python floats. Imports nothing of ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = tuple[float, float, float]


def subtract(a: Sequence[float], b: Sequence[float]) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Sequence[float], b: Sequence[float]) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def unit(a: Sequence[float]) -> Vector:
    length = math.sqrt(dot(a, a))
    return a[0] / length, a[1] / length, a[2] / length


def camera_axes(position: Sequence[float], target: Sequence[float]) -> tuple[Vector, Vector, Vector]:
    """Right, down and forward of an upright camera."""
    forward = unit(subtract(target, position))
    right = unit(cross(forward, (0.0, 0.0, 1.0)))
    return right, cross(forward, right), forward


def project(point: Sequence[float], position: Sequence[float], axes: tuple[Vector, Vector, Vector]) -> Vector:
    """Image x, image y (focal length 1) and depth."""
    offset = subtract(point, position)
    depth = dot(offset, axes[2])
    return dot(offset, axes[0]) / depth, dot(offset, axes[1]) / depth, depth


def depth_at(triangle: list[Vector], x: float, y: float) -> float | None:
    """Depth of a projected triangle at an image point; None outside it. 1/depth is linear in the image."""
    (x0, y0, d0), (x1, y1, d1), (x2, y2, d2) = triangle
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    if abs(area) < 1e-14:
        return None
    w0 = ((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) / area
    w1 = ((x2 - x) * (y0 - y) - (x0 - x) * (y2 - y)) / area
    w2 = 1.0 - w0 - w1
    if min(w0, w1, w2) < 0.0:
        return None
    return 1.0 / (w0 / d0 + w1 / d1 + w2 / d2)


def nearest_triangle(triangles: list[list[Vector]], x: float, y: float) -> tuple[int, float]:
    """Number and depth of the nearest projected triangle at an image point; (-1, inf) when there is none."""
    best, nearest = -1, math.inf
    for number, triangle in enumerate(triangles):
        depth = depth_at(triangle, x, y)
        if depth is not None and depth < nearest:
            best, nearest = number, depth
    return best, nearest


def is_seen(
    point: Sequence[float],
    lifted: Sequence[float],
    normals: Sequence[Sequence[float]],
    triangles: list[list[Vector]],
    position: Sequence[float],
    axes: tuple[Vector, Vector, Vector],
    grazing_cosine: float,
) -> bool:
    """Whether a surface point is seen: a face of it is turned to the camera and nothing is before the lifted point."""
    towards = unit(subtract(position, point))
    if not any(dot(normal, towards) > grazing_cosine for normal in normals):
        return False
    x, y, depth = project(lifted, position, axes)
    return nearest_triangle(triangles, x, y)[1] >= depth
