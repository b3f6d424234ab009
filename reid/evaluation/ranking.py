"""Exact ranks of the positives of each query, from blocks of distances.

Convention: a query's gallery is ordered by `(distance, gallery index)`; entries with the query's identity *and* camera
(junk) are taken out; what is left is *kept*, and the nearest kept entry has rank 1 (PROTOCOLS, "Scoring").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid.evaluation.counting import Counter, Float32Array, Int64Array, Targets, refuse_nan, sortable


@dataclass(frozen=True, kw_only=True, slots=True)
class PositiveRanks:
    """The ranks of all positives of a set of queries: all that mAP, CMC and mINP need."""

    offsets: Int64Array
    """(Q + 1,) query `q` owns `ranks[offsets[q] : offsets[q + 1]]`; an empty range: no positive is left."""
    ranks: Int64Array
    """1-based ranks among the kept entries, ascending within a query."""
    num_kept: Int64Array
    """(Q,) gallery entries that are not junk."""

    def __len__(self) -> int:
        return len(self.num_kept)

    @staticmethod
    def join(parts: list[PositiveRanks]) -> PositiveRanks:
        """The ranks of consecutive blocks of queries as one."""
        counts = np.concatenate([np.diff(part.offsets) for part in parts] or [np.zeros(0, np.int64)])
        return PositiveRanks(
            offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
            ranks=np.concatenate([part.ranks for part in parts] or [np.zeros(0, np.int64)]),
            num_kept=np.concatenate([part.num_kept for part in parts] or [np.zeros(0, np.int64)]),
        )


class GalleryIdentities:
    """Finds the gallery entries of an identity."""

    def __init__(self, vehicle_ids: Int64Array, camera_ids: Int64Array) -> None:
        if len(vehicle_ids) == 0:
            raise ValueError("expected a gallery with at least one image, got an empty one; check split and subset")
        if len(vehicle_ids) != len(camera_ids):
            raise ValueError(
                f"expected a camera for each of the {len(vehicle_ids)} gallery images, got {len(camera_ids)}"
            )
        self._order = _grouping_order(vehicle_ids)
        self._sorted_ids = vehicle_ids[self._order]
        self._camera_ids = camera_ids

    def __len__(self) -> int:
        return len(self._order)

    def matches(self, query_ids: Int64Array, query_cameras: Int64Array, *, remove_junk: bool) -> Matches:
        """All gallery entries with the identity of each query, and which of them are junk.

        An unknown camera (negative code) is never the same camera.
        """
        starts = np.searchsorted(self._sorted_ids, query_ids, "left")
        counts = np.searchsorted(self._sorted_ids, query_ids, "right") - starts
        offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        indices = self._order[np.repeat(starts, counts) + within]
        is_junk = np.zeros(len(indices), np.bool_)
        if remove_junk:
            cameras = np.repeat(query_cameras, counts)
            is_junk = (self._camera_ids[indices] == cameras) & (cameras >= 0)
        return Matches(offsets=offsets, indices=indices, is_junk=is_junk)


def _grouping_order(ids: Int64Array) -> Int64Array:
    """Stable order by id; small codes and their place are sorted as one number, which is several times faster."""
    if ids.min() >= 0 and ids.max() < 2**31:
        return np.sort((ids.astype(np.int64) << 32) | np.arange(len(ids))) & (2**32 - 1)
    return np.argsort(ids, kind="stable")


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches:
    """The gallery entries that share the identity of each query of a block."""

    offsets: Int64Array
    """(Q + 1,)"""
    indices: Int64Array
    """Gallery index, ascending within a query."""
    is_junk: NDArray[np.bool_]

    def read_distances(self, distances: Float32Array, first_index: int = 0) -> tuple[Int64Array, Float32Array]:
        """Which matches lie in the columns `first_index ...` of a block, and their distances."""
        queries = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        columns = self.indices - first_index
        inside = np.flatnonzero((columns >= 0) & (columns < distances.shape[1]))
        return inside, distances[queries[inside], columns[inside]]


class RankSum:
    """Ranks of the positives of a block of queries, summed over blocks of gallery columns.

    First the distances of all matches must be known, then each block of columns adds its counts.
    """

    def __init__(self, matches: Matches, match_distances: Float32Array, gallery_size: int) -> None:
        refuse_nan(match_distances[None])
        counts = np.diff(matches.offsets)
        queries = np.repeat(np.arange(len(counts)), counts)
        # Matches ascend by gallery index, so a stable sort leaves ties in the order of the gallery.
        order = sortable(match_distances, queries).argsort(kind="stable")
        is_junk = matches.is_junk[order]
        junk_before = np.concatenate(([0], np.cumsum(is_junk)))
        self._num_kept = gallery_size - np.diff(junk_before[matches.offsets])
        junk_before = junk_before[:-1] - junk_before[matches.offsets[:-1]][queries]
        chosen = order[~is_junk]
        num_positives = np.bincount(queries[~is_junk], minlength=len(counts))
        self._targets = Targets(
            offsets=np.concatenate(([0], np.cumsum(num_positives))).astype(np.int64),
            distances=match_distances[chosen],
            indices=matches.indices[chosen],
        )
        self._ranks: Int64Array = 1 - junk_before[~is_junk]

    def add(self, distances: Float32Array, counter: Counter, first_index: int = 0) -> None:
        """Count the entries of the block (Q, columns) that begins at gallery index `first_index`."""
        self._ranks += counter.count_before(distances, self._targets, first_index)

    def result(self) -> PositiveRanks:
        """The ranks, once all columns were added."""
        return PositiveRanks(offsets=self._targets.offsets, ranks=self._ranks, num_kept=self._num_kept)


def rank_positives(
    distances: Float32Array,
    query_ids: Int64Array,
    query_cameras: Int64Array,
    gallery_ids: Int64Array,
    gallery_cameras: Int64Array,
    *,
    remove_junk: bool = True,
) -> PositiveRanks:
    """Exact ranks of the positives of each query of a block, without sorting the gallery.

    Same result as a stable sort of each row (golden/rank_*.npz); NumPy's default sort and the compiled ranking of known
    toolboxes order ties as they come.

    Args:
        distances: (Q, N) float32, small = alike, any sign, infinities allowed.
        query_ids: (Q,) identity codes.
        query_cameras: (Q,) camera codes; negative: unknown, then nothing is junk for this query.
        gallery_ids: (N,) identity codes.
        gallery_cameras: (N,) camera codes.
        remove_junk: False keeps the entries with the query's identity and camera (the `-raw` protocols).

    Returns:
        Ranks of all positives; a query without any has an empty range.

    Raises:
        ValueError: If shapes do not fit, the gallery is empty, the block is not float32, or a distance is NaN.
    """
    gallery = GalleryIdentities(gallery_ids, gallery_cameras)
    return rank_block(distances, query_ids, query_cameras, gallery, remove_junk=remove_junk)


def rank_block(
    distances: Float32Array,
    query_ids: Int64Array,
    query_cameras: Int64Array,
    gallery: GalleryIdentities,
    *,
    remove_junk: bool = True,
) -> PositiveRanks:
    """`rank_positives` for one of several blocks of queries against the same gallery."""
    check_block(distances, len(query_ids), len(query_cameras), len(gallery))
    matches = gallery.matches(query_ids, query_cameras, remove_junk=remove_junk)
    _, match_distances = matches.read_distances(distances)
    ranks = RankSum(matches, match_distances, len(gallery))
    ranks.add(distances, Counter(len(gallery)))
    return ranks.result()


def check_block(distances: Float32Array, num_queries: int, num_query_cameras: int, gallery_size: int) -> None:
    """Refuse a block of distances that does not fit its queries and gallery.

    Raises:
        ValueError: Naming what does not fit.
    """
    if distances.dtype != np.float32:
        raise ValueError(f"expected float32 distances, got {distances.dtype}; convert with .astype(np.float32)")
    if distances.shape != (num_queries, gallery_size):
        raise ValueError(
            f"expected distances of shape ({num_queries} queries, {gallery_size} gallery images), got {distances.shape}"
        )
    if num_query_cameras != num_queries:
        raise ValueError(f"expected a camera for each of the {num_queries} queries, got {num_query_cameras}")
    if distances.size and distances.strides[1] != distances.itemsize:
        raise ValueError("expected distances with contiguous rows; pass numpy.ascontiguousarray(distances)")
