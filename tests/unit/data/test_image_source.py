"""Raw image files on their way into shards: kept as they are, put right, or refused for a named reason."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from reid.data.decode import UnreadableImageError, decode_image
from reid.data.image_source import SourceImage, read_source_image, read_source_mask
from tests.unit.data.raw_images import encoded_noise

JPEG = encoded_noise(1, 64, 48)


def read(path: Path, data: bytes, max_side: int | None = None) -> SourceImage:
    path.write_bytes(data)
    return read_source_image(path, min_side=8, max_pixels=10_000, max_side=max_side, jpeg_quality=95)


def reason_of(path: Path, data: bytes) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        read(path, data)
    assert path.name in str(caught.value)
    return caught.value.reason


def with_exif(data: bytes, orientation: int, order: str = ">") -> bytes:
    tiff = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(
        order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0
    )
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff + data[2:]


def with_thumbnail(data: bytes) -> bytes:
    """A header segment that holds a whole JPEG, end mark included, as cameras write it."""
    small = encoded_noise(2, 8, 8)
    return data[:2] + b"\xff\xe2" + struct.pack(">H", 2 + len(small)) + small + data[2:]


def header_of_a_png(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    body = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("ending", [".jpg", ".png", ".bmp", ".webp"])
def test_a_good_file_keeps_its_bytes_and_its_ending(tmp_path: Path, ending: str) -> None:
    data = encoded_noise(3, 40, 30, ending)
    image = read(tmp_path / f"a{ending}", data)
    assert image == SourceImage(data, ending[1:], 40, 30, 40, 30, ())


def test_png_bytes_named_jpg_are_stored_as_png_and_counted(tmp_path: Path) -> None:
    image = read(tmp_path / "a.jpg", encoded_noise(3, 40, 30, ".png"))
    assert (image.ending, image.repairs) == ("png", ("mismatched_extension",))


@pytest.mark.parametrize("name", ["a.jpeg", "a.JPG", "a.JPEG"])
def test_the_spellings_of_jpg_are_no_mismatch(tmp_path: Path, name: str) -> None:
    image = read(tmp_path / name, JPEG)
    assert (image.ending, image.repairs) == ("jpg", ())


@pytest.mark.parametrize(
    "make", [bytes, with_thumbnail, lambda data: with_exif(data, 1)], ids=["plain", "thumb", "exif"]
)
def test_a_jpeg_cut_anywhere_in_its_pixels_is_truncated(tmp_path: Path, make: object) -> None:
    assert callable(make)
    data = make(JPEG)
    assert read(tmp_path / "whole.jpg", data).data == data
    start = data.rindex(b"\xff\xda")
    for end in [*range(start + 20, len(data) - 1, 97), len(data) - 2, len(data) - 1]:
        assert reason_of(tmp_path / "cut.jpg", data[:end]) == "image_truncated", end


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_cut_jpeg_with_an_end_mark_put_behind_it_is_truncated(tmp_path: Path, keep: float) -> None:
    data = JPEG[: int(len(JPEG) * keep)] + b"\xff\xd9"
    assert reason_of(tmp_path / "a.jpg", data) == "image_truncated"


def test_a_progressive_jpeg_is_walked_scan_by_scan(tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1])
    assert data.count(b"\xff\xda") > 3
    assert read(tmp_path / "a.jpg", data + b"whatever a camera adds").data.startswith(data)
    last_scan = data.rindex(b"\xff\xda")
    assert reason_of(tmp_path / "a.jpg", data[: last_scan - 5]) == "image_truncated"


@pytest.mark.parametrize("ending", [".png", ".webp", ".bmp"])
def test_other_formats_cut_short_are_truncated(tmp_path: Path, ending: str) -> None:
    data = encoded_noise(3, 40, 30, ending)
    assert reason_of(tmp_path / f"a{ending}", data[: len(data) * 2 // 3]) == "image_truncated"


def test_a_flipped_bit_in_png_pixels_is_corrupt(tmp_path: Path) -> None:
    data = bytearray(encoded_noise(3, 40, 30, ".png"))
    data[len(data) // 2] ^= 4
    assert reason_of(tmp_path / "a.png", bytes(data)) == "image_corrupt"


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\xff\xd8\xff", JPEG[:30], b"GIF89a" + bytes(50)])
def test_what_is_no_image_is_unreadable(tmp_path: Path, data: bytes) -> None:
    assert reason_of(tmp_path / "a.jpg", data) == "image_unreadable"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"image_missing: .*nowhere\.jpg"):
        read_source_image(tmp_path / "nowhere.jpg", min_side=1, max_pixels=10, max_side=None, jpeg_quality=95)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "a.png", header_of_a_png(60_000, 60_000)) == "image_too_large"


def test_an_image_with_a_short_side_is_too_small(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "a.png", encoded_noise(3, 100, 7, ".png")) == "image_too_small"


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photograph_is_stored_upright(tmp_path: Path, orientation: int, order: str) -> None:
    smooth = cv2.resize(np.random.default_rng(7).integers(0, 256, (3, 4, 3), dtype=np.uint8), (40, 32))
    data = with_exif(bytes(cv2.imencode(".jpg", smooth)[1]), orientation, order)
    expected = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    image = read(tmp_path / "a.jpg", data)
    actual = decode_image(image.data)
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected).mean() < 3
    assert (image.width, image.height) == ((40, 32) if orientation <= 4 else (32, 40))
    assert image.repairs == (() if orientation == 1 else ("reoriented",))
    assert (image.data == data) == (orientation == 1)


def test_an_orientation_in_a_png_is_obeyed(tmp_path: Path) -> None:
    data = encoded_noise(3, 40, 30, ".png")
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    chunk = struct.pack(">I", len(tiff)) + b"eXIf" + tiff + struct.pack(">I", zlib.crc32(b"eXIf" + tiff))
    image = read(tmp_path / "a.png", data[:33] + chunk + data[33:])
    np.testing.assert_array_equal(decode_image(image.data), np.rot90(decode_image(data), -1))


def test_a_large_image_is_made_smaller_only_when_asked(tmp_path: Path) -> None:
    image = read(tmp_path / "a.jpg", JPEG, max_side=32)
    assert (image.width, image.height, image.source_width, image.source_height) == (32, 24, 64, 48)
    assert image.repairs == ("resized",)
    assert decode_image(image.data).shape == (24, 32, 3)
    assert read(tmp_path / "a.jpg", JPEG, max_side=64).data == JPEG


@pytest.mark.parametrize(
    ("flags", "pixels"),
    [
        ("grey", np.full((20, 20), 90, np.uint8)),
        ("16-bit", np.full((20, 20, 3), 9000, np.uint16)),
        ("alpha", np.full((20, 20, 4), 90, np.uint8)),
    ],
)
def test_grey_deep_and_transparent_images_keep_their_bytes(tmp_path: Path, flags: str, pixels: object) -> None:
    data = bytes(cv2.imencode(".png", pixels)[1])
    image = read(tmp_path / "a.png", data)
    assert image.data == data, flags
    assert decode_image(image.data).shape == (20, 20, 3)


def test_what_the_decoder_writes_about_other_things_still_reaches_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    read(tmp_path / "a.jpg", JPEG)
    with pytest.raises(UnreadableImageError):
        read(tmp_path / "a.jpg", JPEG[:-200] + b"\xff\xd9")
    captured = capfd.readouterr()
    assert captured.err == "", "the decoder's complaint is in the error, not on the terminal"


def test_a_mask_of_the_images_size_keeps_its_bytes_and_another_size_is_refused(tmp_path: Path) -> None:
    image = read(tmp_path / "a.jpg", JPEG)
    data = encoded_noise(1, 64, 48, ".png")
    (tmp_path / "mask.png").write_bytes(data)
    assert read_source_mask(tmp_path / "mask.png", image) == data
    (tmp_path / "mask.png").write_bytes(encoded_noise(1, 48, 64, ".png"))
    with pytest.raises(UnreadableImageError, match="48 x 64, its image 64 x 48"):
        read_source_mask(tmp_path / "mask.png", image)


def test_a_mask_shrinks_with_its_image(tmp_path: Path) -> None:
    image = read(tmp_path / "a.jpg", JPEG, max_side=32)
    mask = np.zeros((48, 64), dtype=np.uint8)
    mask[:, 32:] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    stored = cv2.imdecode(np.frombuffer(read_source_mask(tmp_path / "mask.png", image), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(stored, np.repeat([[0] * 16 + [255] * 16], 24, axis=0))
