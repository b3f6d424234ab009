"""Part boxes as an index holds them, and uniform stripes where it holds none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reid.contracts import DataError
from reid.data.index import Index
from reid.parts import uniform_stripes


def check_part_boxes(index: Index, num_parts: int) -> None:
    """DataError when the shards hold another number of part boxes than a run asks for (0: it asks for none)."""
    if not num_parts or index.boxes is None:
        return
    if index.boxes.shape[1] != num_parts:
        raise DataError(
            f"{num_parts} parts are asked for, but the shards hold {index.boxes.shape[1]} boxes an image: run"
            f" jobs/add_masks.py --panet with parts.num_parts={num_parts} (or --stripes {num_parts}), or ask for"
            f" {index.boxes.shape[1]}"
        )


def has_part_boxes(index: Index, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) which images have part boxes in the shards."""
    if index.boxes is None:
        return np.zeros(len(rows), dtype=np.bool_)
    return np.asarray(index.boxes[rows].any(axis=(1, 2)), dtype=np.bool_)


def part_boxes_of(
    index: Index, rows: NDArray[np.int64], num_parts: int, *, stripes: bool = False
) -> NDArray[np.float32]:
    """(n, K, 4) part boxes of images; uniform stripes where the shards hold none, or for all of them."""
    uniform = np.tile(uniform_stripes(num_parts), (len(rows), 1, 1))
    if stripes or index.boxes is None:
        return uniform
    return np.where(has_part_boxes(index, rows)[:, None, None], index.boxes[rows], uniform).astype(np.float32)
