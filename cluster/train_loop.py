"""What each training worker runs under Ray Train: build, train, publish figures."""

from __future__ import annotations

import logging
import socket
from typing import Any

import ray.train
import ray.train.torch
import torch

from cluster.metrics import WorkerGauges
from cluster.resources import threads_for
from cluster.run_marks import EndMark, StopMark
from cluster.wishes import WorkerWishes
from reid.build.metrics_log import MetricsLog
from reid.build.run_folder import open_run
from reid.build.training import CHECKPOINTS_FAILED, Training, build_training
from reid.config import AnyExperiment, experiment_of
from reid.contracts import DataError, EpochResult, IntervalResult
from reid.storage import Location, exists, is_refused
from reid.training.checkpoint import CheckpointFailedError
from reid.training.step import NonFiniteLossError

STEPS_BETWEEN_LOOKS = 10
"""Steps between two questions to Ray about nodes that go away: one costs up to 0.1 s on a busy machine."""


def train_worker(config: dict[str, Any]) -> None:
    """Trains one worker's share of a run from the newest checkpoint to the end, or until the driver wants it to stop.

    What would go wrong again (settings, data, a loss that stays non-finite, memory, a storage that takes no checkpoint
    or refuses access) is marked in the run folder, so that the group that Ray starts anew ends at once.

    Args:
        config: {"experiment": the experiment as JSON, "resume_anyway": bool}; plain data only.

    Raises:
        ValueError: The run folder is not shared with the driver, or settings or data are wrong.
        NonFiniteLossError, CheckpointFailedError, torch.OutOfMemoryError: As `reid.training.loop.fit`.
        OSError: The storage failed.
    """
    experiment = experiment_of(config["experiment"])
    folder = open_run(experiment).location
    end = EndMark(folder)
    rank = ray.train.get_context().get_world_rank()
    try:
        _check_shared(experiment, folder)
        if end.error() is None:
            _train(experiment, folder, rank, resume_anyway=config["resume_anyway"])
    except (ValueError, NonFiniteLossError, CheckpointFailedError, torch.OutOfMemoryError) as error:
        end.put(error, rank)
        raise
    except OSError as error:
        if is_refused(error):
            end.put(error, rank)
        raise


def _check_shared(experiment: AnyExperiment, folder: Location) -> None:
    if not exists(folder.child("config.yaml")):
        raise ValueError(
            f"{folder.uri} is not shared with {socket.gethostname()}: runs={experiment.runs} must be"
            " storage that all nodes see (a mount, or s3:// or gs://)"
        )


def _train(experiment: AnyExperiment, folder: Location, rank: int, *, resume_anyway: bool) -> None:
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(threads_for(experiment.cluster.cpus_per_worker))
    own_log = MetricsLog(folder)  # a file of its own, once there is a row
    logging.getLogger("reid").addHandler(MessageRows(own_log))
    log = own_log if rank == 0 else None
    try:
        training = build_training(experiment, device, resume_anyway=resume_anyway)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    except DataError as error:
        error.add_note(
            f"The driver found no fault with {experiment.data.shards}: on {socket.gethostname()} it must be the same"
            " storage (a mount, or s3:// or gs://)"
        )
        raise
    if log is not None:
        text = f"computing in {training.step.precision} on {_device_name(device)}, from step {training.start.step:,} on"
        log.append("message", {"step": training.start.step, "text": text, "level": "INFO"})
    wishes = WorkerWishes(StopMark(folder) if rank == 0 else None, STEPS_BETWEEN_LOOKS)
    try:
        with wishes:
            publish_results(training, log, wishes)
    finally:
        training.stream.close()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


class MessageRows(logging.Handler):
    """Puts what a worker has to say into the run's metrics, from where the driver prints it."""

    def __init__(self, log: MetricsLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Adds a row."""
        self._log.append("message", {"step": 0, "text": record.getMessage(), "level": record.levelname})


def publish_results(training: Training, log: MetricsLog | None, wishes: WorkerWishes) -> None:
    """Trains to the end; rank 0, the one with a log, publishes every row, all ranks report each epoch to Ray."""
    gauges = WorkerGauges(training.experiment.name) if log is not None else None
    for result in training.results(wishes):
        row = _row(result, training)
        if log is not None and gauges is not None:
            row["metrics_writes_failed"] = log.failed
            log.append("epoch" if isinstance(result, EpochResult) else "interval", row)
            gauges.publish({key: value for key, value in row.items() if isinstance(value, (int, float))})
        if isinstance(result, EpochResult):
            # A barrier that waits for the controller's poll: once an epoch, never once a step.
            ray.train.report({"epoch": result.epoch, "step": result.step, **result.metrics})


def _row(result: IntervalResult | EpochResult, training: Training) -> dict[str, Any]:
    row: dict[str, Any] = {"step": result.step, "epoch": result.epoch, **result.metrics}
    if isinstance(result, EpochResult):
        row |= {"finished_epoch": result.finished_epoch, "checkpoint": result.checkpoint}
        row["updates_skipped"] = training.step.num_skipped
        row[CHECKPOINTS_FAILED] = training.store.failed
        row |= {f"checkpoints_rejected/{reason}": count for reason, count in training.store.rejected.items()}
    return row | training.mishaps()
