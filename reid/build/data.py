"""Config -> the shards of a run and the streams over them."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from reid.config import AnyExperiment, Experiment, KeypointExperiment, PMNetExperiment
from reid.contracts import DataError
from reid.data.draws import Purpose, epoch_integers
from reid.data.loader import LoaderConfig
from reid.data.occlusion import OcclusionConfig
from reid.data.plane_table import visible_planes
from reid.data.shard_set import ShardSet, Verify, open_shards
from reid.data.stored_parts import check_part_boxes
from reid.data.stream import EvalStream, TrainStream
from reid.models.perspective import PlaneConfig

_ROWS_AT_ONCE: Final = 10_000


def open_data(experiment: AnyExperiment, *, verify: Verify | None = None) -> ShardSet:
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
    experiment: AnyExperiment, shards: ShardSet, worker: int, num_workers: int, device: torch.device
) -> TrainStream:
    """The batches of one training worker, on their way to a device."""
    check_train_data(experiment, shards)
    rows = annotated_rows(experiment, shards)[0] if isinstance(experiment, KeypointExperiment) else None
    return TrainStream(
        shards,
        experiment.data.plan,
        experiment.data.transform,
        _loader(experiment, device),
        seed=experiment.seed,
        worker=worker,
        num_workers=num_workers,
        num_epochs=experiment.training.loop.epochs,
        rows=rows,
        num_parts=experiment.model.parts_read if isinstance(experiment, PMNetExperiment) else 0,
        stripes=uses_stripes(experiment),
    )


def check_train_data(experiment: AnyExperiment, shards: ShardSet) -> None:
    """Refuse a run whose training images lack what it learns from.

    Raises:
        DataError: No image has keypoints, though planes are compared; the stored parts are others in number.
    """
    if compared_planes(experiment) is not None:
        rows = shards.index.rows("train")
        rows = rows[shards.index.has_keypoints[rows]]
        if not len(rows):
            raise DataError(
                f"data.shards={experiment.data.shards}: no training image has keypoints, so planes teach nothing: add"
                " them (jobs/add_keypoints.py), or set model.planes=null"
            )
        if not _show_a_plane(shards.index.keypoints, rows):
            raise DataError(
                f"data.shards={experiment.data.shards}: the keypoints of {len(rows):,} training images show no plane,"
                " so planes teach nothing: they are in another order or unit (VeRi's 20 points in pixels are expected;"
                " jobs/check_data.py draws up the plane table), or set model.planes=null"
            )
    if isinstance(experiment, PMNetExperiment) and not uses_stripes(experiment):
        check_part_boxes(shards.index, experiment.model.parts_read)


def _show_a_plane(keypoints: NDArray[np.float32], rows: NDArray[np.int64]) -> bool:
    """Whether any of the rows does: known after the first of them, where all is well."""
    starts = range(0, len(rows), _ROWS_AT_ONCE)
    return any(visible_planes(keypoints[rows[start : start + _ROWS_AT_ONCE]]).any() for start in starts)


def compared_planes(experiment: AnyExperiment) -> PlaneConfig | None:
    """The planes that training compares, which keypoints show; None where it compares none."""
    return experiment.model.planes if isinstance(experiment, (Experiment, PMNetExperiment)) else None


def annotated_rows(experiment: KeypointExperiment, shards: ShardSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of annotated training images: those to learn from, and those of the held-out identities.

    Images that nobody annotated are in neither: what is not visible on them is not known. Which identities are held
    out follows from the seed.

    Raises:
        DataError: No image of the training split has keypoints.
    """
    index = shards.index
    rows = index.rows("train")
    rows = rows[index.has_keypoints[rows]]
    if not len(rows):
        raise DataError(
            f"data.shards={experiment.data.shards}: no training image has keypoints; pack a data set with a keypoint"
            " file (VeRi-776 with keypoint_train.txt, or jobs/make_synthetic.py)"
        )
    identities = np.unique(index.label[rows])
    share = experiment.data.held_out_share
    count = min(max(1, round(share * len(identities))), len(identities) - 1) if share else 0
    order = np.argsort(epoch_integers(experiment.seed, 0, Purpose.HELD_OUT, len(identities)), kind="stable")
    held_out = np.isin(index.label[rows], identities[order[:count]])
    return rows[~held_out], rows[held_out]


def open_eval_stream(
    experiment: AnyExperiment,
    shards: ShardSet,
    rows: NDArray[np.int64],
    device: torch.device,
    occlusion: OcclusionConfig | None = None,
) -> EvalStream:
    """The given rows in order, each once, on their way to a device.

    With masks and boxes where retrieval takes them, and occluded where that is asked for.
    """
    return EvalStream(
        shards,
        rows,
        experiment.data.transform,
        _loader(experiment, device).model_copy(update={"masks": False}),
        batch_size=experiment.evaluation.batch_size,
        num_parts=evaluation_parts(experiment),
        stripes=uses_stripes(experiment),
        occlusion=occlusion,
    )


def uses_stripes(experiment: AnyExperiment) -> bool:
    """Whether parts are uniform stripes, whatever the shards hold."""
    return isinstance(experiment, PMNetExperiment) and experiment.model.uses_stripes


def evaluation_parts(experiment: AnyExperiment) -> int:
    """Part boxes of each image that retrieval takes; 0: neither boxes nor masks."""
    if isinstance(experiment, PMNetExperiment) and experiment.evaluation.partial_tasks:
        return experiment.model.parts_read
    return 0


def _loader(experiment: AnyExperiment, device: torch.device) -> LoaderConfig:
    """The loader's settings, with page-locked memory where it serves a GPU."""
    loader = experiment.data.loader
    if loader.pin_memory is not None:
        return loader
    return loader.model_copy(update={"pin_memory": device.type == "cuda"})
