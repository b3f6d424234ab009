"""Queries worth looking at, and the gallery images nearest to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reid.contracts import Embeddings
from reid.evaluation.distances import cosine_distances
from reid.evaluation.metrics import average_precision
from reid.evaluation.ranking import PositiveRanks

Difficulty = Literal["easiest", "median", "hardest"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankList:
    """The nearest kept gallery images of one query."""

    query_sample: int
    """Row of the index."""
    gallery_samples: NDArray[np.int64]
    """Rows of the index, nearest first; fewer than asked for when the gallery is short."""
    distances: NDArray[np.float32]
    is_positive: NDArray[np.bool_]


def choose_queries(ranks: PositiveRanks, num_queries: int) -> list[tuple[Difficulty, int, float]]:
    """Easiest, median and hardest queries by average precision, about a third each, none twice.

    Returns:
        (difficulty, position among the queries, average precision); easiest first, hardest last. Among equals the
        earlier query comes first.
    """
    precisions = average_precision(ranks)
    valid = np.flatnonzero(~np.isnan(precisions))
    order = valid[np.argsort(-precisions[valid], kind="stable")]
    share, rest = divmod(min(num_queries, len(order)), 3)
    num_hard, num_easy, num_median = share + (rest > 0), share + (rest > 1), share
    begin = int(np.clip(len(order) // 2 - num_median // 2, num_easy, max(num_easy, len(order) - num_hard - num_median)))
    chosen: list[tuple[Difficulty, NDArray[np.int64]]] = [
        ("easiest", order[:num_easy]),
        ("median", order[begin : begin + num_median]),
        ("hardest", order[len(order) - num_hard :]),
    ]
    return [(kind, int(query), float(precisions[query])) for kind, queries in chosen for query in queries]


def nearest_entries(
    query: Embeddings, gallery: Embeddings, positions: list[int], length: int, *, remove_junk: bool
) -> list[RankList]:
    """The rank lists of some queries, by `(distance, gallery index)` and without junk.

    Args:
        query: All queries.
        gallery: The gallery.
        positions: Which queries.
        length: Entries per list.
        remove_junk: As in the protocol.
    """
    lists = []
    for position in positions:
        distances = cosine_distances(query.features[position : position + 1], gallery.features)[0]
        same = gallery.vehicle_ids == query.vehicle_ids[position]
        camera = query.camera_ids[position]
        junk = same & (gallery.camera_ids == camera) if remove_junk and camera >= 0 else np.zeros_like(same)
        kept = np.flatnonzero(~junk)
        nearest = kept[np.argsort(distances[kept], kind="stable")[:length]]
        lists.append(
            RankList(
                query_sample=int(query.samples[position]),
                gallery_samples=gallery.samples[nearest],
                distances=distances[nearest],
                is_positive=same[nearest],
            )
        )
    return lists
