"""A picture of images of a data set and of their planes as the networks of the pixel-space ensemble see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reid.build.addition_pictures import draw_image_planes
from reid.build.plane_images import rows_in_source
from reid.data.decode import decode_image
from reid.data.shard_set import ShardSet
from reid.models.perspective import PlaneName
from reid.visual.mosaic import PAPER, captioned, column, filled, fit_tile, row

TILE: Final = 144
IMAGES_IN_A_ROW: Final = 2


def picture_of_plane_sets(source: ShardSet, planes: Mapping[PlaneName, ShardSet], count: int = 12) -> NDArray[np.uint8]:
    """Images spread over a data set, each with its planes drawn in, and beside it these planes out of their sets.

    Args:
        source: The set with keypoints.
        planes: The sets that were made of it.
        count: Images at the most, those that show at least one plane.

    Raises:
        ValueError: No image of `source` is in any of the sets.
    """
    row_of = {
        plane: {int(at): own for own, at in enumerate(rows_in_source(source.index, shards.index))}
        for plane, shards in planes.items()
    }
    shown = np.array(sorted(set().union(*row_of.values())), dtype=np.int64)
    if len(shown) == 0:
        raise ValueError(f"no image of {source.manifest.name} is in a set of plane images: there is nothing to draw")
    chosen = shown[np.linspace(0, len(shown) - 1, min(count, len(shown))).astype(np.int64)]
    strips = []
    for number in chosen.tolist():
        image = decode_image(source.read_image(number))
        drawn = fit_tile(draw_image_planes(image, source.index.keypoints[number], TILE), TILE)
        tiles = [captioned(drawn, str(source.index.key[number]))]
        for plane, shards in planes.items():
            own = row_of[plane].get(number)
            tile = filled(TILE, TILE, PAPER) if own is None else decode_image(shards.read_image(own))
            tiles.append(captioned(fit_tile(tile, TILE), plane if own is not None else ""))
        strips.append(row(tiles))
    return column([row(strips[at : at + IMAGES_IN_A_ROW], gap=24) for at in range(0, len(strips), IMAGES_IN_A_ROW)])
