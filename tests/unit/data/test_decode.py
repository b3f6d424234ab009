"""Every kind of image file comes out as RGB, and a damaged one with its reason, never as half a picture."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from reid.data.decode import UnreadableImageError, decode_image, decode_mask


def encoded(image: Image.Image, ending: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, ending, **options)
    return buffer.getvalue()


def picture() -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:40, :60]
    return np.stack((rows * 6, columns * 4, 255 - rows * 3), axis=-1).astype(np.uint8)


@pytest.mark.parametrize("ending", ["PNG", "BMP"])
def test_colours_come_in_the_order_red_green_blue(ending: str) -> None:
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(picture()), ending)), picture())


def test_jpeg_decodes_as_another_library_decodes_it() -> None:
    data = encoded(Image.fromarray(picture()), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(decode_image(memoryview(data)).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(picture()).convert(mode)
    data = encoded(image, "JPEG" if mode == "CMYK" else "PNG")
    assert decode_image(data).shape == (40, 60, 3)
    if mode == "L":
        np.testing.assert_array_equal(decode_image(data)[..., 0], np.asarray(image))


def test_sixteen_bit_images_are_scaled() -> None:
    grey = (np.arange(40 * 60).reshape(40, 60) * 27).astype(np.uint16)
    decoded = decode_image(encoded(Image.fromarray(grey), "PNG"))
    assert np.abs(decoded[..., 0].astype(int) - grey // 256).max() <= 1


def test_an_exif_rotation_is_left_to_packing() -> None:
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees
    data = encoded(Image.fromarray(picture()), "JPEG", exif=exif)
    assert decode_image(data).shape == (40, 60, 3)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_jpeg_is_refused_and_not_filled_with_grey(share: float) -> None:
    data = encoded(Image.fromarray(picture()), "JPEG", quality=95)
    with pytest.raises(UnreadableImageError, match="without its end") as caught:
        decode_image(data[: int(len(data) * share)])
    assert caught.value.reason == "image_truncated"


def test_bytes_after_the_end_of_a_jpeg_do_not_matter() -> None:
    data = encoded(Image.fromarray(picture()), "JPEG")
    np.testing.assert_array_equal(decode_image(data + b"\x00" * 7), decode_image(data))


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"\xff\xd8\xff\xd9", bytes(1000)])
def test_what_is_not_an_image_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(data)
    assert caught.value.reason == "image_unreadable"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reason, str(again)) == ("image_unreadable", str(caught.value))


def test_masks_are_zero_and_one() -> None:
    mask = np.zeros((8, 9), dtype=np.uint8)
    mask[2:5, 3:7] = 255
    mask[0, 0] = 127
    decoded = decode_mask(encoded(Image.fromarray(mask), "PNG"))
    np.testing.assert_array_equal(decoded, (mask == 255).astype(np.uint8))
