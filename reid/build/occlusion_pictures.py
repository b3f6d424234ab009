"""Pictures of queries beside their occluded selves."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from reid.build.pictures import raw_image
from reid.data.decode import UnreadableImageError
from reid.data.occlusion import PatchTable
from reid.data.shard_set import ShardSet
from reid.visual.mosaic import PAPER, captioned, column, filled, fit_tile, framed, row

TILE: Final = 150
COLUMNS: Final = 4


def picture_of_occluded(clean: ShardSet, occluded: ShardSet, patches: PatchTable, count: int = 24) -> NDArray[np.uint8]:
    """Queries spread evenly over the set, each clean and as the occluded set holds it, as an RGB mosaic.

    Args:
        clean: The source.
        occluded: The set made from it.
        patches: Of its queries.
        count: Queries at the most; those that cannot be read are left out.

    Raises:
        ValueError: None of the queries can be read.
    """
    queries = clean.index.rows("query")
    covered = {
        key: (right - left) * (bottom - top) / (width * height)
        for key, width, height, left, top, right, bottom, _ in patches.rows
    }
    tiles = []
    for number in queries[np.linspace(0, len(queries) - 1, min(count, len(queries))).astype(np.int64)].tolist():
        try:
            pair = [fit_tile(raw_image(shards, number), TILE) for shards in (clean, occluded)]
        except UnreadableImageError:
            continue
        key = str(clean.index.key[number])
        tiles.append(captioned(row(pair, gap=2), f"{key}  {covered[key]:.1%}"))
    if not tiles:
        raise ValueError(f"no query of {clean.manifest.name} can be read: there is nothing to draw")
    tiles += [filled(*tiles[0].shape[:2])] * (-len(tiles) % min(COLUMNS, len(tiles)))
    mosaic = column([row(tiles[at : at + COLUMNS], gap=14) for at in range(0, len(tiles), COLUMNS)], gap=10)
    return framed(mosaic, PAPER, 10)
