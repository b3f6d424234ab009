"""Evaluation workers: a checkpoint's images are embedded in slices and its queries ranked in blocks, as Ray tasks.

A keypoint detector's images are slices likewise, of which each worker finds the peaks.

Beside a training a coordinating task (no CPU of its own) hands out slices, else the caller does, which waits anyway; a
worker that dies is replaced by Ray and only its slice repeated. Nothing here can harm the training that goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from cluster.error_words import words_of
from cluster.progress_board import ProgressBoard
from cluster.ranking import rank_trial
from cluster.resources import threads_for
from cluster.slices import Allowance, run_slices
from reid.build.checkpoints import EvaluatedCheckpoint, identify_checkpoint
from reid.build.data import open_data
from reid.build.evaluation import (
    Evaluation,
    embed_rows,
    evaluate_all,
    load_trained_model,
)
from reid.build.keypoint_evaluation import (
    conclude_keypoints,
    evaluation_rows,
    load_trained_detector,
    predict_rows,
)
from reid.build.occlusion import SeverityResult, evaluate_severities
from reid.config import AnyExperiment, KeypointExperiment, ReidExperiment, experiment_of, retrievals_of
from reid.contracts import Embeddings
from reid.data.occlusion import OcclusionConfig
from reid.data.shard_set import ShardSet
from reid.evaluation.extract import join_embeddings
from reid.evaluation.keypoint_prediction import PredictedPeaks, join_peaks
from reid.evaluation.protocols import Trial
from reid.evaluation.trials import TrialRanks, trial_label
from reid.progress import Stages, untold
from reid.storage import open_location


class EvaluationFailed(RuntimeError):  # noqa: N818 - an outcome, reported as such
    """An evaluation was given up; the text says why."""


@dataclass
class PendingEvaluation:
    """An evaluation under way on the cluster."""

    checkpoint: str
    """Name of the checkpoint."""
    reference: Any

    def result(self, wait_seconds: float | None) -> Evaluation | None:
        """The evaluation, or None when it is not done within `wait_seconds` (None: wait for its end).

        Raises:
            EvaluationFailed: It failed, or took longer than its limit.
        """
        try:
            with _failures_in_words():
                evaluation: Evaluation = ray.get(self.reference, timeout=wait_seconds)
                return evaluation
        except GetTimeoutError:
            return None

    def cancel(self) -> None:
        """Ends the tasks of this evaluation."""
        ray.cancel(self.reference, force=False, recursive=True)


@contextmanager
def _failures_in_words() -> Iterator[None]:
    """EvaluationFailed for what an evaluation died of, in a task or here; a wait in vain stays what it is."""
    try:
        yield
    except GetTimeoutError:
        raise
    except RayTaskError as error:
        cause = error.cause
        while isinstance(cause, RayTaskError):  # of a worker, by way of the coordinator
            cause = cause.cause
        raise EvaluationFailed(str(cause).strip() or type(cause).__name__) from error
    except (RayError, TimeoutError) as error:
        raise EvaluationFailed((str(error).strip() or type(error).__name__).splitlines()[0]) from error
    except Exception as error:  # of the coordination itself, in this process
        raise EvaluationFailed(words_of(error).strip() or type(error).__name__) from error


def start_evaluation(experiment: AnyExperiment, checkpoint: str, name: str = "") -> PendingEvaluation:
    """Begins the evaluation of a checkpoint folder on evaluation workers; returns at once."""
    reference = _coordinate.remote(experiment.model_dump(mode="json"), checkpoint, name or experiment.name)
    return PendingEvaluation(checkpoint=open_location(checkpoint).name, reference=reference)


def evaluate_checkpoint(experiment: AnyExperiment, checkpoint: str, name: str = "") -> Evaluation:
    """Evaluates a checkpoint folder on evaluation workers and waits for the result.

    Raises:
        EvaluationFailed: It failed, or took longer than its limit.
    """
    return evaluate_protocols([experiment], checkpoint, name)[0]


def evaluate_protocols(
    experiments: Sequence[AnyExperiment], checkpoint: str, name: str = "", stages: Stages = untold
) -> list[Evaluation]:
    """Evaluates a checkpoint folder under several protocols, on evaluation workers, and waits.

    Args:
        experiments: They differ in protocol and re-ranking only; a keypoint detector's is one.
        checkpoint: Address of the folder.
        name: For tables.
        stages: Told how far it is.

    Raises:
        EvaluationFailed: It failed, or took longer than the limit times the number of protocols.
    """
    with _failures_in_words():
        return _evaluate(experiments, checkpoint, name or experiments[0].name, _board(stages))


def evaluate_occluded(
    experiment: ReidExperiment,
    checkpoint: str,
    severities: Sequence[float],
    seed: int,
    name: str = "",
    stages: Stages = untold,
) -> tuple[SeverityResult, ...]:
    """Evaluates a checkpoint folder on clean and on occluded queries, on evaluation workers, and waits.

    Raises:
        EvaluationFailed: It failed, or a severity took longer than the limit.
    """
    occlusions = [OcclusionConfig(severity=severity, seed=seed) for severity in severities]
    allowance, board = Allowance(experiment.cluster.evaluation_timeout_seconds), _board(stages)
    labels = [experiment.evaluation.protocol, ""]

    def announce(queries: str) -> None:
        labels[1] = queries
        if board is not None:
            board.about(*labels)

    def embed(rows: NDArray[np.int64], occlusion: OcclusionConfig | None) -> Embeddings:
        nonlocal allowance
        allowance = Allowance(experiment.cluster.evaluation_timeout_seconds)  # of each severity
        return join_embeddings(_in_slices(_embed, experiment, checkpoint, rows, allowance, occlusion, board=board))

    def rank(trials: Sequence[Trial], queries: Embeddings, gallery: Embeddings) -> Sequence[TrialRanks]:
        return _rank_trials(experiment, trials, queries, gallery, allowance, board, *labels)

    with _failures_in_words(), open_data(experiment, verify="sizes") as shards:
        trained = identify_checkpoint(open_location(checkpoint))
        return evaluate_severities(
            experiment, trained, shards, occlusions, embed=embed, rank=rank, name=name or experiment.name,
            announce=announce,
        )  # fmt: skip


@ray.remote(num_cpus=0, max_retries=2)
def _coordinate(experiment_json: dict[str, Any], checkpoint: str, name: str) -> Evaluation:
    return _evaluate([experiment_of(experiment_json)], checkpoint, name)[0]


def _evaluate(
    experiments: Sequence[AnyExperiment], checkpoint: str, name: str, board: ProgressBoard | None = None
) -> list[Evaluation]:
    with open_data(experiments[0], verify="sizes") as shards:
        trained = identify_checkpoint(open_location(checkpoint))
        match experiments[0]:
            case KeypointExperiment() as detector:
                return [_evaluate_detector(detector, shards, trained, checkpoint, name, board)]
            case _:
                return _evaluate_retrieval(retrievals_of(experiments), shards, trained, checkpoint, name, board)


def _evaluate_retrieval(
    experiments: Sequence[ReidExperiment],
    shards: ShardSet,
    trained: EvaluatedCheckpoint,
    checkpoint: str,
    name: str,
    board: ProgressBoard | None,
) -> list[Evaluation]:
    allowance = Allowance(experiments[0].cluster.evaluation_timeout_seconds * len(experiments))

    def embed(rows: NDArray[np.int64]) -> Embeddings:
        return join_embeddings(_in_slices(_embed, experiments[0], checkpoint, rows, allowance, board=board))

    def rank(experiment: ReidExperiment, trials: Sequence[Trial], embeddings: Embeddings) -> list[TrialRanks]:
        label = experiment.evaluation.protocol
        return _rank_trials(experiment, trials, embeddings, embeddings, allowance, board, label)

    return evaluate_all(experiments, trained, shards, embed=embed, rank=rank, name=name)


def _rank_trials(
    experiment: ReidExperiment,
    trials: Sequence[Trial],
    queries: Embeddings,
    galleries: Embeddings,
    allowance: Allowance,
    board: ProgressBoard | None,
    *labels: str,
) -> list[TrialRanks]:
    ranks = []
    for number, trial in enumerate(trials, start=1):
        if board is not None:
            board.about(*labels, trial_label(number, len(trials)))
        ranks.append(rank_trial(experiment, trial, queries, galleries, allowance, board))
    return ranks


def _board(stages: Stages) -> ProgressBoard | None:
    return None if stages is untold else ProgressBoard(stages)


def embed_on_workers(experiment: ReidExperiment, checkpoint: str, rows: NDArray[np.int64]) -> Embeddings:
    """Features of the given rows of the index by a checkpoint's network, in slices on evaluation workers.

    Raises:
        EvaluationFailed: A slice failed, or they were not done in time.
    """
    with _failures_in_words():
        allowance = Allowance(experiment.cluster.evaluation_timeout_seconds)
        return join_embeddings(_in_slices(_embed, experiment, checkpoint, rows, allowance))


def _evaluate_detector(
    experiment: KeypointExperiment,
    shards: ShardSet,
    trained: EvaluatedCheckpoint,
    checkpoint: str,
    name: str,
    board: ProgressBoard | None,
) -> Evaluation:
    began = time.monotonic()
    rows = evaluation_rows(experiment, shards)
    allowance = Allowance(experiment.cluster.evaluation_timeout_seconds)
    predicted = _in_slices(_predict, experiment, checkpoint, rows.all, allowance, board=board)
    return conclude_keypoints(
        experiment, trained, shards, rows, join_peaks(predicted), name=name, seconds=time.monotonic() - began
    )


def _in_slices(
    task: Callable[..., Any],
    experiment: AnyExperiment,
    checkpoint: str,
    rows: NDArray[np.int64],
    allowance: Allowance,
    *more: Any,
    board: ProgressBoard | None = None,
) -> list[Any]:
    """What evaluation workers make of slices of rows.

    Args:
        task: Takes the experiment, the checkpoint, rows, and what is in `more`.
        experiment: The run.
        checkpoint: Its folder.
        rows: (N,) rows of the index.
        allowance: How long this may take.
        more: Further arguments of the task.
        board: Where they write how far they are.
    """
    cluster, plain = experiment.cluster, experiment.model_dump(mode="json")
    parts = [part for part in np.array_split(rows, cluster.evaluation_workers) if len(part)]
    return run_slices(cluster, task, [(plain, checkpoint, part, *more) for part in parts], allowance, board)


def _embed(
    experiment_json: dict[str, Any],
    checkpoint: str,
    rows: NDArray[np.int64],
    occlusion: OcclusionConfig | None = None,
    stages: Stages = untold,
) -> Embeddings:
    experiment = experiment_of(experiment_json)
    assert not isinstance(experiment, KeypointExperiment), "the coordinator told them apart"
    device = prepare_worker(experiment)
    with open_data(experiment, verify="sizes") as shards:
        trained = load_trained_model(open_location(checkpoint), device)
        return embed_rows(experiment, trained, shards, rows, device, occlusion, stages)


def _predict(
    experiment_json: dict[str, Any], checkpoint: str, rows: NDArray[np.int64], stages: Stages = untold
) -> PredictedPeaks:
    experiment = KeypointExperiment.model_validate(experiment_json)
    device = prepare_worker(experiment)
    with open_data(experiment, verify="sizes") as shards:
        trained = load_trained_detector(open_location(checkpoint), device)
        return predict_rows(experiment, trained, shards, rows, device, stages)


def prepare_worker(experiment: AnyExperiment) -> torch.device:
    """The device of an evaluation worker, its threads set."""
    torch.set_num_threads(threads_for(experiment.cluster.cpus_per_evaluation_worker))
    return torch.device("cuda" if experiment.cluster.gpus_per_evaluation_worker else "cpu")
