"""The 20 keypoints of a parametric vehicle: where they are, whether a camera sees them, and the orientation code.

Convention: the vehicle's frame of `synthetic_bodies` (x forward, y left, z up, metres); keypoint number n is row n - 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reid.data.synthetic_bodies import BodyShape, mirror_centre
from reid.data.synthetic_mesh import Floats, Mesh, Part
from reid.keypoints import NUM_KEYPOINTS

NUDGE_METRES: Final = 0.04
"""How far a point is lifted off its surface before looking for something in front of it."""
GRAZING_COSINE: Final = 0.15
"""A face seen more obliquely than this (9 degrees) counts as not seen: annotators cannot place a point on it either."""
STRAIGHT_DEGREES: Final = 10.0
"""Within this angle of an axis a view counts as pure front, rear, left or right (VeRi-776: wheels hidden)."""

_FRONT, _REAR, _LEFT, _RIGHT, _UP = (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1)


@dataclass(frozen=True, slots=True)
class BodyKeypoints:
    """Where the 20 keypoints are, and what decides whether one is seen."""

    positions: Floats
    """(20, 3) on the surface (mirrors: inside them)."""
    faces: Floats
    """(20, 3, 3) normals of up to three faces on which each point lies, zero where fewer: one must face the camera."""
    own_part: NDArray[np.int64]
    """(20,) `Part` that cannot hide the point (mirrors), else -1."""

    def lifted(self) -> Floats:
        """(20, 3) the points moved off their faces by `NUDGE_METRES`."""
        direction = self.faces.sum(1)
        direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12)
        return self.positions + NUDGE_METRES * np.where(self.own_part[:, None] < 0, direction, 0.0)


def place_keypoints(shape: BodyShape) -> BodyKeypoints:
    """The 20 keypoints on a vehicle of this shape, in VeRi-776's numbering."""
    positions = np.zeros((NUM_KEYPOINTS, 3))
    faces = np.zeros((NUM_KEYPOINTS, 3, 3))
    own = np.full(NUM_KEYPOINTS, -1, dtype=np.int64)

    def put(number: int, position: tuple[float, float, float], *normals: tuple[int, int, int]) -> None:
        positions[number - 1] = position
        faces[number - 1, : len(normals)] = normals

    lamp_x, rear_x = shape.half - 0.1, lamp_end(shape)
    lamp_z, fog_z, rear_z = head_lamp_height(shape), fog_lamp_height(shape), rear_lamp_height(shape)
    for side, normal, wheels, fog, lamp, mirror, front_roof, back_roof, rear in (
        (1.0, _LEFT, (1, 2), 6, 8, 11, 14, 15, 17),
        (-1.0, _RIGHT, (3, 4), 5, 7, 12, 13, 16, 18),
    ):
        for number, axle in zip(wheels, (shape.axles[0], shape.axles[-1]), strict=True):
            put(number, (axle, side * (shape.width / 2 + 0.012), shape.wheel_radius), normal)
        width = float(shape.half_width(lamp_x))
        put(fog, (shape.half, side * 0.92 * float(shape.half_width(shape.half)), fog_z), _FRONT, normal)
        put(lamp, (lamp_x, side * width * 0.97, lamp_z), _FRONT, normal)
        put(mirror, mirror_centre(shape, side), _FRONT, _REAR, normal)
        own[mirror - 1] = int(Part.LEFT_MIRROR if side > 0 else Part.RIGHT_MIRROR)
        roof_z = shape.height - 0.06
        roof_y = float(shape.cabin_half_width(shape.screen_top, roof_z)) - 0.03
        put(front_roof, (shape.screen_top, side * roof_y, roof_z), _UP, normal, _FRONT)
        if shape.box_height > shape.height - 0.3:
            put(back_roof, (-shape.half, side * (shape.width / 2 + 0.02), shape.box_height), _UP, normal, _REAR)
        else:
            roof_y = float(shape.cabin_half_width(shape.roof_end, roof_z)) - 0.03
            put(back_roof, (shape.roof_end, side * roof_y, roof_z), _UP, normal, _REAR)
        put(rear, (rear_x, side * rear_lamp_offset(shape), rear_z), _REAR, normal)
    put(9, (shape.half, 0.0, logo_height(shape)), _FRONT)
    put(10, (shape.half, 0.0, fog_z), _FRONT)
    back = -shape.half + (0.02 if shape.box_height else 0.0)
    put(19, (back, 0.0, rear_z), _REAR)
    put(20, (back, 0.0, rear_plate_height(shape)), _REAR)
    return BodyKeypoints(positions, faces, own)


def head_lamp_height(shape: BodyShape) -> float:
    """Height of the headlights' centres."""
    return shape.nose_height * (0.84 if shape.kind not in ("bus", "truck") else 0.62)


def fog_lamp_height(shape: BodyShape) -> float:
    """Height of the fog lamps' and of the front plate's centres."""
    return shape.clearance + 0.3 * (shape.nose_height - shape.clearance)


def logo_height(shape: BodyShape) -> float:
    """Height of the front logo."""
    return shape.nose_height * 0.8


def rear_lamp_height(shape: BodyShape) -> float:
    """Height of the rear lamps' centres."""
    if shape.box_height:
        return shape.box_floor - 0.2
    return shape.tail_height * (0.62 if shape.kind == "bus" else 0.85)


def lamp_end(shape: BodyShape) -> float:
    """`x` of the rear lamps' centres."""
    return -shape.half + (0.02 if shape.box_height else 0.06)


def rear_lamp_offset(shape: BodyShape) -> float:
    """`|y|` of the rear lamps' centres."""
    return 0.42 * shape.width if shape.box_height else 0.97 * float(shape.half_width(lamp_end(shape)))


def rear_plate_height(shape: BodyShape) -> float:
    """Height of the rear plate's centre."""
    if shape.box_height:
        return shape.box_floor - 0.34
    return (
        0.6 * shape.tail_height
        if shape.kind == "sedan"
        else shape.clearance + 0.38 * (shape.tail_height - shape.clearance)
    )


def seen_from(keypoints: BodyKeypoints, mesh: Mesh, camera: Floats) -> NDArray[np.bool_]:
    """(20,) whether each keypoint can be seen from a camera at this position, whatever its picture's limits are.

    A point is seen when one of its faces is turned to the camera and no triangle lies between the camera and the point
    lifted off its surface (Moeller and Trumbore's intersection of rays with triangles, all pairs at once).
    """
    towards = camera - keypoints.positions
    cosine = np.einsum("kfc,kc->kf", keypoints.faces, towards) / np.linalg.norm(towards, axis=1, keepdims=True)
    facing = (cosine > GRAZING_COSINE).any(1)
    ray = keypoints.lifted()[facing] - camera  # (K, 3); the point is at 1
    normals, offsets = mesh.planes
    distance = normals @ camera - offsets
    front = np.flatnonzero(distance > 0)  # a part is entered through a triangle that faces the camera
    x, y, z = camera
    lines = np.concatenate([ray @ [[0, z, -y], [-z, 0, x], [y, -x, 0]], ray], 1)  # (camera x ray, ray)
    u, v, determinant = lines @ mesh.line_forms[:, :, front]  # (K, T) each
    hit = np.minimum(u, v) >= 0
    hit &= u + v <= determinant
    hit &= distance[front] < (1 - 1e-6) * determinant
    hit &= mesh.parts[front] != keypoints.own_part[facing, None]
    seen: NDArray[np.bool_] = facing.copy()
    seen[facing] = ~hit.any(1)
    return seen


def orientation_code(azimuth_degrees: float) -> int:
    """VeRi-776's orientation of a vehicle whose camera stands at this azimuth (0 ahead, 90 on its left, 180 behind).

    >>> [orientation_code(a) for a in (0, 45, 90, 135, 180, 225, 270, 315)]
    [0, 3, 2, 4, 1, 7, 5, 6]
    """
    angle = azimuth_degrees % 360.0
    for centre, code in ((0.0, 0), (90.0, 2), (180.0, 1), (270.0, 5), (360.0, 0)):
        if abs(angle - centre) <= STRAIGHT_DEGREES:
            return code
    return (3, 4, 7, 6)[int(angle // 90.0)]
