"""A protocol's trials from features to one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeGuard

import numpy as np

from reid.contracts import Embeddings
from reid.evaluation.distances import LEAST_BUDGET_BYTES, check_comparable, rank_before_and_after, rank_blocks
from reid.evaluation.extract import select_embeddings
from reid.evaluation.metrics import RetrievalMetrics, summarise
from reid.evaluation.protocols import Trial
from reid.evaluation.ranking import PositiveRanks
from reid.evaluation.rerank import rerank
from reid.evaluation.rerank_config import RerankConfig
from reid.evaluation.results import RetrievalResult
from reid.progress import Stages, labelled, untold

QUERIES_RANKED: Final = "queries ranked"
IMAGES_COMPARED: Final = "blocks of images compared for re-ranking"
"""Stages of ranking."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRanks:
    """The ranks of a trial's queries, and those after re-ranking where that was asked for."""

    base: PositiveRanks
    reranked: PositiveRanks | None = None

    @staticmethod
    def join(parts: Sequence[TrialRanks]) -> TrialRanks:
        """The ranks of consecutive blocks of queries as one."""
        after = [part.reranked for part in parts if part.reranked is not None]
        return TrialRanks(
            base=PositiveRanks.join([part.base for part in parts]),
            reranked=PositiveRanks.join(after) if after else None,
        )


def evaluate_trials(
    embeddings: Embeddings,
    trials: Sequence[Trial],
    *,
    queries: Embeddings | None = None,
    rerank_config: RerankConfig | None = None,
    memory_budget_bytes: int = 2**30,
    stages: Stages = untold,
) -> list[TrialRanks]:
    """The ranks of each trial, in this process; each trial is re-ranked by itself.

    Args:
        embeddings: Of every row of the trials, or, with `queries`, of every row of their galleries.
        trials: Who queries whom.
        queries: Other features of every query, such as those of occluded images, for its part as a query: where it
            stands in the gallery of another trial it keeps that of `embeddings`.
        rerank_config: Also rank after re-ranking.
        memory_budget_bytes: For a block of distances and its ranking.
        stages: Told of each stage.

    Raises:
        ValueError: A trial has too few images for the re-ranking.
    """
    return [
        rank_queries(
            select_embeddings(embeddings if queries is None else queries, trial.query_rows),
            select_embeddings(embeddings, trial.gallery_rows),
            remove_junk=trial.remove_junk,
            rerank_config=rerank_config,
            memory_budget_bytes=memory_budget_bytes,
            stages=labelled(stages, trial_label(number, len(trials))),
        )
        for number, trial in enumerate(trials, start=1)
    ]


def trial_label(number: int, num_trials: int) -> str:
    """What the progress of one trial among several is told by."""
    return f"trial {number} of {num_trials}" if num_trials > 1 else ""


def rank_queries(
    query: Embeddings,
    gallery: Embeddings,
    *,
    remove_junk: bool,
    rerank_config: RerankConfig | None = None,
    memory_budget_bytes: int = 2**30,
    stages: Stages = untold,
) -> TrialRanks:
    """The ranks of queries, and those after re-ranking where that is asked for.

    Where all distances of queries to the gallery take no more than half of the budget, re-ranking keeps those that it
    meets while it looks for neighbours, instead of computing them again.

    Args:
        query: Features of all queries; without re-ranking of any of them.
        gallery: Features of the gallery.
        remove_junk: Take out entries with the query's identity and camera.
        rerank_config: Also rank after re-ranking.
        memory_budget_bytes: For distances and their ranking.
        stages: Told of each stage.

    Raises:
        ValueError: There are too few images for the re-ranking, or features do not fit each other.
    """
    if not changes_ranks(rerank_config):
        base = rank_blocks(
            query,
            gallery,
            remove_junk=remove_junk,
            memory_budget_bytes=memory_budget_bytes,
            progress=stages(QUERIES_RANKED),
        )
        return TrialRanks(base=base, reranked=None if rerank_config is None else base)
    check_comparable(query, gallery)
    kept = None
    half = memory_budget_bytes // 2
    if 4 * len(query) * len(gallery) <= half and half >= LEAST_BUDGET_BYTES:
        kept, memory_budget_bytes = np.empty((len(query), len(gallery)), np.float32), half
    change = rerank(query.features, gallery.features, rerank_config, kept, stages(IMAGES_COMPARED)).apply
    base, reranked = rank_before_and_after(
        query, gallery, change, kept, remove_junk=remove_junk, memory_budget_bytes=memory_budget_bytes,
        progress=stages(QUERIES_RANKED),
    )  # fmt: skip
    return TrialRanks(base=base, reranked=reranked)


def check_reranking(config: RerankConfig | None, trials: Sequence[Trial]) -> None:
    """Refuse a re-ranking that a trial has too few images for.

    Raises:
        ValueError: With both numbers.
    """
    if config is not None:
        for trial in trials:
            config.check_size(len(trial.query_rows) + len(trial.gallery_rows))


def changes_ranks(config: RerankConfig | None) -> TypeGuard[RerankConfig]:
    """Whether ranks differ after re-ranking; with all weight on the original distance they are the base ranks."""
    return config is not None and config.weight < 1


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
