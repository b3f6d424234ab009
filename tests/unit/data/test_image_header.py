"""Format and size of an image from its header."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest

from reid.data.image_header import image_format, image_size


def encoded(ending: str, options: list[int] | None = None) -> bytes:
    """A 37 x 21 picture."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(21, 37, 3), dtype=np.uint8)
    done, data = cv2.imencode(ending, pixels, options or [])
    assert done
    return bytes(data)


@pytest.mark.parametrize(
    ("ending", "options", "name"),
    [
        (".jpg", [], "jpeg"),
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], "jpeg"),
        (".jpg", [cv2.IMWRITE_JPEG_RST_INTERVAL, 1], "jpeg"),
        (".png", [], "png"),
        (".bmp", [], "bmp"),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 80], "webp"),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101], "webp"),
    ],
    ids=["jpeg", "progressive jpeg", "jpeg with restarts", "png", "bmp", "lossy webp", "lossless webp"],
)
def test_size_and_format_agree_with_the_decoder(ending: str, options: list[int], name: str) -> None:
    data = encoded(ending, options)

    assert image_size(data) == (37, 21)
    assert image_format(data) == name


def test_the_size_of_an_extended_webp_is_in_its_own_chunk() -> None:
    chunk = bytes(4) + (36).to_bytes(3, "little") + (20).to_bytes(3, "little")
    data = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + chunk

    assert image_size(data) == (37, 21)


def test_the_size_of_a_thumbnail_in_the_header_is_not_the_images() -> None:
    thumbnail = encoded(".jpg")
    data = encoded(".jpg")
    big = data.replace(struct.pack(">HH", 21, 37), struct.pack(">HH", 210, 370))
    with_thumbnail = big[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + big[2:]

    assert image_size(with_thumbnail) == (370, 210)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"<html>", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF....WEBP", encoded(".jpg")[:20]]
)
def test_bytes_without_a_whole_header_have_no_size(data: bytes) -> None:
    assert image_size(data) is None
