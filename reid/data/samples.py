"""Where streams find images, and one image with its mask, decoded and checked against the index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reid.data.decode import UnreadableImageError, decode_image, decode_mask
from reid.data.index import Index


class ImageSource(Protocol):
    """What a stream needs of a `ShardSet`. Picklable when there are loader processes."""

    @property
    def index(self) -> Index:
        """Columns of all images."""

    def read_image(self, row: int) -> bytes | memoryview:
        """The image file of a row."""

    def read_mask(self, row: int) -> bytes | memoryview | None:
        """The mask file of a row, if there is one."""

    def take_retries(self) -> Mapping[str, int]:
        """Requests to the storage that were repeated since the last call, in this process, by operation."""


def read_sample(shards: ImageSource, row: int, with_mask: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Pixels of an image, and its mask when asked for.

    Raises:
        UnreadableImageError: One of them cannot be decoded or is not of the size that the index says.
    """
    image = _read_image(shards, row)
    return image, _read_mask(shards, row, (image.shape[0], image.shape[1])) if with_mask else None


def _read_image(shards: ImageSource, row: int) -> NDArray[np.uint8]:
    key = shards.index.key[row]
    try:
        pixels = decode_image(shards.read_image(row))
    except UnreadableImageError as error:
        raise UnreadableImageError(error.reason, f"image {key!r}: {error.message}") from error
    expected = (int(shards.index.height[row]), int(shards.index.width[row]))
    if pixels.shape[:2] != expected:  # its keypoints would land elsewhere
        message = f"image {key!r} has {pixels.shape[:2]} pixels (height, width), the index says {expected}"
        raise UnreadableImageError("image_size_differs", message)
    return pixels


def _read_mask(shards: ImageSource, row: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask of `row`; of ones where there is none, which only runs that ask for parts let pass."""
    data = shards.read_mask(row)
    if data is None:
        return np.ones(size, dtype=np.uint8)
    key = shards.index.key[row]
    try:
        mask = decode_mask(data)
    except UnreadableImageError as error:
        raise UnreadableImageError(error.reason, f"mask of {key!r}: {error.message}") from error
    if mask.shape != size:
        message = f"mask of {key!r} has {mask.shape} pixels (height, width), its image {size}"
        raise UnreadableImageError("image_size_differs", message)
    return mask
