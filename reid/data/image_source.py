"""A raw image file to the bytes that a shard stores: unchanged where possible, refused where damaged.

Decoders are too kind for packing: OpenCV 4 fills the missing part of a JPEG with grey (OpenCV 5 refuses it), and damage
inside the compressed data is only a line on the standard error stream. So the file's structure is walked to its end,
PNG checksums are compared, and the decoder's complaints are read.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.data.decode import UnreadableImageError
from reid.data.image_header import image_format, image_size

_ENDINGS: Final = {"jpeg": "jpg", "png": "png", "bmp": "bmp", "webp": "webp"}
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""In entropy-coded data, FF 00 is a plain FF, FF D0-D7 are restarts, FF FF is padding; anything else is a marker."""
_ORIENTATION_TAG: Final = 0x0112
_STDERR_LOCK: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image as it goes into a shard."""

    data: bytes
    """The file's own bytes, unless `repairs` says that it was encoded anew."""
    ending: str
    """File ending that is true of the bytes: jpg, png, bmp or webp."""
    width: int
    """Of `data`, pixels."""
    height: int
    source_width: int
    """Of the upright source image, pixels: keypoints refer to it."""
    source_height: int
    repairs: tuple[str, ...]
    """Kinds of tolerated or mended oddities: mismatched_extension, reoriented, resized, decoder_warning."""


def read_source_image(
    path: Path, *, min_side: int, max_pixels: int, max_side: int | None, jpeg_quality: int
) -> SourceImage:
    """The image in a raw file, checked by decoding it once.

    An image with an EXIF orientation is encoded anew, upright; one with a side above `max_side` is made smaller.
    Everything else keeps its bytes, whatever its name says it is.

    Args:
        path: JPEG, PNG, BMP or WebP file.
        min_side: Shortest side that is accepted, pixels.
        max_pixels: Most pixels that are decoded, judged by the header.
        max_side: Longest side that is stored, pixels; None: any.
        jpeg_quality: Of images encoded anew, 1..100.

    Raises:
        UnreadableImageError: reason image_missing, image_unreadable, image_truncated, image_corrupt, image_too_small
            or image_too_large.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UnreadableImageError("image_missing", f"{path} does not exist") from None
    except OSError as error:
        raise UnreadableImageError("image_unreadable", f"{path}: {error}") from error
    kind, size = image_format(data), image_size(data)
    if kind is None or size is None:
        raise UnreadableImageError("image_unreadable", f"{path}: {len(data)} bytes that begin with {data[:8]!r}")
    if size[0] * size[1] > max_pixels:
        raise UnreadableImageError("image_too_large", f"{path}: {size[0]} x {size[1]} pixels, limit {max_pixels}")
    if min(size) < min_side:
        raise UnreadableImageError("image_too_small", f"{path}: {size[0]} x {size[1]} pixels, least side {min_side}")
    try:
        orientation = _orientation_of_complete(kind, data)
    except UnreadableImageError as error:
        raise UnreadableImageError(error.reason, f"{path}: {error.message}") from None
    pixels, complaints = _decode_listening(data)
    if "premature end" in complaints.lower():
        raise UnreadableImageError("image_truncated", f"{path}: {complaints}")
    if pixels is None:
        raise UnreadableImageError("image_unreadable", f"{path}: the decoder refused it {complaints}")
    harmless = complaints == "" or "extraneous bytes" in complaints
    if not harmless and "corrupt" in complaints.lower():
        raise UnreadableImageError("image_corrupt", f"{path}: {complaints}")
    repairs = []
    if path.suffix.lower().removeprefix(".").replace("jpeg", "jpg").replace("jpe", "jpg") != _ENDINGS[kind]:
        repairs.append("mismatched_extension")
    if complaints:
        repairs.append("decoder_warning")
    upright = _upright(pixels, orientation)
    height, width = upright.shape[:2]
    stored, ending, encode = upright, _ENDINGS[kind], orientation != 1
    if encode:
        repairs.append("reoriented")
    if max_side is not None and max(width, height) > max_side:
        shrink = max_side / max(width, height)
        target = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        stored = cv2.resize(upright, target, interpolation=cv2.INTER_AREA)
        repairs.append("resized")
        encode = True
    if encode:
        ending = "png" if kind == "png" else "jpg"
        data = _encode(stored, ending, jpeg_quality)
    return SourceImage(data, ending, stored.shape[1], stored.shape[0], width, height, tuple(repairs))


def read_source_mask(path: Path, image: SourceImage) -> bytes:
    """The mask of a source image as PNG bytes of the stored image's size; a PNG of that size keeps its bytes.

    Raises:
        UnreadableImageError: reason mask_unreadable (not an image, or of another size than the source image).
    """
    try:
        data = path.read_bytes()
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    except (OSError, cv2.error) as error:
        raise UnreadableImageError("mask_unreadable", f"{path}: {error}") from error
    if pixels is None:
        raise UnreadableImageError("mask_unreadable", f"{path}: {len(data)} bytes that are no image")
    height, width = pixels.shape[:2]
    if (width, height) != (image.source_width, image.source_height):
        expected = f"{image.source_width} x {image.source_height}"
        raise UnreadableImageError("mask_unreadable", f"{path} is {width} x {height}, its image {expected}")
    if (width, height) == (image.width, image.height) and image_format(data) == "png":
        return data
    small = cv2.resize(pixels, (image.width, image.height), interpolation=cv2.INTER_NEAREST)
    return _encode(small, "png", 100)


def _encode(pixels: NDArray[np.uint8], ending: str, jpeg_quality: int) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality] if ending == "jpg" else []
    done, buffer = cv2.imencode(f".{ending}", pixels, options)
    assert done, f"OpenCV cannot encode {pixels.shape} {pixels.dtype} as {ending}"
    return bytes(buffer)


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The image as a viewer shows it: EXIF orientation 1..8 (TIFF 6.0) undone."""
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _decode_listening(data: bytes) -> tuple[Any, str]:
    """BGR pixels (None: refused) as stored, and what the decoder wrote to the standard error stream."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    buffer = np.frombuffer(data, dtype=np.uint8)
    # libjpeg and libpng report to file descriptor 2 only; the descriptor belongs to the process, hence the lock.
    with _STDERR_LOCK, tempfile.TemporaryFile() as heard:
        try:
            saved = os.dup(2)
        except OSError:
            saved = -1
        try:
            if saved >= 0:
                os.dup2(heard.fileno(), 2)
            try:
                pixels = cv2.imdecode(buffer, flags)
            except cv2.error:
                pixels = None
        finally:
            if saved >= 0:
                os.dup2(saved, 2)
                os.close(saved)
        heard.seek(0)
        text = heard.read().decode(errors="replace")
    about_image = [line for line in text.splitlines() if re.search("jpeg|png|webp|bmp", line, re.IGNORECASE)]
    return pixels, "; ".join(dict.fromkeys(about_image))


# ---- structure


def _orientation_of_complete(kind: str, data: bytes) -> int:
    """EXIF orientation 1..8 of a file that is walked to its end; UnreadableImageError when the end is missing."""
    match kind:
        case "jpeg":
            return _walk_jpeg(data)
        case "png":
            return _walk_png(data)
        case "webp":
            return _walk_webp(data)
        case _:
            declared = int.from_bytes(data[2:6], "little")
            if declared > len(data):
                raise UnreadableImageError("image_truncated", f"a BMP of {declared} bytes ends after {len(data)}")
            return 1


def _walk_jpeg(data: bytes) -> int:
    orientation, position = 1, 2
    # Between segments lie the compressed data of a scan, or what some cameras leave there.
    while (found := _NEXT_MARKER.search(data, position)) is not None:
        position = found.start()
        marker = data[position + 1]
        if marker == 0xD9:
            return orientation
        if marker in {0x01, 0xD8}:  # markers without a segment
            position += 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[position + 10 : position + 2 + length])
        position += 2 + max(length, 2)
    raise UnreadableImageError("image_truncated", f"a JPEG of {len(data)} bytes without its end")


def _walk_png(data: bytes) -> int:
    orientation, position = 1, 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        name, end = data[position + 4 : position + 8], position + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise UnreadableImageError("image_corrupt", f"PNG chunk {name!r} at byte {position}: wrong checksum")
        if name == b"eXIf":
            orientation = _exif_orientation(data[position + 8 : end - 4])
        if name == b"IEND":
            return orientation
        position = end
    raise UnreadableImageError("image_truncated", f"a PNG of {len(data)} bytes without its end")


def _walk_webp(data: bytes) -> int:
    declared = 8 + int.from_bytes(data[4:8], "little")
    if declared > len(data):
        raise UnreadableImageError("image_truncated", f"a WebP of {declared} bytes ends after {len(data)}")
    for name, content in _riff_chunks(data):
        if name == b"EXIF":
            return _exif_orientation(content.removeprefix(b"Exif\0\0"))
    return 1


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        yield data[position : position + 4], data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _exif_orientation(tiff: bytes) -> int:
    """Tag 0x0112 of the first directory of an EXIF block; 1 (upright) when it is absent or nonsense."""
    if tiff[:4] not in {b"II*\0", b"MM\0*"}:
        return 1

    def number(start: int, length: int) -> int:
        return int.from_bytes(tiff[start : start + length], "little" if tiff[:2] == b"II" else "big")

    directory = number(4, 4)
    for entry in range(min(number(directory, 2), 512)):
        start = directory + 2 + 12 * entry
        if number(start, 2) == _ORIENTATION_TAG:
            value = number(start + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1
