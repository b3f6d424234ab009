"""Evaluation workers: a checkpoint's images are embedded in slices and its queries ranked in blocks, as Ray tasks.

A keypoint detector's images are slices likewise, of which each worker finds the peaks.

A coordinating task (no CPU of its own) hands out slices; a worker that dies is replaced by Ray and only its slice
repeated. Nothing here can harm the training that goes on beside it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from cluster.ranking import rank_trial, results_of
from cluster.resources import evaluation_options, threads_for
from reid.build.data import open_data
from reid.build.evaluation import (
    Evaluation,
    conclude,
    embed_rows,
    evaluation_trials,
    load_trained_model,
)
from reid.build.keypoint_evaluation import (
    conclude_keypoints,
    evaluation_rows,
    load_trained_detector,
    predict_rows,
)
from reid.config import AnyExperiment, Experiment, KeypointExperiment, PANetExperiment, ReidExperiment, experiment_of
from reid.contracts import Embeddings
from reid.data.shard_set import ShardSet
from reid.evaluation.extract import join_embeddings
from reid.evaluation.keypoint_prediction import PredictedPeaks, join_peaks
from reid.evaluation.protocols import rows_of_trials
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
            evaluation: Evaluation = ray.get(self.reference, timeout=wait_seconds)
            return evaluation
        except GetTimeoutError:
            return None
        except RayTaskError as error:
            raise EvaluationFailed(str(error.cause).strip() or type(error.cause).__name__) from error
        except RayError as error:
            raise EvaluationFailed(str(error).strip().splitlines()[0]) from error

    def cancel(self) -> None:
        """Ends the tasks of this evaluation."""
        ray.cancel(self.reference, force=False, recursive=True)


def start_evaluation(experiment: AnyExperiment, checkpoint: str, name: str = "") -> PendingEvaluation:
    """Begins the evaluation of a checkpoint folder on evaluation workers; returns at once."""
    reference = _coordinate.remote(experiment.model_dump(mode="json"), checkpoint, name or experiment.name)
    return PendingEvaluation(checkpoint=open_location(checkpoint).name, reference=reference)


def evaluate_checkpoint(experiment: AnyExperiment, checkpoint: str, name: str = "") -> Evaluation:
    """Evaluates a checkpoint folder on evaluation workers and waits for the result.

    Raises:
        EvaluationFailed: It failed, or took longer than its limit.
    """
    evaluation = start_evaluation(experiment, checkpoint, name).result(None)
    assert evaluation is not None
    return evaluation


@ray.remote(num_cpus=0, max_retries=2)
def _coordinate(experiment_json: dict[str, Any], checkpoint: str, name: str) -> Evaluation:
    began = time.monotonic()
    experiment = experiment_of(experiment_json)
    with open_data(experiment, verify="sizes") as shards:
        match experiment:
            case KeypointExperiment():
                return _coordinate_detector(experiment, shards, checkpoint, name, began)
            case Experiment() | PANetExperiment():
                return _coordinate_retrieval(experiment, shards, checkpoint, name, began)


def _coordinate_retrieval(
    experiment: ReidExperiment, shards: ShardSet, checkpoint: str, name: str, began: float
) -> Evaluation:
    trials = evaluation_trials(experiment, shards)
    embedded, deadline = _in_slices(_embed, experiment, checkpoint, rows_of_trials(trials))
    embeddings = join_embeddings(embedded)
    ranks = [rank_trial(experiment, trial, embeddings, deadline) for trial in trials]
    trained = load_trained_model(open_location(checkpoint), torch.device("cpu"))
    return conclude(experiment, trained, shards, trials, ranks, embeddings, name=name, seconds=time.monotonic() - began)


def _coordinate_detector(
    experiment: KeypointExperiment, shards: ShardSet, checkpoint: str, name: str, began: float
) -> Evaluation:
    rows = evaluation_rows(experiment, shards)
    predicted, _ = _in_slices(_predict, experiment, checkpoint, rows.all)
    trained = load_trained_detector(open_location(checkpoint), torch.device("cpu"))
    return conclude_keypoints(
        experiment, trained, shards, rows, join_peaks(predicted), name=name, seconds=time.monotonic() - began
    )


def _in_slices(
    task: Any, experiment: AnyExperiment, checkpoint: str, rows: NDArray[np.int64]
) -> tuple[list[Any], float]:
    """What evaluation workers make of slices of rows, and the time at which the evaluation is given up."""
    options = evaluation_options(experiment.cluster)
    plain = experiment.model_dump(mode="json")
    slices = np.array_split(rows, experiment.cluster.evaluation_workers)
    references = [task.options(**options).remote(plain, checkpoint, part) for part in slices if len(part)]
    # Workers may have to wait until training leaves them a CPU; the clock starts with the first finished slice.
    ray.wait(references, num_returns=1)
    deadline = time.monotonic() + experiment.cluster.evaluation_timeout_seconds
    return results_of(references, deadline), deadline


@ray.remote
def _embed(experiment_json: dict[str, Any], checkpoint: str, rows: NDArray[np.int64]) -> Embeddings:
    experiment = experiment_of(experiment_json)
    assert not isinstance(experiment, KeypointExperiment), "the coordinator told them apart"
    device = _prepare_worker(experiment)
    with open_data(experiment, verify="sizes") as shards:
        return embed_rows(experiment, load_trained_model(open_location(checkpoint), device), shards, rows, device)


@ray.remote
def _predict(experiment_json: dict[str, Any], checkpoint: str, rows: NDArray[np.int64]) -> PredictedPeaks:
    experiment = KeypointExperiment.model_validate(experiment_json)
    device = _prepare_worker(experiment)
    with open_data(experiment, verify="sizes") as shards:
        return predict_rows(experiment, load_trained_detector(open_location(checkpoint), device), shards, rows, device)


def _prepare_worker(experiment: AnyExperiment) -> torch.device:
    """The device of an evaluation worker, its threads set."""
    torch.set_num_threads(threads_for(experiment.cluster.cpus_per_evaluation_worker))
    return torch.device("cuda" if experiment.cluster.gpus_per_evaluation_worker else "cpu")
