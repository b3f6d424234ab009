"""Other vehicles around a synthetic one: ahead, behind and in the lanes beside it, as crops of road cameras show them.

A neighbour stands in the vehicle's frame at (`along`, `across`) metres and may drive the other way. It is drawn in its
own frame, from where the camera is seen from there; what is nearer to the camera hides what is behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reid.data.synthetic_bodies import BodyShape
from reid.data.synthetic_cameras import Passage, Projection
from reid.data.synthetic_mesh import Mesh
from reid.data.synthetic_render import render_vehicle
from reid.data.synthetic_surfaces import Atlas

LANE_METRES: Final = 3.3
"""From the middle of the vehicle's lane to that of the next."""
_NEAREST_METRES: Final = 1.0
"""Neighbours with a point nearer to the camera's plane are left out: they would fill the picture."""
_MOST_HIDDEN: Final = 0.15
"""Neighbours that hide a larger share of the vehicle are left out: a detector would not have cut this crop."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a neighbour stands."""

    along: float
    """Metres ahead of the vehicle's middle, or of free road between both where `queued`; negative: behind."""
    across: float
    """Metres to the vehicle's left."""
    turned: bool
    """Whether it drives the other way."""
    queued: bool
    """Whether it drives ahead or behind in the same lane."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another vehicle, and the camera and light as seen from it."""

    shape: BodyShape
    mesh: Mesh
    atlas: Atlas
    projection: Projection
    passage: Passage

    @property
    def distance(self) -> float:
        """Metres from the camera."""
        return float(np.linalg.norm(self.projection.position))

    def is_seen(self, size: tuple[int, int]) -> bool:
        """Whether a picture of this (width, height) shows it."""
        if self.projection.depths(self.mesh.vertices).min() < _NEAREST_METRES:
            return False
        points = self.projection.pixels(self.mesh.vertices)
        return bool((points.max(0) > 1).all() and (points.min(0) < np.array(size) - 2).all())


def draw_places(density: float, generator: np.random.Generator) -> list[Place]:
    """Which of the four places around the vehicle are taken: ahead, behind, to its left, to its right.

    Args:
        density: Probability of each, 0..1.
        generator: Of this image.
    """
    places = []
    for ahead in (1.0, -1.0):
        taken, gap, across = generator.random(), generator.uniform(1.2, 5.0), generator.uniform(-0.4, 0.4)
        if taken < density:
            places.append(Place(ahead * gap, across, turned=False, queued=True))
    for left in (1.0, -1.0):
        taken, along, across = generator.random(), generator.uniform(-5.0, 5.0), generator.uniform(-0.4, 0.4)
        turned = generator.random() < 0.3  # drawn for both sides, used on the left: traffic keeps to the right
        if taken < density:
            places.append(Place(along, left * LANE_METRES + across, turned=turned and left > 0, queued=False))
    return places


def stand(
    place: Place,
    shape: BodyShape,
    mesh: Mesh,
    atlas: Atlas,
    beside: BodyShape,
    projection: Projection,
    passage: Passage,
) -> Neighbour:
    """A vehicle put into its place.

    Args:
        place: Where.
        shape: Of the neighbour, as `mesh` and `atlas`.
        mesh: Its triangles.
        atlas: Its pictures.
        beside: The vehicle in the middle.
        projection: The camera in the frame of the vehicle in the middle.
        passage: The light there.
    """
    free = beside.half + shape.half if place.queued else 0.0
    offset = np.array([place.along + np.copysign(free, place.along), place.across, 0.0])
    forward = -1.0 if place.turned else 1.0
    turn = np.diag([forward, forward, 1.0])
    seen = Projection(
        turn @ (projection.position - offset), projection.axes @ turn, projection.focal, projection.centre
    )
    return Neighbour(shape, mesh, atlas, seen, replace(passage, light=turn @ passage.light))


def draw_behind(
    scene: NDArray[np.uint8], neighbours: Sequence[Neighbour], distance: float, size: tuple[int, int]
) -> None:
    """Draw the neighbours that stand behind the vehicle into the picture.

    Args:
        scene: (H, W, 4), changed in place.
        neighbours: All of them.
        distance: Of the vehicle from the camera.
        size: (width, height).
    """
    for neighbour in sorted(neighbours, key=lambda n: -n.distance):
        if neighbour.distance >= distance:
            colour, there = _drawn(neighbour, size)
            scene[there] = colour[there]


def draw_before(
    scene: NDArray[np.uint8],
    covered: NDArray[np.bool_],
    neighbours: Sequence[Neighbour],
    distance: float,
    size: tuple[int, int],
) -> NDArray[np.bool_]:
    """Draw the neighbours that stand before the vehicle into the picture.

    Args:
        scene: (H, W, 4), changed in place.
        covered: (H, W) where the vehicle is.
        neighbours: All of them.
        distance: Of the vehicle from the camera.
        size: (width, height).

    Returns:
        (H, W) where they are.
    """
    hidden = np.zeros(covered.shape, np.bool_)
    most = _MOST_HIDDEN * np.count_nonzero(covered)
    for neighbour in sorted(neighbours, key=lambda n: -n.distance):
        if neighbour.distance < distance:
            colour, there = _drawn(neighbour, size)
            if np.count_nonzero(covered & (hidden | there)) <= most:
                scene[there] = colour[there]
                hidden |= there
    return hidden


def _drawn(neighbour: Neighbour, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(H, W, 4) the neighbour's colours and (H, W) where it is."""
    drawn = render_vehicle(
        neighbour.shape, neighbour.mesh, neighbour.atlas, neighbour.projection, neighbour.passage, size
    )
    return drawn.colour, drawn.triangle >= 0
