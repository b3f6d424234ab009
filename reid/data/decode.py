"""Bytes of an image file to pixels, or the reason why not."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

JPEG_START: Final = b"\xff\xd8"
JPEG_SCAN: Final = b"\xff\xda"
JPEG_END: Final = b"\xff\xd9"


class UnreadableImageError(ValueError):
    """An image that cannot be used; `reason` is one word of a fixed set, fit for a counter's label."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that the error survives pickling between processes
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def decode_image(data: bytes | memoryview) -> NDArray[np.uint8]:
    """Pixels of a JPEG, PNG ... file as RGB, as stored (an EXIF orientation is not applied: packing has done that).

    Args:
        data: The file's bytes.

    Returns:
        (height, width, 3) uint8 RGB; grey images are repeated, 16-bit ones scaled, transparency dropped.

    Raises:
        UnreadableImageError: "image_truncated" for a JPEG that stops early (never half a picture in grey),
            "image_unreadable" for anything else that is not an image.
    """
    _refuse_truncated(data)
    pixels = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    rgb: NDArray[np.uint8] = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    return rgb


def decode_mask(data: bytes | memoryview) -> NDArray[np.uint8]:
    """Pixels of a mask file.

    Args:
        data: The file's bytes (0 background, 255 foreground).

    Returns:
        (height, width) uint8, 1 where the mask is at least 128 and 0 elsewhere.

    Raises:
        UnreadableImageError: As in `decode_image`.
    """
    _refuse_truncated(data)
    pixels = _decode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    return pixels >> np.uint8(7)


def _decode(data: bytes | memoryview, flags: int) -> NDArray[np.uint8]:
    if len(data) == 0:
        raise UnreadableImageError("image_unreadable", "0 bytes")
    try:
        pixels: NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error as error:  # such as more pixels than OpenCV's limit
        raise UnreadableImageError("image_unreadable", str(error)) from error
    if pixels is None:
        raise UnreadableImageError("image_unreadable", f"{len(data)} bytes that begin with {bytes(data[:8])!r}")
    return pixels


def _refuse_truncated(data: bytes | memoryview) -> None:
    """OpenCV 4 fills the missing part of a JPEG with grey; a complete one has an end marker after its last scan."""
    if data[:2] == JPEG_START and data[-2:] != JPEG_END:
        content = bytes(data)
        if content.rfind(JPEG_END) <= content.rfind(JPEG_SCAN):
            raise UnreadableImageError("image_truncated", f"a JPEG of {len(data)} bytes without its end")
