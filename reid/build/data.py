"""Config -> the shards of a run and the streams over them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from reid.config import Experiment
from reid.contracts import DataError
from reid.data.loader import LoaderConfig
from reid.data.shard_set import ShardSet, Verify, open_shards
from reid.data.stream import EvalStream, TrainStream


def open_data(experiment: Experiment, *, verify: Verify | None = None) -> ShardSet:
    """The data set of an experiment, checked as `data.verify` says.

    Args:
        experiment: The run.
        verify: "sizes" or "full" instead of the configured check; workers that open what the driver has checked
            need no second full pass.

    Raises:
        DataError: The shards are missing, incomplete or damaged.
    """
    data = experiment.data
    try:
        return open_shards(data.shards, cache=data.cache, verify=verify or data.verify)
    except (ValueError, OSError) as error:
        raise DataError(f"data.shards={data.shards}: {error}") from error


def open_train_stream(
    experiment: Experiment, shards: ShardSet, worker: int, num_workers: int, device: torch.device
) -> TrainStream:
    """The batches of one training worker, on their way to a device."""
    return TrainStream(
        shards,
        experiment.data.plan,
        experiment.data.transform,
        _loader(experiment, device),
        seed=experiment.seed,
        worker=worker,
        num_workers=num_workers,
        num_epochs=experiment.training.loop.epochs,
    )


def open_eval_stream(
    experiment: Experiment, shards: ShardSet, rows: NDArray[np.int64], device: torch.device
) -> EvalStream:
    """The given rows in order, each once, on their way to a device."""
    return EvalStream(
        shards,
        rows,
        experiment.data.transform,
        _loader(experiment, device),
        batch_size=experiment.evaluation.batch_size,
    )


def _loader(experiment: Experiment, device: torch.device) -> LoaderConfig:
    """The loader's settings, with page-locked memory where it serves a GPU."""
    loader = experiment.data.loader
    if loader.pin_memory is not None:
        return loader
    return loader.model_copy(update={"pin_memory": device.type == "cuda"})
