"""The keypoint detector's job on a real local Ray: two workers, evaluation workers, report, dry run, resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.dry_run import dry_run
from cluster.trainer import Resume, evaluate_run, train
from reid.build.keypoint_evaluation import evaluate_keypoints_here, load_trained_detector
from reid.build.metrics_log import read_metrics
from reid.build.run_folder import open_run
from reid.config import KeypointExperiment, load_experiment
from reid.evaluation.keypoint_results import KeypointResult
from reid.training.checkpoint import CheckpointStore

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def tiny_detector(shards: Path, runs: Path, *overrides: str) -> KeypointExperiment:
    return load_experiment(
        None,
        [
            "name=tiny", f"runs={runs}", f"data.shards={shards}", "data.plan.batch_size=4",
            "data.transform.height=32", "data.transform.width=32",
            "model.num_stacks=1", "model.channels=8", "model.depth=2", "training.step.precision=float32",
            "training.loop.epochs=1", "training.loop.log_every_steps=2", "evaluation.num_pictures=2",
            "cluster.num_workers=2", "cluster.evaluation_workers=2", "cluster.cpus_per_evaluation_worker=0",
            *overrides,
        ],
        KeypointExperiment,
    )  # fmt: skip


def test_a_detector_trains_on_two_workers_is_evaluated_reported_and_continues(
    tiny_shards: Path, tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = tiny_detector(tiny_shards, tmp_path)
    with caplog.at_level("INFO"):
        dry_run(experiment)
    assert "dry run passed" in caplog.text
    result = train(experiment, Resume.NEVER).results[-1]
    assert isinstance(result, KeypointResult)
    folder = open_run(experiment)
    rows = read_metrics(folder.location)
    assert [row["kind"] for row in rows if row["kind"] in ("epoch", "evaluation")] == ["epoch", "evaluation"]
    name = CheckpointStore(folder.checkpoints).newest() or ""
    here = evaluate_keypoints_here(experiment, folder.checkpoints.child(name)).result
    assert here.figures() == result.figures()
    page = (tmp_path / "tiny" / "report" / "index.html").read_text()
    assert "The worst images" in page
    assert "first_stack" not in page
    detector = load_trained_detector(folder.checkpoints.child(name), torch.device("cpu"))
    assert tuple(detector.thresholds.tolist()) == result.thresholds

    longer = tiny_detector(tiny_shards, tmp_path, "training.loop.epochs=2", "cluster.num_workers=1")
    train(longer, Resume.MUST)
    epochs = [row["epoch"] for row in read_metrics(folder.location) if row["kind"] == "epoch"]
    assert epochs == [0, 1]
    assert evaluate_run(longer).figures()["PCK@0.1"] >= 0
    with pytest.raises(ValueError, match="global batch 4 images is not divisible by 3 workers"):
        train(tiny_detector(tiny_shards, tmp_path, "cluster.num_workers=3"))
