"""From triangles and pictures to pixels: painter's order, one plane per triangle, and a picture look-up per pixel.

The picture is made in two steps. First every triangle that faces the camera writes its number into an image, back to
front, which costs one polygon fill each. Then all pixels at once find their place on their triangle's plane (the
perspective-correct interpolation of any linear function f is f = (a.r)/(n.r) for the pixel's ray r) and read colour,
light and reflection there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.data.synthetic_bodies import BodyShape
from reid.data.synthetic_cameras import Passage, Projection
from reid.data.synthetic_mesh import Chart, Floats, Mesh, Part
from reid.data.synthetic_surfaces import Atlas

SKY: Final = (225.0, 212.0, 203.0)
"""Blue, green, red of what glossy surfaces reflect."""
_SHIFT: Final = 4
_SLIVER_PIXELS: Final = 0.25
"""Triangles of less than half this area in the image have one colour: they are too thin for a slope."""


@dataclass(frozen=True, slots=True)
class RenderedVehicle:
    """The vehicle alone, without its surroundings."""

    colour: NDArray[np.uint8]
    """(H, W, 4) blue, green, red and an unused channel (OpenCV is faster with four), undefined outside."""
    triangle: NDArray[np.int32]
    """(H, W) number of the triangle that is seen, -1 outside."""


def drawing_ranks(shape: BodyShape, camera: Floats) -> NDArray[np.int64]:
    """(9,) rank of each `Part` in the painter's order seen from a camera position: parts of lower rank are behind."""
    order = [Part.TYRES]
    near, far = Part.LEFT_MIRROR, Part.RIGHT_MIRROR
    if camera[1] < 0:
        near, far = far, near
    cab = [far, Part.LOWER, Part.CABIN]
    load = [Part.CHASSIS, Part.BOX]
    behind = camera[0] < shape.body_end
    order += [*cab, Part.DISCS, near, *load] if behind else [*load, *cab, Part.DISCS, near]
    order.append(Part.FITTINGS)
    ranks = np.zeros(len(Part), dtype=np.int64)
    ranks[[int(part) for part in order]] = np.arange(len(order))
    if behind and shape.box_height:
        ranks[Part.DISCS] = ranks[Part.FITTINGS]
    return ranks


def render_vehicle(
    shape: BodyShape, mesh: Mesh, atlas: Atlas, projection: Projection, passage: Passage, size: tuple[int, int]
) -> RenderedVehicle:
    """Draw a vehicle into an image of `size` (width, height)."""
    width, height = size
    points, camera = projection.pixels(mesh.vertices), projection.position
    normals, offsets = mesh.planes
    facing = np.flatnonzero(normals @ camera > offsets)
    away = mesh.middles[facing] - camera
    ranks = drawing_ranks(shape, camera)[mesh.parts[facing]]
    order = facing[np.lexsort((-np.einsum("tc,tc->t", away, away), ranks))]
    fixed = np.round(points[mesh.triangles[order]] * (1 << _SHIFT)).astype(np.int32)
    triangle = np.full((height, width), -1, np.int32)
    fill, line = cv2.fillConvexPoly, cv2.LINE_8
    for number, polygon in zip(order.tolist(), fixed, strict=True):
        fill(triangle, polygon, number, line, _SHIFT)
    window = _window(points, size)
    across, down, nearness, light, reflection = _pixel_functions(
        mesh, atlas, projection, passage, points, order, triangle, window
    )
    # the resolution of the surface picture that fits a pixel of this image
    texels = atlas.scale * _distance(projection) / projection.focal
    level = min(int(math.log2(max(1.25 * texels, 1.0))), len(atlas.levels) - 1)
    zoom = np.float32(1 / (1 << level))
    factor = zoom / nearness
    shift = np.float32(0.5) * zoom - np.float32(0.5)
    surface = cv2.remap(
        atlas.levels[level], across * factor + shift, down * factor + shift, cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    *channels, gloss = cv2.split(surface)
    matt = light * (np.float32(1) - np.float32(0.55 / 255) * gloss)
    mirrored = reflection * (np.float32(0.62 / 255) * gloss)
    seen = [
        cv2.addWeighted(cv2.multiply(channel, matt, dtype=cv2.CV_32F), 1.0, mirrored, sky, 0.0, dtype=cv2.CV_8U)
        for channel, sky in zip(channels, SKY, strict=True)
    ]
    colour = np.zeros((height, width, 4), np.uint8)
    cv2.merge([*seen, gloss], colour[window])
    return RenderedVehicle(colour, triangle)


def _distance(projection: Projection) -> float:
    """Depth of the vehicle's origin."""
    return -float(projection.axes[2] @ projection.position)


def _window(points: Floats, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the part of an image that these points span."""
    columns, rows = (
        slice(max(0, int(low) - 1), min(length, int(high) + 3))
        for low, high, length in zip(points.min(0), points.max(0), size, strict=True)
    )
    return rows, columns


@lru_cache(maxsize=64)
def _surface_places(mesh: Mesh, atlas: Atlas) -> NDArray[np.float32]:
    """(2, T, 3) column and row in the finest level of the surface picture for each corner of each triangle."""
    lookup = atlas.lookup[mesh.charts]  # (T, 2, 4)
    disc = mesh.charts == int(Chart.WHEEL)
    lookup[disc, 0, 3] -= lookup[disc, 0, 0] * mesh.wheel_x[disc]
    places = np.einsum("tlc,tkc->ltk", lookup[:, :, :3], mesh.corners) + lookup[:, :, 3].T[..., None]
    return np.ascontiguousarray(places, dtype=np.float32)


def _pixel_functions(
    mesh: Mesh,
    atlas: Atlas,
    projection: Projection,
    passage: Passage,
    points: Floats,
    order: NDArray[np.intp],
    triangle: NDArray[np.int32],
    window: tuple[slice, slice],
) -> list[NDArray[np.float32]]:
    """Images of the window: atlas column and row, each times nearness, then nearness, light and reflection.

    On a triangle each of the five is a linear function a x + b y + c of the pixel: exact for the first three, as
    anything linear in space becomes linear in the image after division by the depth, and close enough for the light.
    """
    corners = mesh.triangles[order]
    nearness = (_distance(projection) / projection.depths(mesh.vertices)).astype(np.float32)
    light, reflection = _vertex_light(mesh, projection, passage)
    values = np.empty((5, len(order), 3), np.float32)
    values[2] = nearness[corners]
    np.multiply(_surface_places(mesh, atlas)[:, order], values[2], out=values[:2])
    values[3], values[4] = light[corners], reflection[corners]
    start, (side1, side2) = points[corners[:, 0]], (points[corners[:, end]] - points[corners[:, 0]] for end in (1, 2))
    double_area = side1[:, 0] * side2[:, 1] - side1[:, 1] * side2[:, 0]
    share = np.where(np.abs(double_area) < _SLIVER_PIXELS, 0.0, 1.0 / np.where(double_area == 0, 1.0, double_area))
    rise1, rise2 = values[..., 1] - values[..., 0], values[..., 2] - values[..., 0]
    table = np.ones((3, 5, len(mesh.triangles) + 1), np.float32)  # the last column is that of -1, no triangle
    a = table[0][:, order] = (rise1 * side2[:, 1] - rise2 * side1[:, 1]) * share
    b = table[1][:, order] = (rise2 * side1[:, 0] - rise1 * side2[:, 0]) * share
    table[2][:, order] = values[..., 0] - a * start[:, 0] - b * start[:, 1]
    table[:2, :, -1] = 0.0
    which = triangle[window].astype(np.intp)
    columns = np.arange(window[1].start, window[1].stop, dtype=np.float32)
    rows = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None]
    images = []
    for a, b, c in table.transpose(1, 0, 2):
        image = a.take(which)
        image *= columns
        slope = b.take(which)
        slope *= rows
        image += slope
        image += c.take(which)
        images.append(image)
    return images


def _vertex_light(
    mesh: Mesh, projection: Projection, passage: Passage
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Light (1 = the picture's own brightness) and reflected sky (0..1.3) at every vertex."""
    normal = mesh.normals
    sky = 0.62 + 0.38 * normal[:, 2]
    sun = np.maximum(normal @ passage.light, 0.0)
    light = ((1 - passage.direct) * 1.05 + passage.direct * 0.5) * sky + passage.direct * 0.85 * sun
    view = mesh.vertices - projection.position
    view /= np.sqrt(np.einsum("vc,vc->v", view, view))[:, None]
    cosine = np.einsum("vc,vc->v", view, normal)
    mirrored = view - 2 * cosine[:, None] * normal
    reflection = np.clip(0.12 + 0.95 * mirrored[:, 2], 0.05, 1.0)
    glint = np.maximum(mirrored @ passage.light, 0.0) ** 24
    fresnel = 0.55 + 0.45 * (1 - np.abs(cosine)) ** 2
    reflected = np.minimum(reflection * fresnel + passage.direct * 0.6 * glint, 1.3)
    return light.astype(np.float32), reflected.astype(np.float32)
