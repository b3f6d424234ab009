"""Masks and part boxes over images: what a network is told about where the vehicle and its parts are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.visual.mosaic import INK, PAPER, RED, Colour, Image, captioned, check_image, column, fit_tile, framed, row

PART_COLOURS: Final[tuple[Colour, ...]] = ((224, 108, 36), (36, 168, 96), (168, 85, 212), (218, 165, 32))
"""Of the boxes from top to bottom, then from the beginning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedImage:
    """One picture of the mosaic."""

    image: Image
    mask: NDArray[np.uint8] | None = None
    """(H, W) 0/1 of the image's size."""
    boxes: NDArray[np.float32] | None = None
    """(K, 4) left, top, right, bottom as shares of the image's sides."""
    caption: str = ""
    flagged: bool = False
    """Drawn in a red frame: the mask is a fallback."""


def draw_mask(image: Image, mask: NDArray[np.uint8], colour: Colour = (36, 132, 222)) -> Image:
    """The image with the background darkened and the outline of the (H, W) 0/1 mask drawn.

    Raises:
        ValueError: If the sizes differ.
    """
    check_image(image)
    if mask.shape != image.shape[:2]:
        raise ValueError(f"expected a mask of the image's size {image.shape[:2]}, got {mask.shape}")
    inside = (mask > 0).astype(np.uint8)
    canvas: Image = np.where(inside[..., None] > 0, image, (image * 0.35).astype(np.uint8))
    contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, colour, max(1, round(max(mask.shape) / 200)), cv2.LINE_AA)
    return canvas


def draw_boxes(image: Image, boxes: NDArray[np.floating]) -> Image:
    """The image with its (K, 4) part boxes: left, top, right, bottom as shares 0..1 of the sides.

    Raises:
        ValueError: If the shape is another.
    """
    check_image(image)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"expected boxes of shape (K, 4), got {boxes.shape}")
    canvas = image.copy()
    height, width = image.shape[:2]
    thickness = max(1, round(max(height, width) / 80))
    for number, box in enumerate(boxes):
        left, top, right, bottom = np.rint(box * (width, height, width, height)).astype(int).tolist()
        colour = PART_COLOURS[number % len(PART_COLOURS)]
        cv2.rectangle(canvas, (left, top), (max(left, right - 1), max(top, bottom - 1)), colour, thickness)
    return canvas


def masks_picture(images: Sequence[MaskedImage], *, columns: int = 6, tile_size: int = 180) -> Image:
    """A mosaic of images with the outlines of their masks and their part boxes; fallbacks have a red frame.

    Raises:
        ValueError: If there are none.
    """
    if not images:
        raise ValueError("expected at least one image with a mask, got none")
    tiles = []
    for masked in images:
        # Drawn at the size of the tile: outlines are as thick on a small photograph as on a large one.
        scale = tile_size / max(masked.image.shape[:2])
        picture = scaled(masked.image, scale)
        if masked.mask is not None:
            picture = draw_mask(picture, scaled(masked.mask, scale, nearest=True))
        if masked.boxes is not None:
            picture = draw_boxes(picture, masked.boxes)
        colour = RED if masked.flagged else PAPER
        tile = framed(fit_tile(picture, tile_size), colour, 3)
        tiles.append(captioned(tile, masked.caption, RED if masked.flagged else INK))
    rows = [row(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    return framed(column(rows), PAPER, 6)


def scaled(image: NDArray[np.uint8], scale: float, *, nearest: bool = False) -> NDArray[np.uint8]:
    """An image (H, W, 3) or mask (H, W), its sides times `scale`; masks by the nearest pixel."""
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    result: NDArray[np.uint8] = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST_EXACT if nearest else smooth)
    return result
