"""A picture of some images of a shard set with their masks and part boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reid.data.decode import UnreadableImageError, decode_image, decode_mask
from reid.data.shard_set import ShardSet
from reid.visual.masks import MaskedImage, masks_picture


def picture_of_masks(shards: ShardSet, count: int = 24) -> NDArray[np.uint8]:
    """Images spread evenly over the set, a quarter of them flagged ones where there are any, as an RGB mosaic.

    Args:
        shards: A set, enriched or not.
        count: Images at the most; those that cannot be read are left out.
    """
    index = shards.index
    flags = [()] * len(index) if index.flags is None else index.flags.tolist()
    is_flagged = np.array([len(own) > 0 for own in flags], dtype=np.bool_)
    flagged = _spread(np.flatnonzero(is_flagged), count // 4)
    others = _spread(np.flatnonzero(~is_flagged), count - len(flagged))
    images = []
    for number in [*others.tolist(), *flagged.tolist()]:
        mask = shards.read_mask(number)
        try:
            pixels = decode_image(shards.read_image(number))
            decoded = None if mask is None else decode_mask(mask)
        except UnreadableImageError:
            continue
        boxes = None if index.boxes is None else index.boxes[number]
        share = "" if decoded is None else f" {decoded.mean():.0%}"
        reasons = " ".join(flag.rpartition(":")[2] for flag in flags[number])
        images.append(
            MaskedImage(
                image=pixels,
                mask=decoded,
                boxes=boxes,
                caption=reasons or f"{index.key[number]}{share}",
                flagged=bool(reasons),
            )
        )
    return masks_picture(images)


def _spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
