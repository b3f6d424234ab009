"""What the first bytes of an image file say: its format and size, before anything is decoded."""

from __future__ import annotations

import struct
from typing import Final, Literal

_JPEG_SIZES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the JPEG segments that hold the size (C4 tables, C8 reserved, CC arithmetic coding are none)."""


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that the header of a JPEG, PNG, BMP or WebP file declares, without decoding; None: neither.

    >>> image_size(b"<html>not found</html>") is None
    True
    """
    match image_format(data):
        case "png" if len(data) >= 24:
            width, height = struct.unpack(">II", data[16:24])
            return width, height
        case "bmp" if len(data) >= 26:
            width, height = struct.unpack("<ii", data[18:26])
            return abs(width), abs(height)
        case "jpeg":
            return _jpeg_size(data)
        case "webp":
            return _webp_size(data)
    return None


def image_format(data: bytes) -> Literal["jpeg", "png", "bmp", "webp"] | None:
    """The format that the first bytes of a file are of."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"BM"):
        return "bmp"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
        elif marker in _JPEG_SIZES:
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return width, height
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a segment
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    match data[12:16]:
        case b"VP8 ":
            width, height = struct.unpack("<HH", data[26:30])
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None
