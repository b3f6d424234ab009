"""Images of a shard set as pictures of a report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from reid.data.decode import UnreadableImageError, decode_image
from reid.data.shard_set import ShardSet
from reid.evaluation.report import Picture
from reid.visual.mosaic import encode_jpeg

logger = logging.getLogger(__name__)

Subject = TypeVar("Subject")
Drawing = TypeVar("Drawing")


def drawings(draw: Callable[[Subject], Drawing], subjects: Iterable[Subject]) -> list[Drawing]:
    """What `draw` makes of each subject; those with an unreadable image are left out with a warning."""
    found = []
    for subject in subjects:
        try:
            found.append(draw(subject))
        except UnreadableImageError as error:
            logger.warning("the report does without a picture: %s", error)
    return found


def raw_image(shards: ShardSet, sample: int) -> NDArray[np.uint8]:
    """The pixels of a row of the index, as they are stored."""
    return decode_image(shards.read_image(sample))


def as_jpeg(image: NDArray[np.uint8], caption: str) -> Picture:
    """A drawing as a picture of the page."""
    return Picture(data=encode_jpeg(image), media_type="image/jpeg", caption=caption)
