"""`--dry-run`: everything that could stop a run, tried before it costs anything.

Configuration, data, weights and storage are checked here; then one worker's share of two steps and a small evaluation
run as Ray tasks with the resources of a training and of an evaluation worker, and what they took is the estimate of the
whole.
"""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError
from torch import nn

from cluster.evaluation import prepare_worker
from cluster.placement import describe_evaluation_worker
from cluster.resources import threads_for
from cluster.slices import Allowance, start_slice
from cluster.trainer import Resume, checked_run
from reid.build.data import open_data, open_eval_stream, open_train_stream
from reid.build.evaluation import evaluation_trials
from reid.build.keypoint_evaluation import evaluation_rows, raw_sizes
from reid.build.training import ReidModel, build_step
from reid.config import AnyExperiment, KeypointExperiment, experiment_of
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
    """What one training worker's trial took."""

    step_seconds: float
    memory_gigabytes: float
    loss: float


def dry_run(experiment: AnyExperiment, resume: Resume = Resume.AUTO, *, resume_anyway: bool = False) -> None:
    """Runs all checks and prints the plan with estimates.

    Args:
        experiment: The run.
        resume: As the run itself will be given it.
        resume_anyway: As the run itself will be given it.

    Raises:
        DataError: The shards cannot be used.
        ValueError: What else would stop the run.
    """
    with checked_run(experiment, resume, resume_anyway) as run:
        experiment, shards, device = run.experiment, run.shards, run.device
        images = len(_rows_to_evaluate(experiment, shards))
        probe = run.folder.location.child(".dry-run")
        write_bytes_atomic(probe, b"writable")
        delete_tree(probe)
        logger.info("storage: %s can be written", run.folder.location.uri)
        logger.info("trying %d steps and an evaluation of %d images ...", STEPS, EVALUATION_IMAGES)
        trial = _try_training(experiment, device, pretrained=run.resumed_from is None)
        images_per_second = _try_evaluation(experiment)
        stream = open_train_stream(experiment, shards, 0, 1, torch.device("cpu"))
        steps = sum(stream.steps_in_epoch(epoch) for epoch in range(experiment.training.loop.epochs))
        stream.close()
        evaluation_seconds = images / images_per_second / experiment.cluster.evaluation_workers
    logger.info(
        "training: %s steps x %.2f s = %s on this hardware; %.1f GB of %s memory a worker; first loss %.2f",
        f"{steps:,}", trial.step_seconds, _duration(steps * trial.step_seconds), trial.memory_gigabytes,
        "GPU" if device == "cuda" else "main", trial.loss,
    )  # fmt: skip
    logger.info(
        "evaluation: %s images / %.1f images/s / %d worker(s) = %s each time, on %s, beside training",
        f"{images:,}", images_per_second, experiment.cluster.evaluation_workers, _duration(evaluation_seconds),
        describe_evaluation_worker(experiment.cluster),
    )  # fmt: skip
    _refuse_slow_evaluation(experiment, evaluation_seconds)
    logger.info("dry run passed: the run can start")


def _refuse_slow_evaluation(experiment: AnyExperiment, seconds: float) -> None:
    """ValueError for evaluations that would all be given up: embedding alone, without ranking, takes too long."""
    limit = experiment.cluster.evaluation_timeout_seconds
    if seconds > limit:
        raise ValueError(
            f"an evaluation would take {_duration(seconds)} and be given up after cluster.evaluation_timeout_seconds ="
            f" {_duration(limit)}: give it more (cluster.evaluation_workers, cluster.cpus_per_evaluation_worker,"
            " cluster.gpus_per_evaluation_worker), or more time"
        )


def _try_training(experiment: AnyExperiment, device: str, *, pretrained: bool) -> Trial:
    """A training worker's trial, where the cluster has its resources.

    Args:
        experiment: The run.
        device: Of its training workers.
        pretrained: Load the first weights too; a run that continues at a checkpoint does not need them.
    """
    options = {"num_cpus": experiment.cluster.cpus_per_worker, "num_gpus": int(device == "cuda")}
    plain = experiment.model_dump(mode="json")
    with failures_in_words(too_much_to_train(experiment)):
        trial: Trial = ray.get(_train_a_little.options(**options).remote(plain, device, pretrained))
    return trial


def _try_evaluation(experiment: AnyExperiment) -> float:
    """Images a second of an evaluation worker, where the cluster has its resources."""
    size, settings = experiment.evaluation.batch_size, "evaluation.batch_size or use evaluation.precision=bf16"
    with failures_in_words(f"an evaluation of {size} images at once does not fit into memory: lower {settings}"):
        (speed,) = Allowance(math.inf).results(
            [start_slice(experiment.cluster, _evaluate_a_little, experiment.model_dump(mode="json"))]
        )
    return float(speed)


def too_much_to_train(experiment: AnyExperiment) -> str:
    """What to say when a training worker's share of a batch does not fit into its memory."""
    plan, transform, workers = experiment.data.plan, experiment.data.transform, experiment.cluster.num_workers
    return (
        f"a step does not fit into memory: {plan.batch_size} images / {workers} worker(s) ="
        f" {plan.batch_size // workers} images of {transform.width}x{transform.height} in"
        f" {experiment.training.step.precision} on each; raise cluster.num_workers, lower the images of a batch"
        " (data.plan, with training.step.accumulate_batches for the same update) or their size (data.transform), or use"
        " training.step.precision=bf16"
    )


@contextmanager
def failures_in_words(out_of_memory: str) -> Iterator[None]:
    """What a task of the trial raised, as it raised it; ValueError with this text when it ran out of memory."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, torch.OutOfMemoryError):
            raise ValueError(f"{out_of_memory} ({str(error.cause).splitlines()[0]})") from None
        raise error.cause from None
    except (WorkerCrashedError, OutOfMemoryError) as error:
        raise ValueError(f"a process of the trial was killed, most likely since {out_of_memory}") from error


@ray.remote(max_retries=0)
def _train_a_little(experiment_json: dict[str, Any], device_name: str, pretrained: bool) -> Trial:
    experiment = experiment_of(experiment_json)
    device = torch.device(device_name)
    if device_name == "cpu":
        torch.set_num_threads(threads_for(experiment.cluster.cpus_per_worker))
    with open_data(experiment, verify="sizes") as shards:
        stream = open_train_stream(experiment, shards, 0, experiment.cluster.num_workers, device)
        step = build_step(experiment, shards.manifest.num_classes, device, pretrained=pretrained)
        step.model.train()
        seconds = []
        loss = float("nan")
        began = time.perf_counter()
        for number, batch in enumerate(stream.batches(0)):
            loss = float(step.train_batch(batch)["loss"])
            now = time.perf_counter()
            seconds.append(now - began)  # waiting for the batch included
            began = now
            if number + 1 == STEPS + 1:
                break
        stream.close()
    if device_name == "cuda":
        memory = torch.cuda.max_memory_allocated() / 1e9
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    # The first step pays for set-up.
    return Trial(float(np.mean(seconds[1:] or seconds)), memory, loss)


def _evaluate_a_little(experiment_json: dict[str, Any]) -> float:
    """Images a second that an evaluation worker embeds, with a network that has learnt nothing."""
    experiment = experiment_of(experiment_json)
    device = prepare_worker(experiment)
    with open_data(experiment, verify="sizes") as shards:
        model = build_step(experiment, shards.manifest.num_classes, device, pretrained=False).bare_model.eval()
        rows = _rows_to_evaluate(experiment, shards)[:EVALUATION_IMAGES]
        _evaluate(experiment, model, shards, rows[:1], device)  # pays for set-up
        began = time.perf_counter()
        _evaluate(experiment, model, shards, rows, device)
        return len(rows) / (time.perf_counter() - began)


def _rows_to_evaluate(experiment: AnyExperiment, shards: ShardSet) -> NDArray[np.int64]:
    match experiment:
        case KeypointExperiment():
            return evaluation_rows(experiment, shards).all
        case _:
            return rows_of_trials(evaluation_trials(experiment, shards))


def _evaluate(
    experiment: AnyExperiment, model: nn.Module, shards: ShardSet, rows: NDArray[np.int64], device: torch.device
) -> None:
    """What an evaluation does with images, done with a few."""
    images = open_eval_stream(experiment, shards, rows, device)
    match experiment:
        case KeypointExperiment():
            predict_peaks(model, images, raw_sizes(shards.index), device, precision=experiment.evaluation.precision)
        case _:
            assert isinstance(model, ReidModel), "what retrieval runs train"
            evaluation = experiment.evaluation
            features, _ = extract_features(
                model.embed, images, device, precision=evaluation.precision, flip=evaluation.flip
            )
            cosine_distances(features, features)
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
