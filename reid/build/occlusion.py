"""A checkpoint on clean and on occluded queries: figures by severity.

The gallery is clean and embedded once, the queries again for each severity. An image that is a query in one trial and
in the gallery of another (vehicleid) is occluded in its first part only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reid.build.checkpoints import EvaluatedCheckpoint
from reid.build.data import evaluation_parts, open_data
from reid.build.evaluation import conclude, embed_rows, evaluation_trials, load_trained_model
from reid.config import ReidExperiment, with_overrides
from reid.contracts import Embeddings
from reid.data.occluded_queries import refuse_occluded
from reid.data.occlusion import OcclusionConfig, PatchTable, patch_table
from reid.data.shard_set import ShardSet
from reid.evaluation.protocols import Trial, rows_of_trials
from reid.evaluation.results import RetrievalResult
from reid.evaluation.trials import TrialRanks, evaluate_trials
from reid.progress import Stages, labelled, untold
from reid.storage import Location

CURVE = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
"""PMANet's range of severities."""

EmbedRows = Callable[[NDArray[np.int64], OcclusionConfig | None], Embeddings]
"""Rows of the index, and how to occlude them, to features."""
RankTrials = Callable[[Sequence[Trial], Embeddings, Embeddings], Sequence[TrialRanks]]
"""Trials, features of queries, features of galleries -> ranks."""


@dataclass(frozen=True, kw_only=True)
class SeverityResult:
    """Figures of one severity."""

    result: RetrievalResult
    run: str
    """Name of the run that trained the checkpoint."""
    protocol: str
    """Without the severity, which `result.protocol` says."""
    patches: PatchTable | None
    """Of the queries; None: clean."""

    @property
    def severity(self) -> float:
        """Share of each query's area that is covered; 0: clean."""
        return 0.0 if self.patches is None else self.patches.config.severity

    def to_json(self) -> dict[str, Any]:
        """The result as plain data, with what names the patches."""
        about = {"severity": 0.0} if self.patches is None else self.patches.summary()
        return {**self.result.to_json(), "occlusion": {"run": self.run, "protocol": self.protocol, **about}}


def parse_severities(texts: Sequence[str]) -> tuple[float, ...]:
    """Severities as a command line gives them, ascending, each once.

    Args:
        texts: Numbers, lists of them with commas, or `curve`.

    Raises:
        ValueError: Not a number, or not inside (0, 1).

    >>> parse_severities(["0.3,0.05", "0.3"])
    (0.05, 0.3)
    >>> parse_severities(["curve"])
    (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
    """
    found: set[float] = set()
    for part in (part.strip() for text in texts for part in text.split(",")):
        if part == "curve":
            found.update(CURVE)
            continue
        try:
            severity = float(part)
        except ValueError:
            raise ValueError(f"--occluded {part!r}: expected 'curve' or shares of the area such as 0.2") from None
        if not 0 < severity < 1:
            hint = "; clean queries are always evaluated" if severity == 0 else ""
            raise ValueError(f"--occluded {part}: expected a share of the area above 0 and below 1{hint}")
        found.add(severity)
    return tuple(sorted(found))


def refuse_parts_of_clean_images(experiment: ReidExperiment) -> None:
    """ValueError for a run whose retrieval takes masks and boxes: the shards hold those of the clean images."""
    if evaluation_parts(experiment):
        raise ValueError(
            "--occluded with evaluation.partial_tasks: the parts in the shards are those of the clean images. Make an"
            " occluded set (jobs/make_occluded.py), add its own parts (jobs/add_masks.py --panet), and evaluate that;"
            " or leave partial tasks out"
        )


def evaluate_occluded_here(
    experiment: ReidExperiment,
    checkpoint: Location,
    severities: Sequence[float],
    seed: int,
    *,
    name: str = "",
    stages: Stages = untold,
) -> tuple[SeverityResult, ...]:
    """All severities in this process and on the CPU; evaluation workers give the same figures."""
    device = torch.device("cpu")
    budget = experiment.evaluation.memory_budget_mb << 20
    told = stages

    def announce(queries: str) -> None:
        nonlocal told
        told = labelled(stages, experiment.evaluation.protocol, queries)

    with open_data(experiment) as shards:
        trained = load_trained_model(checkpoint, device)
        return evaluate_severities(
            experiment,
            trained,
            shards,
            [OcclusionConfig(severity=severity, seed=seed) for severity in severities],
            embed=lambda rows, occlusion: embed_rows(experiment, trained, shards, rows, device, occlusion, told),
            rank=lambda trials, queries, gallery: evaluate_trials(
                gallery,
                trials,
                queries=queries,
                rerank_config=experiment.evaluation.rerank,
                memory_budget_bytes=budget,
                stages=told,
            ),
            name=name,
            announce=announce,
        )


def evaluate_severities(
    experiment: ReidExperiment,
    trained: EvaluatedCheckpoint,
    shards: ShardSet,
    occlusions: Sequence[OcclusionConfig],
    *,
    embed: EmbedRows,
    rank: RankTrials,
    name: str,
    announce: Callable[[str], None] = lambda _: None,
) -> tuple[SeverityResult, ...]:
    """Clean queries and each severity, wherever embedding and ranking take place.

    Args:
        experiment: Protocol and settings of the evaluation.
        trained: The checkpoint.
        shards: The clean data set.
        occlusions: Severities and seeds.
        embed: Features of rows of the index.
        rank: Ranks of all trials.
        name: Of the checkpoint, for tables.
        announce: Told which queries come next, in words.

    Raises:
        DataError: The data set's queries are occluded already.
        ValueError: Retrieval takes masks and boxes of parts, which the shards hold for the clean images only.
    """
    refuse_occluded(shards)
    refuse_parts_of_clean_images(experiment)
    trials = evaluation_trials(experiment, shards)
    query_rows = np.unique(np.concatenate([trial.query_rows for trial in trials]))
    without_lists = with_overrides(experiment, ["evaluation.num_rank_lists=0"])
    found: list[SeverityResult] = []
    began = time.monotonic()
    announce("clean queries")
    clean = embed(rows_of_trials(trials), None)
    for occlusion in (None, *occlusions):
        if occlusion is not None:
            announce(f"queries {100 * occlusion.severity:g} % occluded")
        queries = clean if occlusion is None else embed(query_rows, occlusion)
        ranks = rank(trials, queries, clean)
        seconds = time.monotonic() - began
        evaluated = conclude(without_lists, trained, shards, trials, ranks, clean, name=name, seconds=seconds)
        result, patches = evaluated.result, None
        assert isinstance(result, RetrievalResult), "the experiment is of retrieval"
        if occlusion is not None:
            patches = patch_table(shards.index, query_rows, occlusion)
            about = (
                f"one colour patch a query, seed {occlusion.seed}, sha256 {patches.sha256[:12]}; the gallery is clean"
            )
            label = occlusion.label(result.protocol)
            reranked = None if result.reranked is None else replace(result.reranked, protocol=label)
            result = replace(result, protocol=label, notes=(*result.notes, about), reranked=reranked)
        protocol = experiment.evaluation.protocol
        found.append(SeverityResult(result=result, run=experiment.name, protocol=protocol, patches=patches))
        began = time.monotonic()
    return tuple(found)
