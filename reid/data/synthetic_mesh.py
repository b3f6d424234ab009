"""Triangles of a synthetic vehicle, how they are put together, and what follows from them alone.

Convention: the vehicle's frame of `synthetic_bodies` (x forward, y left, z up, metres). Triangles are counter-clockwise
seen from outside. Each belongs to a `Part` (drawing order, self-occlusion) and a `Chart` (the picture that is projected
on it along one axis).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Chart(IntEnum):
    """Which picture covers a triangle; all but the last two are orthographic views of the whole vehicle."""

    LEFT = 0
    RIGHT = 1
    FRONT = 2
    REAR = 3
    TOP = 4
    WHEEL = 5
    DARK = 6


class Part(IntEnum):
    """Pieces that can hide one another; convex enough to be drawn by depth within themselves."""

    TYRES = 0
    CHASSIS = 1
    LOWER = 2
    CABIN = 3
    BOX = 4
    DISCS = 5
    LEFT_MIRROR = 6
    RIGHT_MIRROR = 7
    FITTINGS = 8


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles of a vehicle; what follows from them alone is computed once and kept."""

    vertices: Floats
    """(V, 3)."""
    normals: Floats
    """(V, 3) unit, smoothed within each sheet."""
    triangles: NDArray[np.intp]
    """(T, 3) into `vertices`."""
    parts: NDArray[np.int64]
    """(T,) `Part`."""
    charts: NDArray[np.int64]
    """(T,) `Chart`."""
    wheel_x: Floats
    """(T,) `x` of the hub for `Chart.WHEEL`, else 0."""

    @cached_property
    def corners(self) -> Floats:
        """(T, 3, 3) corner positions of the triangles."""
        return np.asarray(self.vertices[self.triangles])

    @cached_property
    def planes(self) -> tuple[Floats, Floats]:
        """(T, 3) outward normals n, twice the area long, and (T,) offsets: n.x = offset on the triangle."""
        corners = self.corners
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        return normals, np.einsum("tc,tc->t", normals, corners[:, 0])

    @cached_property
    def middles(self) -> Floats:
        """(T, 3) centres of the triangles."""
        return np.asarray(self.corners.mean(1))

    @cached_property
    def line_forms(self) -> Floats:
        """(3, 6, T) the u, v and determinant of Moeller and Trumbore's test as linear functions of a line.

        The line through a point s with direction r has the (Pluecker) coordinates (s x r, r).
        """
        first, edge1, edge2 = self.corners[:, 0], *np.moveaxis(self.corners[:, 1:] - self.corners[:, :1], 1, 0)
        forms = [
            np.concatenate([edge2, -np.cross(edge2, first)], 1),
            np.concatenate([-edge1, np.cross(edge1, first)], 1),
            np.concatenate([np.zeros_like(first), -self.planes[0]], 1),
        ]
        return np.stack([form.T for form in forms])


@dataclass(slots=True)
class MeshBuilder:
    """Collects sheets of triangles."""

    vertices: list[Floats] = field(default_factory=list)
    triangles: list[NDArray[np.intp]] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    charts: list[int] = field(default_factory=list)
    wheel_x: list[float] = field(default_factory=list)

    def sheet(self, grid: Floats, part: Part, charts: NDArray[np.int64], inside: tuple[float, float, float]) -> None:
        """Add an (R, C, 3) grid of points as (R-1) x (C-1) quadrilaterals, turned away from the point `inside`.

        `charts` is (R-1, C-1).
        """
        rows, columns = grid.shape[:2]
        base = sum(len(block) for block in self.vertices)
        index = base + np.arange(rows * columns).reshape(rows, columns)
        a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
        first, second = np.stack([a, b, c], -1), np.stack([a, c, d], -1)
        triangles = np.stack([first, second], 2).reshape(-1, 3)
        points = grid.reshape(-1, 3)
        a, b, c = (points[triangles[:, corner] - base] for corner in range(3))
        outward = np.cross(b - a, c - a) * ((a + b + c) / 3 - np.asarray(inside))
        self.vertices.append(points)
        self.triangles.append(triangles if outward.sum() > 0 else triangles[:, ::-1])
        self.parts += [int(part)] * len(triangles)
        self.charts += np.repeat(charts.reshape(-1), 2).tolist()
        self.wheel_x += [0.0] * len(triangles)

    def box(self, low: tuple[float, float, float], high: tuple[float, float, float], part: Part) -> None:
        """Add a box without its bottom; each side has the chart of its direction."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        sides = {
            Chart.LEFT: [(x1, y1, z0), (x1, y1, z1), (x0, y1, z1), (x0, y1, z0)],
            Chart.RIGHT: [(x0, y0, z0), (x0, y0, z1), (x1, y0, z1), (x1, y0, z0)],
            Chart.FRONT: [(x1, y0, z0), (x1, y0, z1), (x1, y1, z1), (x1, y1, z0)],
            Chart.REAR: [(x0, y1, z0), (x0, y1, z1), (x0, y0, z1), (x0, y0, z0)],
            Chart.TOP: [(x0, y0, z1), (x0, y1, z1), (x1, y1, z1), (x1, y0, z1)],
        }
        base = sum(len(block) for block in self.vertices)
        corners = base + 4 * np.arange(5)[:, None, None] + np.array([[0, 2, 1], [0, 3, 2]])
        self.vertices.append(np.array(list(sides.values()), dtype=np.float64).reshape(20, 3))
        self.triangles.append(corners.reshape(10, 3))
        self.parts += [int(part)] * 10
        self.charts += [int(chart) for chart in sides for _ in range(2)]
        self.wheel_x += [0.0] * 10

    def finish(self) -> Mesh:
        """The mesh without its degenerate triangles."""
        vertices = np.concatenate(self.vertices)
        triangles = np.concatenate(self.triangles)
        corners = vertices[triangles]
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        keep = np.linalg.norm(cross, axis=1) > 1e-6
        normals = np.zeros_like(vertices)
        for corner in range(3):
            np.add.at(normals, triangles[keep, corner], cross[keep])
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        return Mesh(
            vertices, normals, triangles[keep], np.array(self.parts)[keep], np.array(self.charts)[keep],
            np.array(self.wheel_x)[keep],
        )  # fmt: skip
