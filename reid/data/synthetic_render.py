"""From triangles and pictures to pixels: painter's order, one plane per triangle, and a picture look-up per pixel.

The picture is made in two steps. First every triangle that faces the camera writes its number into an image, back to
front, which costs one polygon fill each. Then all pixels at once find their place on their triangle's plane (the
perspective-correct interpolation of any linear function f is f = (a.r)/(n.r) for the pixel's ray r) and read colour,
light and reflection there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.data.synthetic_bodies import BodyShape, Chart, Floats, Mesh, Part
from reid.data.synthetic_cameras import Passage, Projection
from reid.data.synthetic_surfaces import Atlas

SKY: Final = np.array([225.0, 212.0, 203.0], np.float32)
"""Blue, green, red of what glossy surfaces reflect."""
_SHIFT: Final = 4


@dataclass(frozen=True, slots=True)
class RenderedVehicle:
    """The vehicle alone, without its surroundings."""

    colour: NDArray[np.float32]
    """(H, W, 3) BGR 0..255, undefined outside."""
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
    points = projection.pixels(mesh.vertices)
    corners = mesh.vertices[mesh.triangles]
    normals = mesh.face_normals()
    to_camera = projection.position - corners[:, 0]
    facing = np.flatnonzero(np.einsum("tc,tc->t", normals, to_camera) > 0)
    distance = np.linalg.norm(corners[facing].mean(1) - projection.position, axis=1)
    ranks = drawing_ranks(shape, projection.position)[mesh.parts[facing]]
    order = facing[np.lexsort((-distance, ranks))]
    fixed = np.round(points[mesh.triangles[order]] * (1 << _SHIFT)).astype(np.int32)
    buffer = np.full((height, width), -1, np.int32)
    for position, polygon in enumerate(fixed):
        cv2.fillConvexPoly(buffer, polygon, position, cv2.LINE_8, _SHIFT)
    flat = buffer.reshape(-1)
    pixels = np.flatnonzero(flat >= 0)
    which = flat[pixels]
    table = _plane_functions(mesh, atlas, projection, passage, order, normals)
    row, column = (part.astype(np.float32) for part in np.divmod(pixels, width))
    denominator, atlas_column, atlas_row, light, reflection = (
        a[which] * column + b[which] * row + c[which] for a, b, c in table
    )
    # the resolution of the surface picture that fits a pixel of this image
    scale = 2.0 * projection.focal / float(np.median(projection.depths(mesh.vertices)))
    level = int(np.clip(np.log2(max(atlas.scale / scale * 1.5, 1.0)), 0, len(atlas.levels) - 1))
    zoom = np.float32(1 / (1 << level))
    where = np.zeros((2, height * width), np.float32)
    where[0, pixels] = (atlas_column / denominator + 0.5) * zoom - 0.5
    where[1, pixels] = (atlas_row / denominator + 0.5) * zoom - 0.5
    across, down = where.reshape(2, height, width)
    surface = cv2.remap(atlas.levels[level], across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    texel = surface.view(np.uint32).reshape(-1)[pixels].view(np.uint8).reshape(-1, 4)
    gloss = texel[:, 3] * np.float32(1 / 255.0)
    matt = np.clip(light / denominator, 0.0, 2.0) * (1 - np.float32(0.55) * gloss)
    mirrored = np.clip(reflection / denominator, 0.0, 1.3) * (np.float32(0.62) * gloss)
    seen = np.empty((len(pixels), 3), np.float32)
    for channel in range(3):
        seen[:, channel] = texel[:, channel] * matt + mirrored * SKY[channel]
    colour = np.zeros((height * width, 3), np.float32)
    colour[pixels] = seen
    triangle = np.full(height * width, -1, np.int32)
    triangle[pixels] = order[which]
    return RenderedVehicle(colour.reshape(height, width, 3), triangle.reshape(height, width))


def _plane_functions(
    mesh: Mesh, atlas: Atlas, projection: Projection, passage: Passage, order: NDArray[np.intp], normals: Floats
) -> NDArray[np.float32]:
    """(5, 3, T) coefficients over (column, row, 1): denominator, then atlas column, atlas row, light, reflection."""
    rays = projection.rays()  # (3 world, 3 pixel)
    camera = projection.position
    normal = normals[order]
    corners = mesh.vertices[mesh.triangles[order]]  # (T, 3, 3)
    lookup = atlas.lookup[mesh.charts[order]].copy()  # (T, 2, 4)
    disc = mesh.charts[order] == int(Chart.WHEEL)
    if disc.any():
        lookup[disc, 0, 3] -= lookup[disc, 0, 0] * mesh.wheel_x[order][disc]
    light, reflection = _vertex_light(mesh, projection, passage)
    # linear functions of the position through the three corners, constant along the normal
    frame = np.concatenate([corners - camera, np.ones((len(order), 3, 1))], 2)
    frame = np.concatenate([frame, np.concatenate([normal, np.zeros((len(order), 1))], 1)[:, None]], 1)
    wanted = np.stack([light[mesh.triangles[order]], reflection[mesh.triangles[order]]], -1)
    wanted = np.concatenate([wanted, np.zeros((len(order), 1, 2))], 1)
    fitted = np.linalg.solve(frame, wanted).transpose(0, 2, 1)  # (T, 2, 4)
    moved = lookup.copy()
    moved[:, :, 3] += lookup[:, :, :3] @ camera
    functions = np.concatenate([moved, fitted], 1)  # (T, 4, 4) of (position - camera, 1)
    denominator = normal @ rays  # (T, 3)
    depth = np.einsum("tc,tc->t", normal, corners[:, 0] - camera)[:, None, None]
    numerators = functions[:, :, 3:] * denominator[:, None] + depth * (functions[:, :, :3] @ rays)
    functions = np.concatenate([denominator[:, None], numerators], 1)
    return np.ascontiguousarray(functions.transpose(1, 2, 0), dtype=np.float32)


def _vertex_light(mesh: Mesh, projection: Projection, passage: Passage) -> tuple[Floats, Floats]:
    """Light (1 = the picture's own brightness) and reflected sky (0..1) at every vertex."""
    normal = mesh.normals
    sky = 0.62 + 0.38 * normal[:, 2]
    sun = np.maximum(normal @ passage.light, 0.0)
    light = (1 - passage.direct) * 1.05 * sky + passage.direct * (0.5 * sky + 0.85 * sun)
    view = mesh.vertices - projection.position
    view /= np.linalg.norm(view, axis=1, keepdims=True)
    mirrored = view - 2 * np.einsum("vc,vc->v", view, normal)[:, None] * normal
    reflection = np.clip(0.12 + 0.95 * mirrored[:, 2], 0.05, 1.0)
    glint = np.maximum(mirrored @ passage.light, 0.0) ** 24
    fresnel = 0.55 + 0.45 * (1 - np.abs(np.einsum("vc,vc->v", view, normal))) ** 2
    return light, reflection * fresnel + passage.direct * 0.6 * glint
