"""Everything around a synthetic vehicle: road, distance, shadow, things in front of it, and the camera's own faults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.data.synthetic_bodies import BodyShape
from reid.data.synthetic_cameras import Passage, Projection, RoadCamera, colour_transfer
from reid.data.synthetic_surfaces import filled_picture

Picture = NDArray[np.uint8]
"""(H, W, 4) blue, green, red and an unused channel: OpenCV warps and scales four channels faster than three."""

_TILE_METRES: Final = 30.0
_TILE_PIXELS: Final = 480


@lru_cache(maxsize=64)
def road_picture(seed: int) -> Picture:
    """(480, 480, 4): 30 m x 30 m of road seen from above, the vehicle's lane along the rows."""
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
    return _as_picture(picture)


@lru_cache(maxsize=64)
def distant_picture(seed: int) -> Picture:
    """(96, 192, 4) blur of trees, walls and sky that stands above the horizon."""
    generator = np.random.default_rng([seed, 12])
    coarse = generator.uniform(50, 170, (5, 9, 1)) + generator.normal(0, 14, (5, 9, 3))
    coarse[0] += 50
    return _as_picture(cv2.resize(coarse.astype(np.float32), (192, 96), interpolation=cv2.INTER_CUBIC))


def _as_picture(values: NDArray[np.float32]) -> Picture:
    """(H, W, 3) values rounded and limited to 0..255, as a picture."""
    return np.asarray(cv2.cvtColor(np.clip(np.round(values), 0, 255).astype(np.uint8), cv2.COLOR_BGR2BGRA))


@lru_cache(maxsize=2)
def grain_picture(side: int) -> NDArray[np.float32]:
    """(side, side, 3) sensor noise: fine grain of brightness with deviation 1 and coarser grain of colour with 0.7.

    Drawn once: the images take windows of it, which costs nothing beside drawing a number for each pixel.
    """
    generator = np.random.default_rng([side, 13])
    half = generator.standard_normal((side // 2 + 1, side // 2 + 1, 3), np.float32)
    grain = np.float32(0.7) * np.asarray(cv2.resize(half, (side, side)))
    grain += generator.standard_normal((side, side, 1), np.float32)
    return np.asarray(grain)


def draw_ground(
    camera: RoadCamera,
    casters: Sequence[tuple[BodyShape, Projection, Passage]],
    size: tuple[int, int],
    shot: np.random.Generator,
) -> Picture:
    """(H, W, 4) the road with the vehicles' shadows, and the distance where the picture reaches above the horizon.

    Args:
        camera: whose road it is.
        casters: of each vehicle its shape, and camera and light in its own frame; the first is the one in the middle.
        size: (width, height).
        shot: of this image.
    """
    _, projection, passage = casters[0]
    width, height = size
    scale = _TILE_PIXELS / _TILE_METRES
    along = shot.uniform(-4, 4)
    # image of the ground point (X, Y, 0, 1), then from tile pixels to ground
    axes, (centre_x, centre_y) = projection.axes, projection.centre
    matrix = np.column_stack([axes[:, 0], axes[:, 1], -axes @ projection.position])
    camera_matrix = np.array([[projection.focal, 0, centre_x], [0, projection.focal, centre_y], [0, 0, 1.0]])
    to_ground = np.array([[-1 / scale, 0, _TILE_METRES / 2 + along], [0, 1 / scale, -_TILE_METRES / 2], [0, 0, 1.0]])
    # half as wide, as the road's texture is seen foreshortened: coarser across than down
    narrow = np.array([[0.5, 0, -0.25], [0, 1.0, 0], [0, 0, 1.0]])
    homography = narrow @ camera_matrix @ matrix @ to_ground
    half_size = (-(-width // 2), height)
    road = cv2.warpPerspective(
        road_picture(camera.road), homography, half_size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    light = (1 - passage.direct) + passage.direct * (0.5 + 0.85 * float(passage.light[2]))
    shares = (_lit_share(size, *caster) for caster in casters)
    lit = cv2.resize(reduce(cv2.min, shares), half_size, interpolation=cv2.INTER_LINEAR)
    ground = np.asarray(cv2.resize(cv2.multiply(road, lit, scale=light / 255), size, interpolation=cv2.INTER_LINEAR))
    rise = projection.rays()[2]  # height gained per unit of depth, over (column, row, 1)
    if rise[2] + max(0.0, rise[0] * width) > -0.02:
        above = rise[0] * np.arange(width)[None] + rise[1] * np.arange(height)[:, None] + rise[2]
        far = cv2.resize(distant_picture(camera.road), size).astype(np.float32)
        share = np.clip((above + 0.03) / 0.02, 0.0, 1.0)[..., None].astype(np.float32)
        ground = np.round(ground * (1 - share) + far * share).astype(np.uint8)
    return ground


def _lit_share(size: tuple[int, int], shape: BodyShape, projection: Projection, passage: Passage) -> Picture:
    """A third of the size: 255 where the road is lit, less under the vehicle and on its side away from the sun."""
    half, wide = shape.half * 0.97, shape.width / 2
    height = max(shape.height, shape.box_height) * 0.85
    slope = -passage.light[:2] / max(float(passage.light[2]), 0.3)
    footprint = np.array([(half, wide, 0.0), (half, -wide, 0.0), (-half, -wide, 0.0), (-half, wide, 0.0)])
    upper = footprint * [0.7, 0.85, 1.0] + [*(slope * height), 0.0]
    third = (max(8, size[0] // 3), max(8, size[1] // 3))
    outlines = projection.pixels(np.concatenate([footprint, upper, footprint * 1.03, footprint * 0.94]))
    fixed = np.round(outlines * (np.array(third) / size) * 16).astype(np.int32)
    shadow, contact = np.zeros((2, third[1], third[0]), np.float32)
    for target, outline, value in (
        (shadow, fixed[:8], 0.55 * passage.direct),
        (shadow, fixed[8:12], 0.25 + 0.4 * passage.direct),
        (contact, fixed[12:], 0.45),
    ):
        cv2.fillConvexPoly(target, cv2.convexHull(outline), value, cv2.LINE_AA, 4)
    shadow = np.asarray(cv2.GaussianBlur(shadow, (0, 0), max(0.8, 0.012 * third[0])))
    shadow = np.maximum(shadow, cv2.GaussianBlur(contact, (0, 0), 0.7) + np.float32(0.5) * shadow)
    lit = np.asarray(cv2.convertScaleAbs(np.maximum(1 - shadow, np.float32(0.15)), alpha=255.0))
    return np.asarray(cv2.merge([lit] * 4))


def draw_obstacle(size: tuple[int, int], shot: np.random.Generator) -> tuple[Picture, NDArray[np.bool_]]:
    """Something close to the camera: a post, or part of another vehicle at an edge.

    Returns:
        (H, W, 4) its colours and (H, W) where it is.
    """
    width, height = size
    cover = np.zeros((height, width), np.uint8)
    tone = tuple(int(value) for value in np.clip(shot.uniform(30, 200) + shot.normal(0, 20, 3), 10, 240))
    if shot.random() < 0.45:
        x, thick = shot.uniform(0.15, 0.85) * width, shot.uniform(0.025, 0.06) * width
        lean = shot.uniform(-0.06, 0.06) * width
        post = np.array([(x, -2), (x + thick, -2), (x + thick + lean, height + 2), (x + lean, height + 2)])
        cv2.fillConvexPoly(cover, np.round(post).astype(np.int32), 255)
        row = np.minimum(np.array([*tone, 0]) * np.linspace(0.75, 1.15, width)[:, None], 255.0).astype(np.uint8)
        return np.repeat(row[None], height, 0), cover > 0
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
    colour = filled_picture(height, width, (*tone, 0))
    cv2.fillConvexPoly(cover, np.round(outline).astype(np.int32), 255)
    cv2.fillConvexPoly(colour, np.round(glass).astype(np.int32), (45, 42, 40))
    return colour, cover > 0


def develop(
    scene: Picture, camera: RoadCamera, passage: Passage, size: tuple[int, int], shot: np.random.Generator
) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: the scene through the camera's optics, sensor and colours, at the raw image's size."""
    width, height = size
    long = max(scene.shape[:2])
    # what the average over a raw pixel blurs more than the linear interpolation that stands for it
    ratio = long / max(size)
    pixel = max(0.0, ratio**2 / 12 - 1 / 6) if ratio > 1 else 0.0
    sigma = math.hypot(camera.blur * shot.uniform(0.75, 1.3) * long / 256.0, math.sqrt(pixel))
    picture = np.asarray(cv2.cvtColor(scene, cv2.COLOR_BGRA2RGB))
    if sigma > 0.2:
        taps = 2 * math.ceil(2.5 * sigma) + 1
        picture = np.asarray(cv2.GaussianBlur(picture, (taps, taps), sigma))
    if max(scene.shape[:2]) != max(size):
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR))
    weights = (1 - camera.saturation) * np.array([[0.299, 0.587, 0.114]]) + camera.saturation * np.eye(3)
    picture = np.asarray(cv2.transform(picture, weights))
    table = np.ascontiguousarray(colour_transfer(camera, passage.brightness)[None, :, ::-1])
    grain = grain_picture(640 if max(size) <= 384 else 1280)
    left, top = (int(shot.integers(grain.shape[0] - length + 1)) for length in size)
    window = grain[top : top + height, left : left + width]
    return np.asarray(cv2.addWeighted(window, camera.noise, cv2.LUT(picture, table), 1.0, 0.0, dtype=cv2.CV_8U))
