"""A trial's queries ranked by evaluation workers, and re-ranked: each step of it in as many tasks as there are workers.

What every task of a step needs is put into Ray's object store once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from cluster.progress_board import ProgressBoard
from cluster.slices import Allowance, run_slices
from reid.config import ReidExperiment
from reid.contracts import Embeddings
from reid.evaluation.counting import Float32Array
from reid.evaluation.distances import rank_before_and_after
from reid.evaluation.extract import select_embeddings
from reid.evaluation.neighbours import (
    Images,
    Neighbours,
    PartialNeighbours,
    neighbours_in_tiles,
    triangle_tiles,
)
from reid.evaluation.protocols import Trial
from reid.evaluation.rerank import Encodings, Reranking, encode, expand
from reid.evaluation.rerank_config import RerankConfig
from reid.evaluation.trials import IMAGES_COMPARED, QUERIES_RANKED, TrialRanks, changes_ranks, rank_queries
from reid.progress import Stages, untold

LEAST_BYTES_OF_A_WORKER = 32 << 20
"""Many workers on one small budget get this much each: what ranking needs at the least, and room for wider blocks."""


def rank_trial(
    experiment: ReidExperiment,
    trial: Trial,
    queries: Embeddings,
    galleries: Embeddings,
    allowance: Allowance,
    board: ProgressBoard | None = None,
) -> TrialRanks:
    """The ranks of a trial: its queries in blocks, re-ranked or not.

    Args:
        experiment: Its evaluation settings and cluster.
        trial: Who queries whom.
        queries: Of every query, at least.
        galleries: Of every gallery image, at least; mostly the same.
        allowance: How long this may take.
        board: Where to write how far it is.

    Raises:
        TimeoutError: It took longer.
    """
    workers = experiment.cluster.evaluation_workers
    budget = max((experiment.evaluation.memory_budget_mb << 20) // workers, LEAST_BYTES_OF_A_WORKER)
    config = experiment.evaluation.rerank
    query = select_embeddings(queries, trial.query_rows)
    gallery = select_embeddings(galleries, trial.gallery_rows)
    shared = ray.put(gallery)
    blocks = _ranges(len(query), workers)
    if workers == 1 or not changes_ranks(config):
        parts = [(_rows(query, *block), shared, trial.remove_junk, config, budget) for block in blocks]
        return TrialRanks.join(run_slices(experiment.cluster, _rank, parts, allowance, board))
    neighbours, expanded = _encode_on_workers(experiment, config, query, shared, len(gallery), allowance, board)
    of_gallery = ray.put(expanded.rows(len(query), len(expanded)))
    changed = [
        (
            _rows(query, begin, end), shared, config.weight, expanded.rows(begin, end),
            neighbours.farthest[begin:end], of_gallery, trial.remove_junk, budget,
        )
        for begin, end in blocks
    ]  # fmt: skip
    return TrialRanks.join(run_slices(experiment.cluster, _rerank, changed, allowance, board))


def _encode_on_workers(
    experiment: ReidExperiment,
    config: RerankConfig,
    query: Embeddings,
    gallery: Any,
    gallery_size: int,
    allowance: Allowance,
    board: ProgressBoard | None,
) -> tuple[Neighbours, Encodings]:
    """Neighbours and expanded encodings of all images, each step shared by the workers (`reid.evaluation.rerank`)."""
    cluster, workers = experiment.cluster, experiment.cluster.evaluation_workers
    features, size = ray.put(query.features), len(query) + gallery_size
    tiles = [some for some in np.array_split(triangle_tiles(size), workers) if len(some)]
    compared = [(features, gallery, config.k1 + 1, some) for some in tiles]
    neighbours = PartialNeighbours.join(run_slices(cluster, _neighbours, compared, allowance, board))
    shared, ranges = ray.put(neighbours), _ranges(size, workers)
    encoded = [(features, gallery, shared, config.k1, *some) for some in ranges]
    encodings = ray.put(Encodings.join(run_slices(cluster, _encode, encoded, allowance)))
    expanded = [(encodings, shared, config.k2, *some) for some in ranges]
    return neighbours, Encodings.join(run_slices(cluster, _expand, expanded, allowance))


def _ranges(size: int, parts: int) -> list[tuple[int, int]]:
    """Consecutive ranges that cover `size`, none of them empty.

    >>> _ranges(5, 2), _ranges(1, 3)
    ([(0, 2), (2, 5)], [(0, 1)])
    """
    edges = [size * part // parts for part in range(parts + 1)]
    return [(begin, end) for begin, end in pairwise(edges) if begin < end]


def _rows(embeddings: Embeddings, begin: int, end: int) -> Embeddings:
    """Some consecutive rows."""
    return Embeddings(
        features=embeddings.features[begin:end], vehicle_ids=embeddings.vehicle_ids[begin:end],
        camera_ids=embeddings.camera_ids[begin:end], samples=embeddings.samples[begin:end],
    )  # fmt: skip


def _rank(
    query: Embeddings,
    gallery: Embeddings,
    remove_junk: bool,
    config: RerankConfig | None,
    memory_budget_bytes: int,
    stages: Stages = untold,
) -> TrialRanks:
    return rank_queries(
        query,
        gallery,
        remove_junk=remove_junk,
        rerank_config=config,
        memory_budget_bytes=memory_budget_bytes,
        stages=stages,
    )


def _rerank(
    query: Embeddings,
    gallery: Embeddings,
    weight: float,
    encodings: Encodings,
    farthest: Float32Array,
    gallery_encodings: Encodings,
    remove_junk: bool,
    memory_budget_bytes: int,
    stages: Stages = untold,
) -> TrialRanks:
    change = Reranking(weight, encodings, farthest, gallery_encodings).apply
    base, reranked = rank_before_and_after(
        query,
        gallery,
        change,
        remove_junk=remove_junk,
        memory_budget_bytes=memory_budget_bytes,
        progress=stages(QUERIES_RANKED),
    )
    return TrialRanks(base=base, reranked=reranked)


def _neighbours(
    query: Float32Array,
    gallery: Embeddings,
    num_neighbours: int,
    tiles: NDArray[np.int64],
    stages: Stages = untold,
) -> PartialNeighbours:
    images = Images(query, gallery.features)
    return neighbours_in_tiles(images, num_neighbours, tiles, progress=stages(IMAGES_COMPARED))


def _encode(
    query: Float32Array, gallery: Embeddings, neighbours: Neighbours, k1: int, begin: int, end: int
) -> Encodings:
    return encode(Images(query, gallery.features), neighbours, k1, begin, end)


def _expand(encodings: Encodings, neighbours: Neighbours, k2: int, begin: int, end: int) -> Encodings:
    return expand(encodings, neighbours, k2, begin, end)
