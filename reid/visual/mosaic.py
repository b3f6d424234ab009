"""Pieces that pictures are put together from: tiles of one size, frames, text, grids.

Convention: images are (H, W, 3) uint8 RGB; colours are RGB triples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

GREEN: Final[Colour] = (46, 160, 67)
RED: Final[Colour] = (218, 54, 51)
BLUE: Final[Colour] = (56, 114, 214)
GREY: Final[Colour] = (128, 134, 142)
PAPER: Final[Colour] = (246, 247, 249)
INK: Final[Colour] = (36, 41, 47)
WHITE: Final[Colour] = (255, 255, 255)


def check_image(image: Image, name: str = "image") -> None:
    """Refuse what is not an (H, W, 3) uint8 image.

    Raises:
        ValueError: Naming shape and type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"expected {name} of shape (H, W, 3) and type uint8, got {image.shape} {image.dtype}")


def fit_tile(image: Image, size: int, background: Colour = PAPER) -> Image:
    """The image in the middle of a size x size tile, scaled without distortion.

    >>> fit_tile(np.zeros((10, 20, 3), np.uint8), 8).shape
    (8, 8, 3)
    """
    check_image(image)
    height, width = image.shape[:2]
    scale = size / max(height, width)
    new = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = cv2.resize(image, new, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    tile = filled(size, size, background)
    top, left = (size - new[1]) // 2, (size - new[0]) // 2
    tile[top : top + new[1], left : left + new[0]] = resized
    return tile


def filled(height: int, width: int, colour: Colour = PAPER) -> Image:
    """An image of one colour."""
    return np.full((height, width, 3), colour, np.uint8)


def framed(image: Image, colour: Colour, thickness: int) -> Image:
    """The image with a frame around it (the picture grows by twice the thickness)."""
    bordered: Image = cv2.copyMakeBorder(
        image, thickness, thickness, thickness, thickness, cv2.BORDER_CONSTANT, value=colour
    )
    return bordered


def captioned(image: Image, text: str, colour: Colour = INK, background: Colour = PAPER, height: int = 22) -> Image:
    """The image with a line of text below it; the text shrinks to fit."""
    strip = filled(height, image.shape[1], background)
    write_text(strip, text, (4, height - 7), 0.5, colour, max_width=image.shape[1] - 8)
    return np.concatenate((image, strip))


def write_text(
    image: Image,
    text: str,
    position: tuple[int, int],
    scale: float,
    colour: Colour,
    *,
    max_width: int | None = None,
    outline: Colour | None = None,
) -> None:
    """Write into the image, baseline starting at (x, y); a wider text than `max_width` is drawn smaller."""
    if max_width is not None:
        (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        scale *= min(1.0, max_width / max(1, width))
    if outline is not None:
        cv2.putText(image, text, position, cv2.FONT_HERSHEY_SIMPLEX, scale, outline, 3, cv2.LINE_AA)
    cv2.putText(image, text, position, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)


def row(images: Sequence[Image], gap: int = 6, background: Colour = PAPER) -> Image:
    """Images side by side, aligned at the top."""
    height = max(image.shape[0] for image in images)
    parts: list[Image] = []
    for image in images:
        if parts:
            parts.append(filled(height, gap, background))
        parts.append(np.concatenate((image, filled(height - image.shape[0], image.shape[1], background))))
    return np.concatenate(parts, axis=1)


def column(images: Sequence[Image], gap: int = 6, background: Colour = PAPER) -> Image:
    """Images below one another, aligned at the left."""
    width = max(image.shape[1] for image in images)
    parts: list[Image] = []
    for image in images:
        if parts:
            parts.append(filled(gap, width, background))
        parts.append(np.concatenate((image, filled(image.shape[0], width - image.shape[1], background)), axis=1))
    return np.concatenate(parts)


def encode_jpeg(image: Image, quality: int = 88) -> bytes:
    """The image as a JPEG file."""
    check_image(image)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(data)


def save_picture(image: Image, path: Path) -> None:
    """Write the image as a JPEG or PNG file, by the ending of `path`.

    Raises:
        ValueError: For another ending.
    """
    if path.suffix.lower() not in {".jpg", ".jpeg", ".png"}:
        raise ValueError(f"expected a picture's name to end in .jpg or .png, got {path.name!r}")
    check_image(image)
    _, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    path.write_bytes(bytes(data))
