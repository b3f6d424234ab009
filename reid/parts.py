"""Part boxes of vehicles, as shards hold them and PMANet uses them.

Convention: left, top, right, bottom as shares 0..1 of an image's width and height, 0 and 1 being its edges and not the
centres of its outer pixels; K boxes of an image run from top to bottom.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_PARTS: Final = 6
"""Most parts of a vehicle that PMANet has branches for."""


def uniform_stripes(num_parts: int) -> NDArray[np.float32]:
    """(K, 4) boxes that divide the image into stripes of its full width, from top to bottom.

    >>> uniform_stripes(2)
    array([[0. , 0. , 1. , 0.5],
           [0. , 0.5, 1. , 1. ]], dtype=float32)
    """
    edges = np.arange(num_parts + 1) / num_parts
    boxes = np.stack((np.zeros(num_parts), edges[:-1], np.ones(num_parts), edges[1:]), axis=1)
    return boxes.astype(np.float32)
