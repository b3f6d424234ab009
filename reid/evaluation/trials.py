"""A protocol's trials from features to one result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reid.contracts import Embeddings
from reid.evaluation.distances import Progress, rank_blocks
from reid.evaluation.extract import select_embeddings
from reid.evaluation.metrics import RetrievalMetrics, summarise
from reid.evaluation.protocols import Trial
from reid.evaluation.ranking import PositiveRanks
from reid.evaluation.results import RetrievalResult


def evaluate_trials(
    embeddings: Embeddings,
    trials: Sequence[Trial],
    *,
    queries: Embeddings | None = None,
    memory_budget_bytes: int = 2**30,
    progress: Progress | None = None,
) -> list[PositiveRanks]:
    """The ranks of each trial, in this process.

    Args:
        embeddings: Of every row of the trials, or, with `queries`, of every row of their galleries.
        trials: Who queries whom.
        queries: Other features of every query, such as those of occluded images, for its part as a query: where it
            stands in the gallery of another trial it keeps that of `embeddings`.
        memory_budget_bytes: For blocks of distances.
        progress: As of `rank_blocks`.
    """
    return [
        rank_blocks(
            select_embeddings(embeddings if queries is None else queries, trial.query_rows),
            select_embeddings(embeddings, trial.gallery_rows),
            remove_junk=trial.remove_junk,
            memory_budget_bytes=memory_budget_bytes,
            progress=progress,
        )
        for trial in trials
    ]


def make_result(
    protocol: str,
    trials: Sequence[Trial],
    ranks: Sequence[PositiveRanks],
    *,
    checkpoint_hash: str,
    manifest_hash: str,
    name: str = "",
    post_processing: str = "none",
    notes: Sequence[str] = (),
    trapezoid: bool = False,
    seconds: float = 0.0,
) -> RetrievalResult:
    """The result of a protocol from the ranks of its trials (mean over trials, each trial counting the same)."""
    metrics = [summarise(trial, trapezoid=trapezoid) for trial in ranks]
    several = len(metrics) > 1
    notes = [*notes]
    if protocol.startswith("vehicleid"):
        notes.append("one positive per query: mAP is the mean reciprocal rank")
    return RetrievalResult(
        protocol=protocol,
        metrics=mean_metrics(metrics),
        checkpoint_hash=checkpoint_hash,
        manifest_hash=manifest_hash,
        name=name,
        post_processing=post_processing,
        notes=tuple(notes),
        trials=tuple(metrics) if several else (),
        trial_names=tuple(trial.name for trial in trials) if several else (),
        drawn_galleries={trial.name: tuple(trial.gallery_rows.tolist()) for trial in trials if trial.is_drawn},
        seconds=seconds,
    )


def mean_metrics(trials: Sequence[RetrievalMetrics]) -> RetrievalMetrics:
    """Mean of each figure over trials; the query counts are sums (a single trial is returned as it is)."""
    if len(trials) == 1:
        return trials[0]
    trapezoids = [trial.trapezoid_mAP for trial in trials if trial.trapezoid_mAP is not None]
    return RetrievalMetrics(
        mAP=float(np.mean([trial.mAP for trial in trials])),
        cmc={k: float(np.mean([trial.cmc[k] for trial in trials])) for k in trials[0].cmc},
        mINP=float(np.mean([trial.mINP for trial in trials])),
        num_queries=sum(trial.num_queries for trial in trials),
        num_valid_queries=sum(trial.num_valid_queries for trial in trials),
        trapezoid_mAP=float(np.mean(trapezoids)) if trapezoids else None,
    )
