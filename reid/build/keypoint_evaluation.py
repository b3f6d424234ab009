"""Checkpoint + shards -> figures of the keypoint detector: the pieces that evaluation workers share, and the whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reid.build.checkpoints import EvaluatedCheckpoint, load_trained_run
from reid.build.data import annotated_rows, open_data, open_eval_stream
from reid.build.evaluation import Evaluation, counted
from reid.build.run_folder import RunFolder
from reid.config import KeypointExperiment
from reid.contracts import DataError
from reid.data.index import Index
from reid.data.plane_table import visible_planes
from reid.data.shard_set import ShardSet
from reid.evaluation.heat_map_peaks import Score, fit_thresholds, with_visibility
from reid.evaluation.keypoint_metrics import PCK_SHARE, compare_planes, measure_keypoints, orientation_agreement
from reid.evaluation.keypoint_prediction import PredictedPeaks, predict_peaks
from reid.evaluation.keypoint_results import KeypointResult
from reid.evaluation.orientation import orientation_of
from reid.keypoints import NUM_KEYPOINTS
from reid.models.hourglass import Hourglass
from reid.progress import Stages, untold
from reid.storage import Location


@dataclass(frozen=True)
class TrainedDetector:
    """A keypoint detector with the weights of a checkpoint, in evaluation mode."""

    model: Hourglass
    experiment: KeypointExperiment
    """The run that trained it."""
    thresholds: NDArray[np.float64]
    """(20,) a keypoint is visible when its peak is higher: fitted, where the checkpoint was evaluated in its run."""
    score: Score
    thresholds_fitted: bool
    """Whether they were fitted by an evaluation of this checkpoint; if not, they are its configuration's default."""
    """What the thresholds are compared with."""
    checkpoint_hash: str
    """sha256 of the checkpoint's manifest, which holds the hashes of its files."""
    data_hash: str
    """Hash of the data set it was trained on."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRows:
    """What a detector is evaluated on."""

    held_out: NDArray[np.int64]
    """Annotated training images of held-out identities, for the thresholds."""
    measured: NDArray[np.int64]
    """Annotated test images; the held-out ones where there are none."""
    protocol: str
    """What those are, in words."""

    @property
    def all(self) -> NDArray[np.int64]:
        """Every row that must be predicted, ascending."""
        return np.union1d(self.held_out, self.measured)


def load_trained_detector(checkpoint: Location, device: torch.device) -> TrainedDetector:
    """The detector of a checkpoint folder: configuration, verified weights, thresholds, evaluation mode.

    Raises:
        ValueError: The folder is no sound checkpoint, or not of a keypoint detector.
    """
    run = load_trained_run(checkpoint, KeypointExperiment)
    model = Hourglass(run.experiment.model)
    model.load_state_dict(run.weights)
    model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    stored = RunFolder(checkpoint.parent.parent).evaluation(checkpoint.name) or {}
    thresholds = stored.get("thresholds", [run.experiment.evaluation.threshold] * NUM_KEYPOINTS)
    settings = stored.get("settings", run.experiment.evaluation.model_dump(mode="json"))
    return TrainedDetector(
        model=model,
        experiment=run.experiment,
        thresholds=np.array(thresholds, dtype=np.float64),
        score=settings.get("score", "peak"),
        thresholds_fitted=bool(stored.get("num_fitted_on", 0)),
        checkpoint_hash=run.checkpoint_hash,
        data_hash=run.data_hash,
    )


def evaluation_rows(experiment: KeypointExperiment, shards: ShardSet) -> EvaluationRows:
    """Which images a detector is evaluated on.

    Queries are left out where a gallery is there: on VeRi-776 they are in the gallery too.

    Raises:
        DataError: No annotated image is left to measure on.
    """
    index = shards.index
    _, held_out = annotated_rows(experiment, shards)
    test = np.concatenate([index.rows("gallery"), index.rows("test")])
    test = np.sort(test[index.has_keypoints[test]])
    if len(test):
        return EvaluationRows(held_out=held_out, measured=test, protocol="annotated test images")
    if not len(held_out):
        raise DataError(
            f"data.shards={experiment.data.shards}: no test image has keypoints and data.held_out_share is 0: nothing"
            " to evaluate on"
        )
    return EvaluationRows(held_out=held_out, measured=held_out, protocol="held-out training images")


def predict_rows(
    experiment: KeypointExperiment,
    trained: TrainedDetector,
    shards: ShardSet,
    rows: NDArray[np.int64],
    device: torch.device,
    stages: Stages = untold,
) -> PredictedPeaks:
    """Peaks on the given rows of the index."""
    evaluation = experiment.evaluation
    stream = open_eval_stream(experiment, shards, rows, device)
    try:
        return predict_peaks(
            trained.model, counted(stream, len(rows), stages("images looked at")), raw_sizes(shards.index), device,
            refinement=evaluation.refinement, score=evaluation.score, precision=evaluation.precision,
        )  # fmt: skip
    finally:
        stream.close()


def raw_sizes(index: Index) -> NDArray[np.int64]:
    """(N, 2) height and width of the raw images."""
    return np.stack((index.height, index.width), axis=1).astype(np.int64)


def conclude_keypoints(
    experiment: KeypointExperiment,
    trained: EvaluatedCheckpoint,
    shards: ShardSet,
    rows: EvaluationRows,
    predicted: PredictedPeaks,
    *,
    name: str,
    seconds: float,
) -> Evaluation:
    """Thresholds, figures and images worth looking at, from the peaks of all rows."""
    config, index = experiment.evaluation, shards.index
    held_out = predicted.peaks[np.searchsorted(predicted.samples, rows.held_out)]
    thresholds = np.full(NUM_KEYPOINTS, config.threshold)
    num_fitted_on = len(held_out) if config.fit_thresholds else 0
    if num_fitted_on:
        thresholds = fit_thresholds(held_out[..., 2], index.keypoints[rows.held_out][..., 2] > 0, config.threshold)
    peaks = predicted.peaks[np.searchsorted(predicted.samples, rows.measured)]
    keypoints, truth = with_visibility(peaks, thresholds), index.keypoints[rows.measured]
    sizes = raw_sizes(index)[rows.measured]
    orientation = orientation_of(keypoints)
    notes = []
    if num_fitted_on and rows.measured is rows.held_out:
        notes.append("thresholds were fitted on the images that they are measured on")
    if trained.data_hash != shards.manifest.hash:
        notes.append(f"trained on another data set (manifest {trained.data_hash[:12]})")
    derived = orientation_agreement(orientation, orientation_of(truth))
    result = KeypointResult(
        protocol=rows.protocol,
        metrics=measure_keypoints(peaks, keypoints[..., 2] > 0, truth, sizes),
        planes=compare_planes(visible_planes(keypoints), visible_planes(truth)),
        orientation_predicted=0.0 if derived is None else derived,
        orientation_annotated=orientation_agreement(orientation, index.orientation[rows.measured]),
        thresholds=tuple(thresholds.tolist()),
        num_fitted_on=num_fitted_on,
        checkpoint_hash=trained.checkpoint_hash,
        manifest_hash=shards.manifest.hash,
        name=name,
        notes=tuple(notes),
        seconds=seconds,
    )
    return Evaluation(
        result=result,
        examples=tuple(_examples(rows.measured, peaks, keypoints, truth, sizes, config.num_pictures)),
        settings=config.model_dump(mode="json"),
    )


def evaluate_keypoints_here(
    experiment: KeypointExperiment, checkpoint: Location, *, name: str = "", stages: Stages = untold
) -> Evaluation:
    """The whole evaluation in this process and on the CPU; evaluation workers give the same figures."""
    began = time.monotonic()
    device = torch.device("cpu")
    with open_data(experiment) as shards:
        trained = load_trained_detector(checkpoint, device)
        rows = evaluation_rows(experiment, shards)
        predicted = predict_rows(experiment, trained, shards, rows.all, device, stages)
        return conclude_keypoints(
            experiment, trained, shards, rows, predicted, name=name, seconds=time.monotonic() - began
        )


def _examples(
    samples: NDArray[np.int64],
    peaks: NDArray[np.float32],
    keypoints: NDArray[np.float32],
    truth: NDArray[np.float32],
    sizes: NDArray[np.int64],
    count: int,
) -> list[dict[str, Any]]:
    """Half the worst images, half spread over all from best to worst, as plain data."""
    visible, said = truth[..., 2] > 0, keypoints[..., 2] > 0
    misses = np.linalg.norm(peaks[..., :2] - truth[..., :2], axis=-1) > PCK_SHARE * sizes.max(axis=1)[:, None]
    wrong = (visible & misses) | (visible != said)
    order = np.argsort(wrong.sum(axis=1), kind="stable")
    worst = order[::-1][: count // 2]
    rest = order[: len(order) - len(worst)]
    typical = rest[np.linspace(0, len(rest) - 1, min(count - len(worst), len(rest))).astype(int)] if len(rest) else rest
    return [
        _example(kind, int(samples[place]), int(wrong[place].sum()), keypoints[place].tolist())
        for kind, places in (("worst", worst), ("typical", typical))
        for place in places.tolist()
    ]


def _example(kind: str, sample: int, num_wrong: int, keypoints: Sequence[Sequence[float]]) -> dict[str, Any]:
    rounded = [[round(value, 2) for value in point] for point in keypoints]
    return {"kind": kind, "sample": sample, "num_wrong": num_wrong, "keypoints": rounded}
