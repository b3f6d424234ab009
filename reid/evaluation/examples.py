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


def choose_queries(
    ranks: PositiveRanks, vehicle_ids: NDArray[np.int64], num_queries: int
) -> list[tuple[Difficulty, int, float]]:
    """Queries from the easiest, the median and the hardest third by average precision, about as many of each.

    None is chosen twice, and as many vehicles as there are in a third: the queries of one vehicle are often all easy or
    all hard, and look alike.

    Args:
        ranks: Of all queries.
        vehicle_ids: (Q,) identity of each query.
        num_queries: Fewer where there are fewer valid ones.

    Returns:
        (difficulty, position among the queries, average precision); easiest first, hardest last. Among equals the
        earlier query comes first.
    """
    precisions = average_precision(ranks)
    valid = np.flatnonzero(~np.isnan(precisions))
    order = valid[np.argsort(-precisions[valid], kind="stable")]
    num_easy, num_median, _ = _thirds(len(order))
    easy, median, hard = np.split(order, [num_easy, num_easy + num_median])
    from_the_middle = np.argsort(np.abs(np.arange(len(median)) - len(median) // 2), kind="stable")
    thirds: list[tuple[Difficulty, NDArray[np.int64], NDArray[np.int64]]] = [
        ("easiest", easy, np.arange(len(easy))),
        ("median", median, from_the_middle),
        ("hardest", hard, np.arange(len(hard))[::-1]),
    ]
    chosen = []
    for (kind, queries, preferred), count in zip(thirds, _thirds(min(num_queries, len(order))), strict=True):
        places = preferred[_one_of_each_first(vehicle_ids[queries[preferred]])][:count]
        chosen += [(kind, int(query), float(precisions[query])) for query in queries[np.sort(places)]]
    return chosen


def _thirds(num: int) -> tuple[int, int, int]:
    """Easiest, median and hardest of so many; what is left over goes to the hardest, then to the easiest."""
    share, rest = divmod(num, 3)
    return share + (rest > 1), share, share + (rest > 0)


def _one_of_each_first(ids: NDArray[np.int64]) -> NDArray[np.intp]:
    """Order in which the first of each identity comes before the second of any.

    >>> _one_of_each_first(np.array([7, 7, 7, 5, 7, 5])).tolist()
    [0, 3, 1, 5, 2, 4]
    """
    seen: dict[int, int] = {}
    turns = []
    for value in ids.tolist():
        turns.append(seen.get(value, 0))
        seen[value] = turns[-1] + 1
    return np.argsort(turns, kind="stable")


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
