"""The nearest neighbours of every image among all images, queries and gallery alike, without an N x N matrix.

Distances are computed in tiles that are looked at once and dropped, but for those of queries to the gallery where they
are to be kept. A tile off the diagonal serves both its rows and its columns, which halves the work: the bits of a
distance do not depend on which of the two features is the query's.

Convention: image `i` is query `i` for `i < Q` and gallery image `i - Q` from there on; neighbours are ordered by
`(distance, image)`. An image is among its own neighbours, usually the first, at a distance of 0 up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reid.evaluation.counting import BoolArray, Float32Array, Int64Array
from reid.evaluation.distances import TILE_COLUMNS, TILE_ROWS, padded, tile_distances
from reid.progress import Progress

Int32Array = NDArray[np.int32]

_LEAST_SCALE: Final = np.float32(1e-6)
"""Distances are divided by the farthest one, which is rounding only when all images are the same."""
_NOBODY: Final = np.iinfo(np.int64).max
"""Key of a place not taken yet."""


class Images:
    """The features of queries and gallery as one sequence, neither copied nor joined."""

    def __init__(self, query: Float32Array, gallery: Float32Array) -> None:
        self._parts = query, gallery

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def block(self, begin: int, end: int) -> Float32Array:
        """(end - begin, D) features; a view wherever one part holds them all."""
        query, gallery = self._parts
        inside = query[begin:end], gallery[max(0, begin - len(query)) : max(0, end - len(query))]
        full = [part for part in inside if len(part)]
        return full[0] if len(full) == 1 else np.concatenate(full)

    def take(self, images: Int64Array) -> Float32Array:
        """(M, D) features of some images, copied."""
        query, gallery = self._parts
        is_query = images < len(query)
        features = np.empty((len(images), query.shape[1]), np.float32)
        features[is_query] = query[images[is_query]]
        features[~is_query] = gallery[images[~is_query] - len(query)]
        return features


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The nearest images of each image, and how far the farthest one is."""

    indices: Int32Array
    """(N, K) images, by `(distance, image)`."""
    distances: Float32Array
    """(N, K) cosine distances, ascending."""
    farthest: Float32Array
    """(N,) largest cosine distance to any image; at least 1e-6."""

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartialNeighbours:
    """What some tiles say about the neighbours of all images."""

    keys: Int64Array
    """(N, K) the nearest so far in any order: distance as a sortable number in the upper half, image in the lower."""
    farthest: Float32Array
    """(N,) -inf where nothing was compared."""

    @staticmethod
    def join(parts: Sequence[PartialNeighbours]) -> Neighbours:
        """The neighbours that all tiles together give, however they were split."""
        width = parts[0].keys.shape[1]
        keys = np.concatenate([part.keys for part in parts], axis=1) if len(parts) > 1 else parts[0].keys
        keys = np.sort(np.partition(keys, width - 1, axis=1)[:, :width], axis=1)
        return Neighbours(
            indices=(keys & 0xFFFFFFFF).astype(np.int32),
            distances=_distance_of(keys),
            farthest=np.max([*(part.farthest for part in parts), np.full(len(keys), _LEAST_SCALE)], axis=0),
        )


def triangle_tiles(num_images: int) -> Int64Array:
    """(T, 2) first row and first column of the tiles that together compare each two images.

    The diagonal comes first; the columns of its tiles hold the images of their rows and some before them, so those are
    compared twice. The others come column by column.

    >>> triangle_tiles(1500).tolist()
    [[0, 0], [256, 0], [512, 0], [768, 0], [1024, 1024], [1280, 1024], [0, 1024], [256, 1024], [512, 1024], [768, 1024]]
    """
    rows, columns = np.arange(0, num_images, TILE_ROWS), np.arange(0, num_images, TILE_COLUMNS)
    tiles = np.stack(np.meshgrid(rows, columns), axis=-1).reshape(-1, 2)
    on_diagonal = _is_on_diagonal(tiles)
    return np.concatenate([tiles[on_diagonal], tiles[~on_diagonal & (tiles[:, 0] < tiles[:, 1])]])


def neighbours_in_tiles(
    images: Images,
    num_neighbours: int,
    tiles: Int64Array,
    kept: Float32Array | None = None,
    progress: Progress | None = None,
) -> PartialNeighbours:
    """The nearest images within some tiles; `PartialNeighbours.join` puts the workers' parts together.

    Needs about 20 MB beside 8 bytes a neighbour and image.

    Args:
        images: All images, of length-1 features.
        num_neighbours: K, at most the number of images.
        tiles: (T, 2) some of `triangle_tiles`.
        kept: (Q, G) to write the distances of queries to the gallery into, as far as these tiles hold them.
        progress: Called with the tiles done and all of them.
    """
    nearest = _Nearest(len(images), num_neighbours)
    memory = np.empty(TILE_ROWS * TILE_COLUMNS, np.float32)
    last = None
    for number, ((top, left), on_diagonal) in enumerate(
        zip(tiles.tolist(), _is_on_diagonal(tiles).tolist(), strict=True), start=1
    ):
        bottom, right = min(top + TILE_ROWS, len(images)), min(left + TILE_COLUMNS, len(images))
        if left != last:
            columns, last = padded(images.block(left, right), TILE_COLUMNS), left
        tile = memory[: (bottom - top) * (right - left)].reshape(bottom - top, right - left)
        tile_distances(padded(images.block(top, bottom), TILE_ROWS), columns, tile)
        nearest.add_to_rows(tile, top, left)
        if kept is not None:
            _keep(tile, top, left, kept)
        if not on_diagonal:
            nearest.add_to_columns(tile, top, left)
        if progress is not None:
            progress(number, len(tiles))
    return PartialNeighbours(keys=nearest.keys, farthest=nearest.farthest)


def _keep(tile: Float32Array, top: int, left: int, kept: Float32Array) -> None:
    """Copies the part of a tile whose rows are queries and whose columns are gallery images."""
    num_queries = len(kept)
    rows, first = tile[: max(0, num_queries - top)], max(0, num_queries - left)
    columns = slice(left + first - num_queries, left + tile.shape[1] - num_queries)
    if len(rows) and first < tile.shape[1]:
        kept[top : top + len(rows), columns] = rows[:, first:]


def _is_on_diagonal(tiles: Int64Array) -> BoolArray:
    on_diagonal: BoolArray = tiles[:, 0] // TILE_COLUMNS == tiles[:, 1] // TILE_COLUMNS
    return on_diagonal


class _Nearest:
    """The nearest images so far: what cannot be nearer is dropped by one comparison."""

    def __init__(self, num_images: int, num_neighbours: int) -> None:
        self.keys = np.full((num_images, num_neighbours), _NOBODY)
        self.farthest = np.full(num_images, -np.inf, np.float32)
        self._limits = np.full(num_images, np.inf, np.float32)
        """Distance of the last neighbour so far."""

    def add_to_rows(self, tile: Float32Array, top: int, left: int) -> None:
        """What a tile says about the images `top ...` of its rows."""
        owners = slice(top, top + len(tile))
        self._see(owners, tile)
        found = np.flatnonzero(tile <= self._limits[owners, None])
        rows, columns = np.divmod(found, tile.shape[1])
        self._merge(owners, rows, columns + left, tile.reshape(-1)[found])

    def add_to_columns(self, tile: Float32Array, top: int, left: int) -> None:
        """What a tile says about the images `left ...` of its columns."""
        owners = slice(left, left + tile.shape[1])
        self._see(owners, tile.T)
        found = np.flatnonzero(tile <= self._limits[owners])
        rows, columns = np.divmod(found, tile.shape[1])
        order = np.argsort(columns.astype(np.int16), kind="stable")
        self._merge(owners, columns[order], rows[order] + top, tile.reshape(-1)[found[order]])

    def _see(self, owners: slice, distances: Float32Array) -> None:
        """Note the farthest image, and a first limit for images that have none."""
        np.maximum(self.farthest[owners], distances.max(axis=1), out=self.farthest[owners])
        width = self.keys.shape[1]
        new = np.flatnonzero(np.isinf(self._limits[owners]))
        if len(new) and distances.shape[1] >= width:
            self._limits[owners][new] = np.partition(distances[new], width - 1, axis=1)[:, width - 1]

    def _merge(self, owners: slice, rows: Int64Array, images: Int64Array, distances: Float32Array) -> None:
        """Put candidates, grouped by ascending row, among the neighbours of the images `owners`."""
        if not len(rows):
            return
        keys = self.keys[owners]
        width = keys.shape[1]
        counts = np.bincount(rows, minlength=len(keys))
        places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        wider = np.full((len(keys), width + int(counts.max())), _NOBODY)
        wider[:, :width] = keys
        wider[rows, width + places] = _key_of(distances, images)
        wider.partition(width - 1, axis=1)
        keys[:] = wider[:, :width]
        last = keys.max(axis=1)
        full = np.flatnonzero(last != _NOBODY)
        self._limits[owners][full] = _distance_of(last[full])


def _key_of(distances: Float32Array, images: Int64Array) -> Int64Array:
    """Integers in the order of (distance, image)."""
    bits = (distances + np.float32(0)).view(np.int32)  # adding 0 turns -0 into 0
    return (_flipped(bits).astype(np.int64) << 32) + images


def _distance_of(keys: Int64Array) -> Float32Array:
    return _flipped((keys >> 32).astype(np.int32)).view(np.float32)


def _flipped(bits: Int32Array) -> Int32Array:
    """Between the bits of float32 and integers of the same order; its own inverse."""
    return np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
