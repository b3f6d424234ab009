"""`--dry-run`: everything that could stop a run, tried before it costs anything.

Configuration, data, weights and storage are checked here; then one worker's share of two steps and a small evaluation
run as a Ray task with a training worker's resources, and what they took is the estimate of the whole.
"""

from __future__ import annotations

import logging
import resource
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayTaskError
from torch import nn

from cluster.resources import (
    check_evaluation_resources,
    check_training_resources,
    ray_connection,
    resolve_device,
    threads_for,
)
from cluster.trainer import with_absolute_addresses
from reid.build.data import open_data, open_eval_stream, open_train_stream
from reid.build.evaluation import evaluation_trials
from reid.build.keypoint_evaluation import evaluation_rows, raw_sizes
from reid.build.run_folder import open_run, refuse_mixed_folders
from reid.build.run_plan import describe_plan
from reid.build.training import ReidModel, build_step
from reid.config import AnyExperiment, KeypointExperiment, experiment_of
from reid.data.plan import lanes_of_worker
from reid.data.shard_set import ShardSet
from reid.evaluation.distances import cosine_distances
from reid.evaluation.extract import extract_features
from reid.evaluation.keypoint_prediction import predict_peaks
from reid.evaluation.protocols import rows_of_trials
from reid.storage import delete_tree, write_bytes_atomic

logger = logging.getLogger(__name__)

STEPS = 2
EVALUATION_IMAGES = 64


@dataclass(frozen=True)
class Trial:
    """What one worker's trial took."""

    step_seconds: float
    images_per_second_evaluated: float
    memory_gigabytes: float
    loss: float


def dry_run(experiment: AnyExperiment) -> None:
    """Runs all checks and prints the plan with estimates.

    Raises:
        DataError: The shards cannot be used.
        ValueError: What else would stop the run.
    """
    experiment = with_absolute_addresses(experiment)
    refuse_mixed_folders(experiment)
    lanes_of_worker(experiment.data.plan, 0, experiment.cluster.num_workers)  # refuses a batch that cannot be shared
    folder = open_run(experiment)
    with open_data(experiment) as shards, ray_connection():
        images = len(_rows_to_evaluate(experiment, shards))
        check_training_resources(experiment.cluster)
        check_evaluation_resources(experiment.cluster)
        device = resolve_device(experiment.cluster)
        logger.info("%s", describe_plan(experiment, shards, device=device, resumed_from=None))
        probe = folder.location.child(".dry-run")
        write_bytes_atomic(probe, b"writable")
        delete_tree(probe)
        logger.info("storage: %s can be written", folder.location.uri)
        logger.info("trying %d steps and an evaluation of %d images ...", STEPS, EVALUATION_IMAGES)
        trial = _try_on_cluster(experiment, device)
        stream = open_train_stream(experiment, shards, 0, 1, torch.device("cpu"))
        steps = sum(stream.steps_in_epoch(epoch) for epoch in range(experiment.training.loop.epochs))
        stream.close()
        evaluation_seconds = images / trial.images_per_second_evaluated / experiment.cluster.evaluation_workers
    logger.info(
        "training: %s steps x %.2f s = %s on this hardware; %.1f GB of %s memory a worker; first loss %.2f",
        f"{steps:,}", trial.step_seconds, _duration(steps * trial.step_seconds), trial.memory_gigabytes,
        "GPU" if device == "cuda" else "main", trial.loss,
    )  # fmt: skip
    logger.info(
        "evaluation: %s images / %.0f images/s / %d worker(s) = %s, beside training",
        f"{images:,}", trial.images_per_second_evaluated, experiment.cluster.evaluation_workers,
        _duration(evaluation_seconds),
    )  # fmt: skip
    logger.info("dry run passed: the run can start")


def _try_on_cluster(experiment: AnyExperiment, device: str) -> Trial:
    """A worker's trial, where the cluster has a worker's resources."""
    options = {"num_cpus": experiment.cluster.cpus_per_worker, "num_gpus": int(device == "cuda")}
    try:
        trial: Trial = ray.get(_try_worker.options(**options).remote(experiment.model_dump(mode="json"), device))
    except RayTaskError as error:
        raise error.cause from None
    return trial


@ray.remote(max_retries=0)
def _try_worker(experiment_json: dict[str, Any], device_name: str) -> Trial:
    experiment = experiment_of(experiment_json)
    device = torch.device(device_name)
    if device_name == "cpu":
        torch.set_num_threads(threads_for(experiment.cluster.cpus_per_worker))
    with open_data(experiment, verify="sizes") as shards:
        stream = open_train_stream(experiment, shards, 0, experiment.cluster.num_workers, device)
        step = build_step(experiment, shards.manifest.num_classes, device)
        step.model.train()
        seconds = []
        loss = float("nan")
        for number, batch in enumerate(stream.batches(0)):
            began = time.perf_counter()
            loss = float(step.train_batch(batch)["loss"])
            seconds.append(time.perf_counter() - began)
            if number + 1 == STEPS + 1:
                break
        stream.close()
        rows = _rows_to_evaluate(experiment, shards)[:EVALUATION_IMAGES]
        began = time.perf_counter()
        _try_evaluation(experiment, step.bare_model.eval(), shards, rows, device)
        evaluated = len(rows) / (time.perf_counter() - began)
    if device_name == "cuda":
        memory = torch.cuda.max_memory_allocated() / 1e9
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    # The first step pays for set-up.
    return Trial(float(np.mean(seconds[1:] or seconds)), evaluated, memory, loss)


def _rows_to_evaluate(experiment: AnyExperiment, shards: ShardSet) -> NDArray[np.int64]:
    match experiment:
        case KeypointExperiment():
            return evaluation_rows(experiment, shards).all
        case _:
            return rows_of_trials(evaluation_trials(experiment, shards))


def _try_evaluation(
    experiment: AnyExperiment, model: nn.Module, shards: ShardSet, rows: NDArray[np.int64], device: torch.device
) -> None:
    """What an evaluation does with images, done with a few."""
    images = open_eval_stream(experiment, shards, rows, device)
    precision = experiment.evaluation.precision
    if isinstance(model, ReidModel):
        features, _ = extract_features(model.embed, images, device, precision=precision)
        cosine_distances(features, features)
    else:
        predict_peaks(model, images, raw_sizes(shards.index), device, precision=precision)
    images.close()


def _duration(seconds: float) -> str:
    """A length of time for people.

    >>> _duration(7500)
    '2 h 5 min'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
