"""Planes and keypoints over an image: what the network is told about the vehicle's pose."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.keypoints import NUM_KEYPOINTS, NUM_PLANES, PLANE_NAMES
from reid.visual.mosaic import (
    INK,
    PAPER,
    WHITE,
    Colour,
    Image,
    captioned,
    check_image,
    filled,
    fit_tile,
    row,
    write_text,
)

PLANE_COLOURS: Final[dict[str, Colour]] = {
    "front": (224, 108, 36),
    "back": (168, 85, 212),
    "side": (36, 132, 222),
    "top": (36, 168, 96),
}
_SUBPIXEL_BITS: Final = 4


def draw_planes(
    image: Image,
    corners: NDArray[np.floating],
    visible: NDArray[np.bool_],
    keypoints: NDArray[np.floating] | None = None,
    *,
    tile_size: int | None = None,
) -> Image:
    """The image with its visible planes filled lightly and outlined, and the visible keypoints with their numbers.

    Args:
        image: (H, W, 3) uint8 RGB.
        corners: (4, 4, 2) x, y in pixels of `image` per plane (front, back, side, top), in order around it.
        visible: (4,) which planes to draw.
        keypoints: (20, 3) x, y and visibility, or None.
        tile_size: Longer side of the result in pixels (the drawing is done at that size); default: as the image.

    Raises:
        ValueError: If shapes do not fit.
    """
    check_image(image)
    if corners.shape != (NUM_PLANES, 4, 2) or visible.shape != (NUM_PLANES,):
        raise ValueError(
            f"expected corners ({NUM_PLANES}, 4, 2) and visible ({NUM_PLANES},), "
            f"got {corners.shape} and {visible.shape}"
        )
    canvas, scale = _enlarged(image, tile_size)
    thickness = max(1, round(max(canvas.shape[:2]) / 160))
    filled_in = canvas.copy()
    polygons = [
        (PLANE_COLOURS[name], _subpixels(corners[plane], scale))
        for plane, name in enumerate(PLANE_NAMES)
        if visible[plane]
    ]
    for colour, polygon in polygons:
        cv2.fillPoly(filled_in, [polygon], colour, cv2.LINE_AA, _SUBPIXEL_BITS)
    cv2.addWeighted(canvas, 0.65, filled_in, 0.35, 0, dst=canvas)
    for colour, polygon in polygons:
        cv2.polylines(canvas, [polygon], True, colour, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)
    if keypoints is not None:
        _draw_points(canvas, keypoints, scale)
    return canvas


def draw_keypoints(image: Image, keypoints: NDArray[np.floating], *, tile_size: int | None = None) -> Image:
    """The image with the visible ones of its (20, 3) keypoints, numbered 1..20."""
    check_image(image)
    canvas, scale = _enlarged(image, tile_size)
    _draw_points(canvas, keypoints, scale)
    return canvas


def planes_picture(pictures: list[tuple[str, Image]], tile_size: int = 200) -> Image:
    """Several images with planes in a row, a caption below each, and the key of the colours at the left.

    Raises:
        ValueError: If there are none.
    """
    if not pictures:
        raise ValueError("expected at least one image with planes, got none")
    key = filled(tile_size, 64, PAPER)
    for place, name in enumerate(PLANE_NAMES):
        top = 10 + 26 * place
        cv2.rectangle(key, (4, top), (16, top + 12), PLANE_COLOURS[name], -1)
        write_text(key, name, (22, top + 11), 0.4, INK)
    return row([key, *(captioned(fit_tile(image, tile_size), caption) for caption, image in pictures)])


def _enlarged(image: Image, tile_size: int | None) -> tuple[Image, float]:
    if tile_size is None:
        return image.copy(), 1.0
    scale = tile_size / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    resized: Image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return resized, scale


def _scaled(points: NDArray[np.floating], scale: float) -> NDArray[np.float64]:
    """Pixel centres are at integers, so scaling is about the point (-0.5, -0.5)."""
    return (points.astype(np.float64) + 0.5) * scale - 0.5


def _subpixels(points: NDArray[np.floating], scale: float) -> NDArray[np.int32]:
    return np.rint(np.clip(_scaled(points, scale), -1e5, 1e5) * 2**_SUBPIXEL_BITS).astype(np.int32)


def _draw_points(canvas: Image, keypoints: NDArray[np.floating], scale: float) -> None:
    if keypoints.shape != (NUM_KEYPOINTS, 3):
        raise ValueError(f"expected keypoints ({NUM_KEYPOINTS}, 3), got {keypoints.shape}")
    size = max(canvas.shape[:2])
    radius = max(2, size // 90)
    for number in np.flatnonzero(keypoints[:, 2] > 0):
        x, y = _subpixels(keypoints[number, :2], scale).tolist()
        shift = 2**_SUBPIXEL_BITS
        cv2.circle(canvas, (x, y), (radius + 1) * shift, INK, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
        cv2.circle(canvas, (x, y), radius * shift, (255, 221, 51), -1, cv2.LINE_AA, _SUBPIXEL_BITS)
        position = (x // shift + radius + 2, y // shift + radius)
        write_text(canvas, str(number + 1), position, max(0.3, size / 620), WHITE, outline=INK)
