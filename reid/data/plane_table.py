"""Which share of annotated images shows each plane of the vehicle: the doctor's look at a set of keypoints.

Counts what the four corners say (METHOD 1.1), before the limits on area and angles that need the image size. A detector
that does not transfer, or an annotation in another order, shows up as rates far from VeRi-776's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid.keypoints import NUM_KEYPOINTS, PLANE_NAMES, PLANE_RULES, PlaneRule


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaneTable:
    """How often each plane is visible in N annotated images."""

    num_images: int
    visible: Mapping[str, int]
    """Plane -> images with its four true corners, convex and facing the camera."""
    substituted: Mapping[str, int]
    """Plane -> further images in which the substitute stands in for a missing bottom corner."""
    front_and_back: int
    """Images that show front and back at once, substitutes included: impossible, so labels of them are wrong."""

    def rate(self, plane: str) -> float:
        """Share of the images that show `plane` by its true corners, 0..1."""
        return self.visible[plane] / self.num_images if self.num_images else 0.0

    def gain(self, plane: str) -> float:
        """What substitution adds to `rate`."""
        return self.substituted[plane] / self.num_images if self.num_images else 0.0


def count_planes(keypoints: NDArray[np.float32], rules: Sequence[PlaneRule] = PLANE_RULES) -> PlaneTable:
    """The plane table of (N, 20, 3) keypoints: x, y in pixels (y down) and visibility.

    Raises:
        ValueError: another shape.
    """
    if keypoints.ndim != 3 or keypoints.shape[1:] != (NUM_KEYPOINTS, 3):
        raise ValueError(f"expected keypoints of shape (N, {NUM_KEYPOINTS}, 3), got {keypoints.shape}")
    true_corners, substituted = _planes_by_corners(keypoints, rules)
    shown = {plane: true_corners[plane] | substituted[plane] for plane in PLANE_NAMES}
    return PlaneTable(
        num_images=len(keypoints),
        visible={plane: int(true_corners[plane].sum()) for plane in PLANE_NAMES},
        substituted={plane: int((substituted[plane] & ~true_corners[plane]).sum()) for plane in PLANE_NAMES},
        front_and_back=int((shown["front"] & shown["back"]).sum()),
    )


def visible_planes(keypoints: NDArray[np.float32], rules: Sequence[PlaneRule] = PLANE_RULES) -> NDArray[np.bool_]:
    """(N, 4) the planes, in the order of `PLANE_NAMES`, that (N, 20, 3) keypoints show, substitutes included."""
    true_corners, substituted = _planes_by_corners(keypoints, rules)
    return np.stack([true_corners[plane] | substituted[plane] for plane in PLANE_NAMES], axis=1)


def _planes_by_corners(
    keypoints: NDArray[np.float32], rules: Sequence[PlaneRule]
) -> tuple[dict[str, NDArray[np.bool_]], dict[str, NDArray[np.bool_]]]:
    """Plane -> (N,) whether its true corners, and whether a substitute and three of them, show it."""
    true_corners = {plane: np.zeros(len(keypoints), dtype=np.bool_) for plane in PLANE_NAMES}
    substituted = {plane: np.zeros(len(keypoints), dtype=np.bool_) for plane in PLANE_NAMES}
    for rule in rules:
        true_corners[rule.plane] |= _faces_camera(keypoints, rule.corners)
        if rule.substitute is None:
            continue
        for position in (2, 3):  # bottom right, bottom left
            missing = keypoints[:, rule.corners[position] - 1, 2] <= 0
            corners = [rule.substitute if place == position else corner for place, corner in enumerate(rule.corners)]
            substituted[rule.plane] |= missing & _faces_camera(keypoints, corners)
    return true_corners, substituted


def _faces_camera(keypoints: NDArray[np.float32], corners: Sequence[int]) -> NDArray[np.bool_]:
    """(N,) whether four visible corners are convex and run clockwise, as on a face that looks at the camera."""
    rows = np.array(corners) - 1
    points = keypoints[:, rows, :2].astype(np.float64)  # (N, 4, 2)
    edges = np.roll(points, -1, axis=1) - points
    following = np.roll(edges, -1, axis=1)
    turns = edges[..., 0] * following[..., 1] - edges[..., 1] * following[..., 0]
    result: NDArray[np.bool_] = np.all((turns > 0) & (keypoints[:, rows, 2] > 0), axis=1)
    return result
