"""Everything around a synthetic vehicle: road, distance, shadow, things in front of it, and the camera's own faults."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.data.synthetic_bodies import BodyShape, Floats
from reid.data.synthetic_cameras import Passage, Projection, RoadCamera, colour_transfer

Picture = NDArray[np.float32]

_TILE_METRES: Final = 30.0
_TILE_PIXELS: Final = 480


@lru_cache(maxsize=64)
def road_picture(seed: int) -> NDArray[np.uint8]:
    """(480, 480, 3) BGR: 30 m x 30 m of road seen from above, the vehicle's lane along the rows."""
    generator = np.random.default_rng([seed, 11])
    tone = generator.uniform(88, 150)
    tint = generator.normal(0, 4, 3)
    picture = np.full((_TILE_PIXELS, _TILE_PIXELS, 3), tone, np.float32) + tint.astype(np.float32)
    for size, strength in ((6, 9.0), (24, 6.0), (120, 5.0), (480, 5.0)):
        noise = generator.normal(0, strength, (size, size)).astype(np.float32)
        picture += cv2.resize(noise, (_TILE_PIXELS, _TILE_PIXELS), interpolation=cv2.INTER_CUBIC)[..., None]
    scale = _TILE_PIXELS / _TILE_METRES
    middle = _TILE_PIXELS / 2
    lane = generator.uniform(3.2, 3.8)
    white = float(tone + generator.uniform(60, 100))
    for index, line in enumerate((-0.5, 0.5, 1.5, -1.5)):
        y = round(middle + line * lane * scale)
        if index == int(generator.integers(5)):
            continue
        if index % 2:
            picture[y - 1 : y + 2] = 0.25 * picture[y - 1 : y + 2] + 0.75 * white
        else:
            dash = int(generator.integers(40, 90))
            for start in range(0, _TILE_PIXELS, 2 * dash):
                picture[y - 1 : y + 2, start : start + dash] = white
    for sign in (-1, 1):
        edge = round(middle + sign * lane * scale * generator.uniform(1.55, 2.2))
        verge = np.array([(95, 115, 105), (70, 110, 80), (150, 155, 160)][int(generator.integers(3))], np.float32)
        rows = slice(edge, _TILE_PIXELS) if sign > 0 else slice(0, edge)
        texture = generator.normal(0, 14, picture[rows].shape[:2]).astype(np.float32)
        picture[rows] = verge + texture[..., None]
        picture[edge - 3 : edge + 3] = 175 + generator.uniform(-20, 20)
    if generator.random() < 0.4:
        x = int(generator.integers(80, 400))
        for stripe in range(-5, 6, 2):
            y = round(middle + stripe * 0.45 * scale)
            picture[y - 3 : y + 4, x : x + 45] = white
    return as_bytes(picture)


@lru_cache(maxsize=64)
def distant_picture(seed: int) -> NDArray[np.uint8]:
    """(96, 192, 3) BGR blur of trees, walls and sky that stands above the horizon."""
    generator = np.random.default_rng([seed, 12])
    coarse = generator.uniform(50, 170, (5, 9, 1)) + generator.normal(0, 14, (5, 9, 3))
    coarse[0] += 50
    return as_bytes(cv2.resize(coarse.astype(np.float32), (192, 96), interpolation=cv2.INTER_CUBIC))


def as_bytes(picture: Picture) -> NDArray[np.uint8]:
    """The picture rounded and limited to 0..255."""
    return np.asarray(np.clip(np.round(picture), 0, 255), dtype=np.uint8)


def draw_ground(
    camera: RoadCamera, projection: Projection, size: tuple[int, int], passage: Passage, shot: np.random.Generator
) -> Picture:
    """(H, W, 3) the road where the vehicle stands, and the distance where the picture reaches above the horizon."""
    width, height = size
    road = road_picture(camera.road)
    scale = _TILE_PIXELS / _TILE_METRES
    along = shot.uniform(-4, 4)
    # image of the ground point (X, Y, 0, 1), then from tile pixels to ground
    matrix = np.zeros((3, 3))
    for column, point in enumerate(([1.0, 0, 0], [0, 1.0, 0])):
        local = projection.axes @ np.array(point)
        matrix[:, column] = local
    matrix[:, 2] = -projection.axes @ projection.position
    centre_x, centre_y = projection.centre
    camera_matrix = np.array([[projection.focal, 0, centre_x], [0, projection.focal, centre_y], [0, 0, 1.0]])
    to_ground = np.array([[-1 / scale, 0, _TILE_METRES / 2 + along], [0, 1 / scale, -_TILE_METRES / 2], [0, 0, 1.0]])
    homography = camera_matrix @ matrix @ to_ground
    picture = cv2.warpPerspective(road, homography, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    light = (1 - passage.direct) + passage.direct * (0.5 + 0.85 * passage.light[2])
    ground: Picture = picture.astype(np.float32) * np.float32(light)
    rays = projection.rays()[2]  # height gained per unit of depth, over (column, row, 1)
    corners = [rays @ [x, y, 1.0] for x, y in ((0, 0), (width, 0))]
    if max(corners) > -0.02:
        rise = rays[0] * np.arange(width)[None] + rays[1] * np.arange(height)[:, None] + rays[2]
        far = cv2.resize(distant_picture(camera.road), size).astype(np.float32)
        share = np.clip((rise + 0.03) / 0.02, 0.0, 1.0)[..., None].astype(np.float32)
        ground = ground * (1 - share) + far * share
    return ground


def cast_shadow(ground: Picture, shape: BodyShape, projection: Projection, passage: Passage) -> None:
    """Darken the road under the vehicle and on its side away from the sun, in place."""
    half, wide = shape.half * 0.97, shape.width / 2
    height = max(shape.height, shape.box_height) * 0.85
    slope = -passage.light[:2] / max(float(passage.light[2]), 0.3)
    footprint = np.array([(half, wide), (half, -wide), (-half, -wide), (-half, wide)])
    upper = footprint * [0.7, 0.85] + slope * height
    size = ground.shape[:2]
    quarter = (max(8, size[1] // 3), max(8, size[0] // 3))
    factors = np.array([quarter[0] / size[1], quarter[1] / size[0]])
    shadow = np.zeros((quarter[1], quarter[0]), np.float32)
    strength = 0.25 + 0.4 * passage.direct
    _fill(shadow, np.concatenate([footprint, upper]), projection, factors, 0.55 * passage.direct)
    _fill(shadow, footprint * 1.03, projection, factors, strength)
    shadow = cv2.GaussianBlur(shadow, (0, 0), max(0.8, 0.012 * quarter[0]))
    _fill(contact := np.zeros_like(shadow), footprint * 0.94, projection, factors, 0.45)
    shadow = np.maximum(shadow, cv2.GaussianBlur(contact, (0, 0), 0.7) + 0.5 * shadow)
    ground *= 1 - np.minimum(cv2.resize(shadow, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), 0.85)[..., None]


def _fill(target: Picture, outline: Floats, projection: Projection, factors: Floats, value: float) -> None:
    points = projection.pixels(np.concatenate([outline, np.zeros((len(outline), 1))], 1)) * factors
    hull = cv2.convexHull(np.round(points * 16).astype(np.int32))
    cv2.fillConvexPoly(target, hull, float(value), cv2.LINE_AA, 4)


def draw_obstacle(size: tuple[int, int], shot: np.random.Generator) -> tuple[Picture, NDArray[np.bool_]]:
    """Something close to the camera: a post, or part of another vehicle at an edge.

    Returns:
        (H, W, 3) its colours and (H, W) where it is.
    """
    width, height = size
    colour = np.zeros((height, width, 3), np.uint8)
    cover = np.zeros((height, width), np.uint8)
    tone = tuple(int(value) for value in np.clip(shot.uniform(30, 200) + shot.normal(0, 20, 3), 10, 240))
    if shot.random() < 0.45:
        x, thick = shot.uniform(0.15, 0.85) * width, shot.uniform(0.025, 0.06) * width
        lean = shot.uniform(-0.06, 0.06) * width
        post = np.array([(x, -2), (x + thick, -2), (x + thick + lean, height + 2), (x + lean, height + 2)])
        cv2.fillConvexPoly(cover, np.round(post).astype(np.int32), 255)
        ramp = np.linspace(0.75, 1.15, width)[None, :, None]
        return (np.array(tone)[None, None] * ramp * np.ones((height, 1, 1))).astype(np.float32), cover > 0
    left = shot.random() < 0.5
    reach, rise = shot.uniform(0.12, 0.32) * width, shot.uniform(0.18, 0.42) * height
    top, belt = height - rise, height - 0.62 * rise
    outline = np.array(
        [(-5, top), (0.55 * reach, top), (0.8 * reach, belt), (reach, height - 0.5 * rise), (reach, height + 5),
         (-5, height + 5)]
    )  # fmt: skip
    sill = height - 0.92 * rise
    glass = np.array([(-5, sill), (0.5 * reach, sill), (0.72 * reach, belt), (-5, belt)])
    if not left:
        outline, glass = outline * [-1, 1] + [width - 1, 0], glass * [-1, 1] + [width - 1, 0]
    colour[:] = tone
    cv2.fillConvexPoly(cover, np.round(outline).astype(np.int32), 255)
    cv2.fillConvexPoly(colour, np.round(glass).astype(np.int32), (45, 42, 40))
    return colour.astype(np.float32), cover > 0


def develop(
    scene: Picture, camera: RoadCamera, passage: Passage, size: tuple[int, int], shot: np.random.Generator
) -> NDArray[np.uint8]:
    """(H, W, 3) BGR: the scene through the camera's optics, sensor and colours, at the raw image's size."""
    width, height = size
    long = max(scene.shape[:2])
    sigma = camera.blur * shot.uniform(0.75, 1.3) * long / 256.0
    if sigma > 0.2:
        scene = cv2.GaussianBlur(scene, (0, 0), sigma)
    picture = cv2.resize(scene, size, interpolation=cv2.INTER_AREA)
    weights = (1 - camera.saturation) * np.array([[0.114, 0.587, 0.299]]) + camera.saturation * np.eye(3)
    picture = cv2.transform(picture, weights)
    table = colour_transfer(camera, passage.brightness)
    indices = np.clip(picture, 0, 255).astype(np.uint8)
    picture = cv2.LUT(indices, table.reshape(1, 256, 3))
    # fine grain of brightness, coarser grain of colour
    grain = shot.standard_normal((height, width), np.float32)[..., None]
    tint = cv2.resize(shot.standard_normal((height // 2 + 1, width // 2 + 1, 3), np.float32), size)
    picture += np.float32(camera.noise) * (grain + np.float32(0.7) * tint)
    return as_bytes(picture)
