"""Pictures of some images of a shard set with what was added to them: masks and part boxes, keypoints and planes."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from reid.data.decode import UnreadableImageError, decode_image, decode_mask
from reid.data.shard_set import ShardSet
from reid.models.perspective import PlaneConfig, find_planes
from reid.visual.masks import MaskedImage, masks_picture
from reid.visual.mosaic import captioned, column, filled, fit_tile, row
from reid.visual.planes import draw_planes

KEYPOINT_TILE: Final = 190
KEYPOINT_COLUMNS: Final = 6


def picture_of_masks(shards: ShardSet, count: int = 24) -> NDArray[np.uint8]:
    """Images spread evenly over the set, a quarter of them flagged ones where there are any, as an RGB mosaic.

    Args:
        shards: A set, enriched or not.
        count: Images at the most; those that cannot be read are left out.
    """
    index = shards.index
    images = []
    for number, reasons in _chosen(shards, count):
        mask = shards.read_mask(number)
        try:
            pixels = decode_image(shards.read_image(number))
            decoded = None if mask is None else decode_mask(mask)
        except UnreadableImageError:
            continue
        boxes = None if index.boxes is None else index.boxes[number]
        share = "" if decoded is None else f" {decoded.mean():.0%}"
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


def picture_of_keypoints(shards: ShardSet, count: int = 24) -> NDArray[np.uint8]:
    """Images chosen as in `picture_of_masks` with their keypoints and planes, as an RGB mosaic.

    Raises:
        ValueError: None of the images can be read.
    """
    index = shards.index
    tiles = []
    for number, reasons in _chosen(shards, count):
        try:
            image = decode_image(shards.read_image(number))
        except UnreadableImageError:
            continue
        drawn = draw_image_planes(image, index.keypoints[number], KEYPOINT_TILE)
        tiles.append(captioned(fit_tile(drawn, KEYPOINT_TILE), reasons or str(index.key[number])))
    if not tiles:
        raise ValueError(f"no image of {shards.manifest.name} can be read: there is nothing to draw")
    tiles += [filled(*tiles[0].shape[:2])] * (-len(tiles) % min(KEYPOINT_COLUMNS, len(tiles)))
    return column([row(tiles[at : at + KEYPOINT_COLUMNS]) for at in range(0, len(tiles), KEYPOINT_COLUMNS)])


def draw_image_planes(
    image: NDArray[np.uint8], keypoints: NDArray[np.float32], tile_size: int, config: PlaneConfig | None = None
) -> NDArray[np.uint8]:
    """An image with its (20, 3) keypoints and the planes that they show, its longer side `tile_size` pixels."""
    batch = torch.from_numpy(keypoints[None].copy())
    planes = find_planes(batch, image.shape[0], image.shape[1], config or PlaneConfig())
    return draw_planes(image, planes.corners[0].numpy(), planes.visible[0].numpy(), keypoints, tile_size=tile_size)


def _chosen(shards: ShardSet, count: int) -> list[tuple[int, str]]:
    """Rows of the index spread evenly, at most a quarter of them flagged and those last, with their flags in words."""
    index = shards.index
    flags = [()] * len(index) if index.flags is None else index.flags.tolist()
    is_flagged = np.array([len(own) > 0 for own in flags], dtype=np.bool_)
    flagged = _spread(np.flatnonzero(is_flagged), count // 4)
    others = _spread(np.flatnonzero(~is_flagged), count - len(flagged))
    return [
        (number, " ".join(flag.rpartition(":")[2] for flag in flags[number]))
        for number in [*others.tolist(), *flagged.tolist()]
    ]


def _spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
