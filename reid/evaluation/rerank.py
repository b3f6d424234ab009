"""Re-ranking by k-reciprocal encoding, sparse and exact: nothing of the size N x N is ever held.

Zhong, Zheng, Cao, Li: "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017. An image is encoded
by the images that have it among their neighbours as it has them (its k-reciprocal set), weighted by nearness; two
images are alike when their encodings overlap. As in the authors' code, which the usual figures come from:

- `k1` neighbours are `k1 + 1` entries, the image itself included; half of `k1` is rounded to the even side;
- a candidate's set joins when *more* than two thirds of it are there already (the paper's text: at least);
- the original distance is divided by the largest one of its row; the squared Euclidean distance of features of length 1
  is twice the cosine distance, so both give the same.

Ours differs where that code leaves things open: ties are ordered by `(distance, image)` instead of as they come, and
overlaps are compared as whole numbers (`3 * common > 2 * size`).

The steps, each a function of a range of images so that workers can share it: neighbours (`reid.evaluation.neighbours`),
`encode`, `expand`, `Reranking`. No figure depends on the ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reid.evaluation.counting import BoolArray, Float32Array, Int64Array
from reid.evaluation.neighbours import (
    Images,
    Int32Array,
    Neighbours,
    PartialNeighbours,
    neighbours_in_tiles,
    triangle_tiles,
)
from reid.evaluation.rerank_config import RerankConfig
from reid.progress import Progress

_ENCODED_ENTRIES: Final = 1 << 20
"""Rows times images marked at once while encoding: small enough for a core's cache."""
_EXPANDED_ENTRIES: Final = 1 << 18
"""About so many entries are added up at once in query expansion."""
_PAIRS_AT_ONCE: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Encodings:
    """A sparse vector over all images for each of some images: whom it is alike, and how much."""

    offsets: Int64Array
    """(R + 1,) row `r` owns the entries `offsets[r] ... offsets[r + 1] - 1`."""
    images: Int32Array
    """Ascending within a row."""
    weights: Float32Array
    """Positive; the sum of a row is 1."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @staticmethod
    def join(parts: Sequence[Encodings]) -> Encodings:
        """The rows of consecutive ranges of images as one."""
        counts = np.concatenate([np.diff(part.offsets) for part in parts])
        return Encodings(
            offsets=_offsets(counts),
            images=np.concatenate([part.images for part in parts]),
            weights=np.concatenate([part.weights for part in parts]),
        )

    def rows(self, begin: int, end: int) -> Encodings:
        """Some consecutive rows."""
        chosen = slice(int(self.offsets[begin]), int(self.offsets[end]))
        return Encodings(
            offsets=self.offsets[begin : end + 1] - self.offsets[begin],
            images=self.images[chosen],
            weights=self.weights[chosen],
        )


def rerank(
    query: Float32Array,
    gallery: Float32Array,
    config: RerankConfig,
    kept: Float32Array | None = None,
    progress: Progress | None = None,
) -> Reranking:
    """All steps in one process.

    Needs, beside the features, some 50 MB and about 40 bytes for each entry of the expanded encodings (at VeRi-776 size
    24 entries an image with 20/6, 170 with 80/15).

    Args:
        query: (Q, D) features of length 1.
        gallery: (G, D) features of length 1.
        config: How much is re-ranked.
        kept: (Q, G) to write the cosine distances of the queries to the gallery into, which are met on the way.
        progress: Called with the tiles of distances done and all of them; what comes after them takes less time.

    Raises:
        ValueError: `k1` is not smaller than the number of images.
    """
    config.check_size(len(query) + len(gallery))
    images = Images(query, gallery)
    tiles = triangle_tiles(len(images))
    neighbours = PartialNeighbours.join([neighbours_in_tiles(images, config.k1 + 1, tiles, kept, progress)])
    encodings = encode(images, neighbours, config.k1, 0, len(images))
    expanded = expand(encodings, neighbours, config.k2, 0, len(images))
    return Reranking(
        config.weight,
        expanded.rows(0, len(query)),
        neighbours.farthest[: len(query)],
        expanded.rows(len(query), len(images)),
    )


def encode(images: Images, neighbours: Neighbours, k1: int, begin: int, end: int) -> Encodings:
    """k-reciprocal sets with their expansion by half the neighbourhood, and their Gaussian weights.

    A candidate's own set of half the size joins when more than two thirds of it are in the set already (the paper's
    section 3.2); the weight of a member is exp(-distance) (section 3.3).

    Args:
        images: All images.
        neighbours: Of all images, with at least `k1 + 1` of each.
        k1: Size of the neighbourhood.
        begin: First image to encode.
        end: The one after the last.
    """
    half = round(k1 / 2) + 1
    nearest = neighbours.indices[:, : k1 + 1]
    is_half = _is_mutual(nearest[:, :half], 0, len(nearest))
    half_sizes = np.count_nonzero(is_half, axis=1)
    num_rows = max(1, _ENCODED_ENTRIES // len(nearest))
    near_distances = np.full((num_rows, len(nearest)), np.nan, np.float32)
    parts = []
    for top in range(begin, end, num_rows):
        own = nearest[top : min(top + num_rows, end)]
        member = np.zeros((len(own), len(nearest)), np.bool_)
        rows, places = np.nonzero(_is_mutual(nearest, top, top + len(own)))
        candidates = own[rows, places]
        member[rows, candidates] = True
        # Each candidate's own set of half the size: (candidates, half), of which `is_half` belong.
        flat = member.reshape(-1)
        others, belongs = nearest[candidates, :half] + rows[:, None] * len(nearest), is_half[candidates]
        num_common = np.count_nonzero(flat.take(others) & belongs, axis=1)
        joins = 3 * num_common > 2 * half_sizes[candidates]
        flat[others[joins][belongs[joins]]] = True
        found = np.flatnonzero(flat)
        rows, columns = np.divmod(found, len(nearest))
        numbers = np.arange(len(own))[:, None]
        near_distances[numbers, own] = neighbours.distances[top : top + len(own), : k1 + 1]
        distances = near_distances[rows, columns]
        near_distances[numbers, own] = np.nan
        _fill_missing(distances, images, rows + top, columns)
        weights = np.exp(-(distances / neighbours.farthest[rows + top]).astype(np.float64))
        sums = np.bincount(rows, weights, minlength=len(own))
        parts.append(
            Encodings(
                offsets=_offsets(np.bincount(rows, minlength=len(own))),
                images=columns.astype(np.int32),
                weights=(weights / sums[rows]).astype(np.float32),
            )
        )
    return Encodings.join(parts)


def expand(encodings: Encodings, neighbours: Neighbours, k2: int, begin: int, end: int) -> Encodings:
    """Local query expansion: the mean of the encodings of the `k2` nearest images (the paper's section 3.4).

    With `k2` = 1 an encoding stays as it is, as in the authors' code.
    """
    if k2 == 1:
        return encodings.rows(begin, end)
    sizes = np.diff(encodings.offsets)
    num_rows = max(1, _EXPANDED_ENTRIES // max(1, k2 * len(encodings.images) // len(encodings)))
    num_rows = min(num_rows, max(1, 2**31 // len(neighbours)))  # (row, image) is half of a number of 64 bits
    parts = []
    for top in range(begin, end, num_rows):
        nearest = neighbours.indices[top : min(top + num_rows, end), :k2]
        places = _ranges(encodings.offsets[nearest].reshape(-1), sizes[nearest].reshape(-1))
        rows = np.repeat(np.arange(len(nearest)), sizes[nearest].sum(axis=1))
        # Equal images of a row come together, in the order of the neighbours.
        keys = rows * len(neighbours) + encodings.images[places]
        order = np.sort((keys << 32) + np.arange(len(keys))) & 0xFFFFFFFF
        keys = keys[order]
        firsts = np.flatnonzero(np.diff(keys, prepend=-1))
        sums = np.add.reduceat(encodings.weights[places[order]].astype(np.float64), firsts) if len(keys) else firsts
        rows, columns = np.divmod(keys[firsts], len(neighbours))
        parts.append(
            Encodings(
                offsets=_offsets(np.bincount(rows, minlength=len(nearest))),
                images=columns.astype(np.int32),
                weights=(sums / k2).astype(np.float32),
            )
        )
    return Encodings.join(parts)


class Reranking:
    """Turns blocks of cosine distances of queries to the gallery into re-ranked distances."""

    def __init__(self, weight: float, queries: Encodings, farthest: Float32Array, gallery: Encodings) -> None:
        """Prepares the gallery's encodings, seen from the images they name.

        Args:
            weight: Of the original distance.
            queries: Expanded encodings of all queries, or of those that a worker ranks.
            farthest: (Q,) largest distance of each of these to any image.
            gallery: Expanded encodings of the gallery.
        """
        num_images = 1 + max(int(part.images.max(initial=0)) for part in (queries, gallery))
        self._weight = weight
        self._queries = queries
        self._farthest = farthest
        self._gallery_size = len(gallery)
        # By image, then by gallery index: one number sorts faster than an order is found.
        order = np.sort((gallery.images.astype(np.int64) << 32) + np.arange(len(gallery.images))) & 0xFFFFFFFF
        owners = np.repeat(np.arange(len(gallery), dtype=np.int32), np.diff(gallery.offsets))
        self._owners: Int32Array = owners[order]
        self._weights: Float32Array = gallery.weights[order]
        self._sizes = np.bincount(gallery.images, minlength=num_images)
        self._starts = _offsets(self._sizes)[:-1]

    def similarities(self, query: int) -> tuple[Int64Array, NDArray[np.float64]]:
        """Gallery indices whose encoding overlaps with a query's, and how much: 1 - Jaccard distance."""
        own = slice(int(self._queries.offsets[query]), int(self._queries.offsets[query + 1]))
        images = self._queries.images[own]
        sizes = self._sizes[images]
        places = _ranges(self._starts[images], sizes)
        smaller = np.minimum(self._weights[places], np.repeat(self._queries.weights[own], sizes))
        common = np.bincount(self._owners[places], smaller, minlength=self._gallery_size)
        found = np.flatnonzero(common)
        overlap = common[found]
        # Encodings sum to 1, so the sum of the larger weights is 2 minus that of the smaller ones.
        return found, overlap / (2 - overlap)

    def apply(self, block: Float32Array, first_query: int, first_index: int = 0) -> None:
        """Replaces cosine distances by re-ranked ones, `(1 - weight) * Jaccard + weight * original`, in place.

        Args:
            block: (B, C) distances of the queries `first_query ...` to the gallery entries `first_index ...`.
            first_query: Of the first row.
            first_index: Of the first column.
        """
        scales = np.float32(self._weight) / self._farthest[first_query : first_query + len(block)]
        for row, line in enumerate(block):
            line *= scales[row]
            line += np.float32(1 - self._weight)
            indices, similarities = self.similarities(first_query + row)
            begin, end = np.searchsorted(indices, (first_index, first_index + len(line)))
            line[indices[begin:end] - first_index] -= ((1 - self._weight) * similarities[begin:end]).astype(np.float32)


def _is_mutual(nearest: Int32Array, begin: int, end: int) -> BoolArray:
    """(end - begin, K) whether the images `begin ... end - 1` are among the K neighbours of their neighbours."""
    num_rows = max(1, _ENCODED_ENTRIES // nearest.shape[1] ** 2)
    mutual = np.empty((end - begin, nearest.shape[1]), np.bool_)
    for top in range(begin, end, num_rows):
        rows = nearest[top : min(top + num_rows, end)]
        numbers = np.arange(top, top + len(rows), dtype=np.int32)[:, None, None]
        mutual[top - begin : top - begin + len(rows)] = (nearest[rows] == numbers).any(axis=2)
    return mutual


def _fill_missing(distances: Float32Array, images: Images, rows: Int64Array, columns: Int64Array) -> None:
    """Computes the distances of pairs that are nobody's neighbours (NaN), each by itself: always the same bits."""
    missing = np.flatnonzero(np.isnan(distances))
    for start in range(0, len(missing), _PAIRS_AT_ONCE):
        some = missing[start : start + _PAIRS_AT_ONCE]
        distances[some] = 1 - np.vecdot(images.take(rows[some]), images.take(columns[some]))


def _ranges(starts: Int64Array, sizes: Int64Array) -> Int64Array:
    """`starts[i] ... starts[i] + sizes[i] - 1`, one range after the other.

    >>> _ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    ends = np.cumsum(sizes)
    return np.repeat(starts - ends + sizes, sizes) + np.arange(ends[-1] if len(ends) else 0)


def _offsets(sizes: Int64Array) -> Int64Array:
    return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
