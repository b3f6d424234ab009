"""Resize, crop, flip and boxes pixel by pixel, in float64; pixel centres at integers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# keypoints that trade places in a mirror, 1-based, written out once more: METHOD 1.5
PAIRS = {1: 3, 3: 1, 2: 4, 4: 2, 5: 6, 6: 5, 7: 8, 8: 7, 11: 12, 12: 11, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17}

Box = Sequence[int]


def resize_bilinear(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """(h, w, 3) to (height, width, 3): each target centre looked up between the four nearest source centres."""
    raw_height, raw_width = image.shape[:2]
    resized = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            source_y = min(max((y + 0.5) * raw_height / height - 0.5, 0.0), raw_height - 1.0)
            source_x = min(max((x + 0.5) * raw_width / width - 0.5, 0.0), raw_width - 1.0)
            top, left = math.floor(source_y), math.floor(source_x)
            below, right = min(top + 1, raw_height - 1), min(left + 1, raw_width - 1)
            v, u = source_y - top, source_x - left
            upper = (1 - u) * image[top, left].astype(float) + u * image[top, right].astype(float)
            lower = (1 - u) * image[below, left].astype(float) + u * image[below, right].astype(float)
            resized[y, x] = (1 - v) * upper + v * lower
    return resized


def resize_nearest(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """(h, w) to (height, width): each target centre takes the source pixel it falls into."""
    raw_height, raw_width = mask.shape
    resized = np.zeros((height, width), dtype=np.uint8)
    for y in range(height):
        for x in range(width):
            resized[y, x] = mask[int((y + 0.5) * raw_height / height), int((x + 0.5) * raw_width / width)]
    return resized


def crop_flip_fill(
    resized: NDArray[np.float64] | NDArray[np.uint8],
    padding: int,
    padding_colour: Sequence[float],
    crop: Sequence[int],
    flipped: bool,
    boxes: Sequence[tuple[Box, Sequence[float]]],
) -> NDArray[np.float64]:
    """Pad, crop at (top, left) of the padded image, flip, fill (top, left, height, width) boxes in order."""
    height, width, channels = resized.shape
    out = np.zeros((height, width, channels))
    for y in range(height):
        for x in range(width):
            column = width - 1 - x if flipped else x
            source_y, source_x = y + crop[0] - padding, column + crop[1] - padding
            inside = 0 <= source_y < height and 0 <= source_x < width
            out[y, x] = resized[source_y, source_x] if inside else padding_colour
            for (top, left, box_height, box_width), colour in boxes:
                if top <= y < top + box_height and left <= x < left + box_width:
                    out[y, x] = colour
    return out


def move_keypoint(
    x: float, y: float, raw_size: Sequence[int], size: Sequence[int], padding: int, crop: Sequence[int], flipped: bool
) -> tuple[float, float] | None:
    """A raw point (x, y) in the crop; None outside. Sizes are (height, width)."""
    x = (x + 0.5) / raw_size[1] * size[1] - 0.5 + padding - crop[1]
    y = (y + 0.5) / raw_size[0] * size[0] - 0.5 + padding - crop[0]
    if flipped:
        x = (size[1] - 1) - x
    if not (-0.5 <= x < size[1] - 0.5 and -0.5 <= y < size[0] - 0.5):
        return None
    return x, y


def colour_jitter(
    image: NDArray[np.uint8], brightness: float, contrast: float, saturation: float
) -> NDArray[np.float64]:
    """Brightness, then contrast about the mean grey, then saturation about each pixel's grey; clipped at the end."""
    pixels = image.astype(float) * brightness
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    pixels = contrast * pixels + (1 - contrast) * grey.mean()
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    pixels = saturation * pixels + (1 - saturation) * grey[..., None]
    return np.clip(pixels, 0, 255)


def turn_and_scale(x: float, y: float, degrees: float, scale: float, size: Sequence[int]) -> tuple[float, float]:
    """A point of an image (height, width) turned clockwise (as seen, y down) and scaled about the image's middle."""
    middle = complex((size[1] - 1) / 2, (size[0] - 1) / 2)
    turned = (
        (complex(x, y) - middle) * scale * complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    )
    return (turned + middle).real, (turned + middle).imag


def warp_bilinear(
    image: NDArray[np.uint8], degrees: float, scale: float, flipped: bool, outside: Sequence[float]
) -> NDArray[np.float64]:
    """Turn and scale an image (h, w, 3) about its middle, then flip it: each target pixel fetched from its source."""
    height, width = image.shape[:2]
    out = np.zeros(image.shape)

    def pixel(row: int, column: int) -> NDArray[np.float64]:
        inside = 0 <= row < height and 0 <= column < width
        return image[row, column].astype(float) if inside else np.array(outside, dtype=float)

    for y in range(height):
        for x in range(width):
            column = width - 1 - x if flipped else x
            # undo: the opposite turn at the inverse scale
            source_x, source_y = turn_and_scale(column, y, -degrees, 1 / scale, (height, width))
            left, top = math.floor(source_x), math.floor(source_y)
            u, v = source_x - left, source_y - top
            upper = (1 - u) * pixel(top, left) + u * pixel(top, left + 1)
            lower = (1 - u) * pixel(top + 1, left) + u * pixel(top + 1, left + 1)
            out[y, x] = (1 - v) * upper + v * lower
    return out
